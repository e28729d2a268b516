"""The kernels of gradient penalties and minibatch_stddev compiled for GPUs that are not here:
spills, registers, width of loads.
"""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to compile")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("the interpreter is on: kernels are not compiled", allow_module_level=True)

from compiled import BOUNDS, compile_for, resources, widths

from dgan_kernels import triton_gradient_penalty as penalty
from dgan_kernels import triton_minibatch_stddev as stddev

pytestmark = BOUNDS

# Those of float32 whatever x's dtype: sums, and numbers of a sample or a group.
WIDE = ("partial_ptr", "weight_ptr", "mix_ptr", "ds_ptr")
SCALARS = {"eps": "fp32", "factor": "fp32"}


def compile_kernel(kernel, dtype, arch, constants, warps=4):
    """Return (PTX, registers, stack bytes), with sizes that are multiples of 16."""
    names = kernel.arg_names
    signature = {
        a: f"*{'fp32' if a in WIDE else dtype}" if a.endswith("_ptr") else SCALARS.get(a, "i32")
        for a in names
    }
    aligned = [a for a in names if a.endswith("_ptr") or a in ("L", "K")]
    compiled = compile_for(arch, kernel, signature, constants, aligned, num_warps=warps)
    return compiled.asm["ptx"], *resources(compiled.asm["cubin"])


BLOCK = {"BLOCK": penalty.BLOCK}
SUM = BLOCK | {"STEPS": penalty.STEPS}
# Per kernel: constants, tensors read and written by blocks, blocks a program, numbers a program.
KERNELS = {
    "squared_norm": (penalty.sum_kernel, SUM | {"SQUARE": True}, (1, 0), penalty.STEPS, (0, 1)),
    "dot": (penalty.sum_kernel, SUM | {"SQUARE": False}, (2, 0), penalty.STEPS, (0, 1)),
    "scale": (penalty.scale_kernel, BLOCK | {"RULE": "linear"}, (1, 1), 1, (1, 0)),
    "direction": (penalty.scale_kernel, BLOCK | {"RULE": "one_sided"}, (1, 1), 1, (1, 0)),
    "interpolate": (penalty.interpolate_kernel, BLOCK, (2, 1), 1, (1, 0)),
}
# A thread has sixteen elements of a block: two 16-byte accesses in 16 bits, four in float32.
ACCESSES = {"bf16": 2, "fp16": 2, "fp32": 4}


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", KERNELS)
def test_rows_are_read_wide_and_nothing_spills(name, dtype, arch):
    kernel, constants, (reads, writes), blocks, (loads, stores) = KERNELS[name]
    ptx, registers, stack = compile_kernel(kernel, dtype, arch, constants)
    per_block = ACCESSES[dtype] * blocks
    assert widths(ptx, "ld") == (reads * per_block, loads)
    assert widths(ptx, "st") == (writes * per_block, stores)
    assert stack == 0
    # 56 registers a thread still let an SM hold nine such programs, 36 of its 64 warps.
    assert registers <= 56


# Per kernel: constants, tensors of x's size that are read.
STDDEV = {
    "forward": (stddev.sum_kernel, {"TANGENT": False}, 1),
    "tangent": (stddev.sum_kernel, {"TANGENT": True}, 2),
    "backward": (stddev.backward_kernel, {}, 1),
    "second": (stddev.second_kernel, {}, 2),
}


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("rows", [4, 64])
@pytest.mark.parametrize("name", STDDEV)
def test_minibatch_stddev_is_read_wide_and_does_not_spill(name, rows, arch):
    kernel, constants, reads = STDDEV[name]
    constants = constants | {"ROWS": rows, "BLOCK": stddev.TILE // rows}
    for dtype in ("bf16", "fp32"):
        ptx, registers, stack = compile_kernel(kernel, dtype, arch, constants)
        assert stack == 0
        number = name in ("backward", "second")  # that of a group and set
        assert widths(ptx, "ld") == (reads * ACCESSES[dtype], number)
        assert widths(ptx, "st") == (number * ACCESSES[dtype], name != "backward")
        # Seven such programs to an SM; at 4×4 pixels a batch is fewer than there are SMs.
        assert registers <= 72
