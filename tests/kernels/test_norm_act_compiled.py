"""norm_act's kernels compiled for GPUs that are not here: spills, registers, width of loads."""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to compile")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("the interpreter is on: kernels are not compiled", allow_module_level=True)

import torch
from compiled import BOUNDS, compile_for, resources, widths

from dgan_kernels import triton_norm_launch as launch
from dgan_kernels import triton_norm_resident as resident
from dgan_kernels import triton_norm_sweeps as sweeps
from dgan_kernels import triton_norm_sweeps_second as sweeps_second
from dgan_kernels.reference import ACTIVATIONS

pytestmark = BOUNDS

FLOAT32 = {"stats_ptr", "totals_ptr", "w_ptr", "b_ptr", "shift_ptr", "sums_ptr"}
# What is a multiple of 16 in the shapes below, as launches would find out.
SIXTEENS = {"S", "C", "R", "cols", "inner", "positions", "w_n", "b_n", "size", "shift_size"}
CONSTANTS = {
    "ACT": "silu", "CURVED": True, "CENTRED": True, "HAS_WEIGHT": True, "HAS_BIAS": True,
    "BATCH": False, "BLOCK": launch.COMBINE, "w_c": 1, "b_c": 1,
}  # fmt: skip
# name: (view [N, G, D, S], over)
RESIDENT = {
    "instance 8x8": ((32, 512, 1, 64), "group"),
    "instance 64x64": ((32, 512, 1, 4096), "group"),
    "group 16x16": ((32, 32, 16, 256), "group"),
    "group of 8192": ((32, 32, 32, 256), "group"),
    "layer 512": ((1, 8192, 512, 1), "channels"),
    "layer 1152": ((1, 8192, 1152, 1), "channels"),
    "layer of images": ((1, 32, 64, 4096), "channels"),
}
SWEEPS = {
    "statistics": sweeps, "forward": sweeps, "jvp_sums": sweeps, "jvp": sweeps,
    "backward_sums": sweeps, "backward": sweeps, "second_sums": sweeps_second,
    "second": sweeps_second,
}  # fmt: skip


def compile_kernel(kernel, dtype, constants, warps, arch):
    """Return (PTX, registers, stack bytes), specialised as a launch with those shapes would be."""
    names = kernel.arg_names
    constants = {k: v for k, v in constants.items() if k in names}
    signature = {a: "i32" for a in names}
    signature |= {a: f"*{dtype}" for a in names if a.endswith("_ptr")}
    signature |= {a: "*fp32" for a in names if a in FLOAT32}
    signature |= {a: "fp32" for a in ("count", "eps") if a in names}
    aligned = [a for a in names if a.endswith("_ptr") or a in SIXTEENS]
    compiled = compile_for(
        arch, kernel, signature, constants, aligned, num_warps=warps, **launch.OPTIONS
    )
    return compiled.asm["ptx"], *resources(compiled.asm["cubin"])


def compile_resident(name, case, dtype, arch, act="silu"):
    shape, over = RESIDENT[case]
    tiles = launch.resident_tiles(torch.empty(shape, device="meta"), over)
    sums = over == "channels" and name in ("backward", "second")
    constants = CONSTANTS | {
        "ACT": act, "CURVED": ACTIVATIONS[act].second is not None, "ACROSS": over == "channels",
        "WHOLE": tiles.whole, "ROWS": tiles.rows, "COLS": tiles.cols,
    }  # fmt: skip
    # Arguments equal to 1 become constants.
    constants |= {} if sums else {"tiles": 1}
    constants |= {"inner": 1} if tiles.inner == 1 else {}
    warps = tiles.warps(launch.ELEMENTS // 2 if sums else launch.ELEMENTS)
    kernel = getattr(resident, f"{name}_kernel")
    return compile_kernel(kernel, dtype, constants, warps, arch)


def wide_loads(ptx):
    """Return how many loads of 16 bytes a thread has."""
    return widths(ptx, "ld")[0]


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("case", RESIDENT)
def test_double_backward_on_chip_does_not_spill(case, arch):
    _, registers, stack = compile_resident("second", case, "bf16", arch)
    # 512 threads share a group of 8192 and have 128 registers each; on sm_100 that is ten short.
    assert stack <= (48 if case == "group of 8192" and arch == 100 else 0)
    assert registers <= 192


@pytest.mark.parametrize("name", ["forward", "jvp", "backward"])
@pytest.mark.parametrize("case", RESIDENT)
def test_the_rest_on_chip_does_not_spill(name, case):
    ptx, _, stack = compile_resident(name, case, "bf16", 90)
    assert stack == 0
    assert wide_loads(ptx) >= (1 if name == "forward" else 2)


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["backward_sums", "second_sums", "second"])
def test_two_sweeps_do_not_spill(name, dtype, arch):
    constants = CONSTANTS | {"ROWS": 1, "COLS": launch.SWEEP}
    kernel = getattr(SWEEPS[name], f"{name}_kernel")
    warps = launch.SWEEP // launch.ELEMENTS
    ptx, registers, stack = compile_kernel(kernel, dtype, constants, warps, arch)
    assert stack == 0
    assert registers <= 192
    # Sixteen elements a thread: two loads of each tensor in 16 bits, four in 32.
    tensors = 2 if name == "backward_sums" else 3
    assert wide_loads(ptx) == tensors * (2 if dtype == "bf16" else 4)


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("batch", [False, True])
def test_every_sweep_compiles(name, batch):
    constants = CONSTANTS | {"ROWS": 16, "COLS": 256, "BATCH": batch}
    _, _, stack = compile_kernel(getattr(SWEEPS[name], f"{name}_kernel"), "fp16", constants, 8, 90)
    assert stack == 0


def test_combining_chunks_compiles():
    constants = CONSTANTS | {"COLS": launch.SWEEP}
    assert compile_kernel(sweeps.combine_kernel, "fp32", constants, 4, 90)[2] == 0


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_compiles_without_spills(act):
    assert compile_resident("second", "instance 64x64", "bf16", 90, act)[2] == 0
