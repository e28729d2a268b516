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
    "instance of 8192": ((32, 512, 1, 8192), "group"),
    "layer 4096": ((1, 8192, 4096, 1), "channels"),
}
TELLING = ["instance 64x64", "group of 8192", "layer 1152", "layer of images"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ARCHS = [80, 90, 100]
# Of the tiles that fill the chip, ptxas keeps ten registers of a thread on sm_100's stack. They
# stay in the first cache, 20 KB a program; two sweeps would be three passes over memory more.
STACK = {80: 0, 90: 0, 100: 40}
# name: (module, tensors of x's size that are read)
SWEEPS = {
    "statistics": (sweeps, 1), "forward": (sweeps, 1), "jvp_sums": (sweeps, 2), "jvp": (sweeps, 2),
    "backward_sums": (sweeps, 2), "backward": (sweeps, 2), "second_sums": (sweeps_second, 3),
    "second": (sweeps_second, 3),
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
    x = torch.empty(shape, dtype=DTYPES[dtype], device="meta")
    tiles = launch.resident_tiles(x, over)
    sums = over == "channels" and name in ("backward", "second")
    constants = CONSTANTS | {
        "ACT": act, "CURVED": ACTIVATIONS[act].second is not None, "ACROSS": over == "channels",
        "WHOLE": tiles.whole, "ROWS": tiles.rows, "COLS": tiles.cols,
    }  # fmt: skip
    # Arguments equal to 1 become constants.
    constants |= {} if sums else {"tiles": 1}
    constants |= {"inner": 1} if tiles.inner == 1 else {}
    warps = tiles.warps_summing() if sums else tiles.warps()
    kernel = getattr(resident, f"{name}_kernel")
    return compile_kernel(kernel, dtype, constants, warps, arch)


def wide_loads(ptx):
    """Return how many loads of 16 bytes a thread has."""
    return widths(ptx, "ld")[0]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("case", RESIDENT)
def test_double_backward_on_chip_does_not_spill(case, arch):
    ptx, registers, stack = compile_resident("second", case, "bf16", arch)
    assert stack <= STACK[arch]
    # Eight warps may have all registers there are; as many as are allowed hide what memory takes.
    assert registers <= (255 if case == "layer 4096" else 192)
    assert wide_loads(ptx) >= 3


@pytest.mark.parametrize("case", sorted({*RESIDENT} - {"group of 8192"}))
def test_double_backward_of_float32_does_not_spill(case):
    ptx, _, stack = compile_resident("second", case, "fp32", 90)
    assert stack == 0
    assert wide_loads(ptx) >= 3


def test_what_would_spill_takes_two_sweeps():
    shape, over = RESIDENT["group of 8192"]
    assert launch.resident_tiles(torch.empty(shape, device="meta"), over) is None
    half = (*shape[:3], shape[3] // 2)
    assert launch.resident_tiles(torch.empty(half, device="meta"), over) is not None


@pytest.mark.parametrize("name", ["forward", "jvp", "backward"])
@pytest.mark.parametrize(
    ("case", "arch"),
    [*((case, 90) for case in RESIDENT), *((c, arch) for c in TELLING for arch in (80, 100))],
)
def test_the_rest_on_chip_does_not_spill(name, case, arch):
    ptx, _, stack = compile_resident(name, case, "bf16", arch)
    assert stack == 0
    assert wide_loads(ptx) >= (1 if name == "forward" else 2)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_are_wide_and_do_not_spill(name, dtype, arch):
    constants = CONSTANTS | {"ROWS": 1, "COLS": launch.SWEEP}
    module, tensors = SWEEPS[name]
    warps = launch.SWEEP // launch.ELEMENTS
    kernel = getattr(module, f"{name}_kernel")
    ptx, registers, stack = compile_kernel(kernel, dtype, constants, warps, arch)
    assert stack == 0
    assert registers <= 192
    # Sixteen elements a thread: two loads of each tensor in 16 bits, four in 32.
    assert wide_loads(ptx) == tensors * (2 if dtype == "bf16" else 4)


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("columns", [4, 256])
def test_sweeps_over_several_rows_do_not_spill(name, columns, batch):
    rows = min(launch.SWEEP_ROWS, launch.SWEEP // columns)
    constants = CONSTANTS | {"ROWS": rows, "COLS": columns, "BATCH": batch}
    kernel = getattr(SWEEPS[name][0], f"{name}_kernel")
    assert compile_kernel(kernel, "fp16", constants, 8, 90)[2] == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_combining_chunks_compiles(arch):
    constants = CONSTANTS | {"COLS": launch.SWEEP}
    assert compile_kernel(sweeps.combine_kernel, "fp32", constants, 4, arch)[2] == 0


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_compiles_without_spills(act):
    assert compile_resident("second", "instance 64x64", "bf16", 90, act)[2] == 0
