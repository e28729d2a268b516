"""bias_act's kernels compiled for GPUs that are not here: spills, registers, width of loads."""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to compile")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("the interpreter is on: kernels are not compiled", allow_module_level=True)

from compiled import compile_for, resources, widths

from dgan_kernels import triton_bias_act
from dgan_kernels.reference import ACTIVATIONS

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


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ACCESSES)
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
