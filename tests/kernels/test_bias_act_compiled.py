"""bias_act's kernels compiled for GPUs that are not here: spills, registers, width of loads."""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to compile")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("the interpreter is on: kernels are not compiled", allow_module_level=True)

from compiled import BOUNDS, compile_for, resources, widths

from dgan_kernels import triton_bias_act, triton_bias_act_scaled, triton_bias_act_tiles
from dgan_kernels.reference import ACTIVATIONS

pytestmark = BOUNDS

POINTERS = {
    "forward_kernel": ["x_ptr", "b_ptr", "y_ptr"],
    "backward_kernel": ["dy_ptr", "x_ptr", "b_ptr", "dx_ptr"],
    "second_kernel": ["v_ptr", "dy_ptr", "x_ptr", "b_ptr", "ddy_ptr", "dx_ptr"],
}
# A thread has eight elements: one 16-byte access of a 16-bit dtype, two of float32.
ACCESSES = {"bf16": 1, "fp16": 1, "fp32": 2}


def compile_kernel(name, dtype, act, layout, arch, clamp=True):
    """Return (PTX, registers, stack bytes), specialised as a launch with those shapes would be."""
    kernel = getattr(triton_bias_act, name)
    constants = {
        "ACT": act, "HAS_BIAS": True, "HAS_CLAMP": clamp, "PLANES": layout == "planes",
        "BLOCK": triton_bias_act.BLOCK, "b_stride": 1,
        "UNIT": 16 if layout == "channels_last" else 1,
    }  # fmt: skip
    signature = dict.fromkeys(POINTERS[name], f"*{dtype}")
    signature |= {"n": "i32", "C": "i32", "INNER": "i32", "gain": "fp32", "clamp": "fp32"}
    if layout == "channels_last":
        constants["INNER"] = 1
    compiled = compile_for(
        arch,
        kernel,
        signature,
        constants,
        [*POINTERS[name], "n", "C", "INNER"],
        num_warps=triton_bias_act.WARPS,
    )
    return compiled.asm["ptx"], *resources(compiled.asm["cubin"])


@pytest.mark.parametrize(
    ("dtype", "arch"), [("fp16", 90), *((d, a) for d in ("bf16", "fp32") for a in (80, 90, 100))]
)
@pytest.mark.parametrize("name", POINTERS)
@pytest.mark.parametrize("layout", ["planes", "channels_last"])
def test_loads_are_wide_and_nothing_spills(name, dtype, layout, arch):
    ptx, registers, stack = compile_kernel(name, dtype, "silu", layout, arch)
    reads, writes = len(POINTERS[name]) - 2, 1
    if name == "second_kernel":
        reads, writes = 3, 2
    # The bias is one scalar for a plane, and another row of wide loads in channels_last.
    loads = (reads, 1) if layout == "planes" else (reads + 1, 0)
    assert widths(ptx, "ld") == (loads[0] * ACCESSES[dtype], loads[1])
    assert widths(ptx, "st") == (writes * ACCESSES[dtype], 0)
    assert stack == 0
    # 48 registers a thread still let an SM hold ten such programs, 40 of its 64 warps.
    assert registers <= 48


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_compiles_without_spills(act):
    curved = ACTIVATIONS[act].second is not None
    for name in ("forward_kernel", "second_kernel" if curved else "backward_kernel"):
        _, registers, stack = compile_kernel(name, "bf16", act, "flat", 90)
        assert stack == 0
        assert registers <= 64


def test_linear_backward_does_not_read_x():
    ptx, _, _ = compile_kernel("backward_kernel", "bf16", "linear", "planes", 90, clamp=False)
    assert widths(ptx, "ld") == (1, 0)


LAYER = ["s_ptr", "n_ptr", "b_ptr"]
SUMS = ["channel_ptr", "position_ptr"]
# Inputs of x's size, further pointers to vectors, outputs of x's size, whether sums follow.
SCALED = {
    "forward_kernel": (["x_ptr"], LAYER, ["y_ptr"], []),
    "tangent_kernel": (["tx_ptr", "x_ptr"], [*LAYER, "ts_ptr", "tn_ptr", "tb_ptr"], ["ty_ptr"], []),
    "backward_kernel": (["dy_ptr", "x_ptr"], LAYER, ["dx_ptr"], SUMS),
    "second_kernel": (
        ["v_ptr", "dy_ptr", "x_ptr"],
        [*LAYER, "vs_ptr", "vn_ptr", "vb_ptr"],
        ["ddy_ptr", "dx_ptr"],
        SUMS,
    ),
}


def compile_scaled(name, dtype, act, layout, arch=90, operands=True, sizes=(512, 4096)):
    """Return (PTX, registers, stack bytes), specialised as a launch with those sizes would be."""
    tile = triton_bias_act_scaled.tile(*sizes, channels_inside=layout == "channels_last")
    constants = {
        "ACT": act, "HAS_CLAMP": True, "HAS_SCALE": operands, "HAS_NOISE": operands,
        "HAS_BIAS": operands, **tile,
        "x_c" if layout == "channels_last" else "x_p": 1,
    }  # fmt: skip
    if name == "second_kernel":
        constants["CURVED"] = ACTIVATIONS[act].second is not None
    inputs, vectors, outputs, sums = SCALED[name]
    whole = ["x_n", "x_c", "x_p", "C", "P", "noise_n"]
    pointers = [*inputs, *vectors, *outputs]
    signature = dict.fromkeys(pointers, f"*{dtype}") | dict.fromkeys(sums, "*fp32")
    signature |= dict.fromkeys(whole, "i32") | {"gain": "fp32", "clamp": "fp32"}
    compiled = compile_for(
        arch,
        getattr(triton_bias_act_tiles, name),
        signature,
        constants,
        [*pointers, *sums, *whole],
        num_warps=triton_bias_act_scaled.WARPS,
    )
    return compiled.asm["ptx"], *resources(compiled.asm["cubin"])


@pytest.mark.parametrize(
    ("dtype", "arch"), [("fp16", 90), *((d, a) for d in ("bf16", "fp32") for a in (80, 90, 100))]
)
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("layout", ["planes", "channels_last"])
def test_scaled_loads_are_wide_and_nothing_spills(name, dtype, layout, arch):
    ptx, registers, stack = compile_scaled(name, dtype, "silu", layout, arch)
    inputs, vectors, outputs, sums = SCALED[name]
    # What varies along the inside of a tile, noise or else scale and bias, is one wide load; of
    # what varies across it, a thread takes an element or two.
    along, across = (1, 2) if layout == "planes" else (2, 1)
    layers = len(vectors) // 3
    wide, narrow = widths(ptx, "ld")
    assert wide == len(inputs) * ACCESSES[dtype] + along * layers
    assert narrow <= 2 * across * layers
    assert widths(ptx, "st") == (len(outputs) * ACCESSES[dtype], 3 if sums else 0)
    assert stack == 0
    # Three such programs on an SM, 24 of its 64 warps, with five wide loads in flight in each.
    assert registers <= 80


@pytest.mark.parametrize("sizes", [(1, 4096), (3, 65536), (512, 1), (17, 9)], ids=str)
def test_scaled_odd_sizes_compile_without_spills(sizes):
    for name in SCALED:
        _, _, stack = compile_scaled(name, "bf16", "silu", "planes", sizes=sizes)
        assert stack == 0


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_scaled_every_activation_compiles_without_spills(act):
    for name in ("tangent_kernel", "second_kernel"):
        _, registers, stack = compile_scaled(name, "bf16", act, "planes")
        assert stack == 0
        assert registers <= 96


def test_sums_of_operands_that_are_not_there_are_not_stored():
    ptx, _, _ = compile_scaled("backward_kernel", "bf16", "silu", "planes", operands=False)
    assert widths(ptx, "st") == (1, 0)
