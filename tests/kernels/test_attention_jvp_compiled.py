"""attention_jvp's kernels compiled for GPUs that are not here: spills, matrix instructions."""

import os
import re

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to compile")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("the interpreter is on: kernels are not compiled", allow_module_level=True)

from compiled import BOUNDS, compile_for, resources, widths

from dgan_kernels import triton_attention_jvp as kernels
from dgan_kernels import triton_attention_jvp_launch as launch

pytestmark = BOUNDS

STATISTICS = ("lse_ptr", "mu_ptr", "eps_ptr", "delta_ptr")
TABLES = {80: launch.AMPERE, 90: launch.HOPPER, 100: launch.BLACKWELL}
KERNELS = ("forward_kernel", "query_kernel", "key_kernel")
# Shared memory of a program at the most: sm_80 has 163 KB, consumer GPUs of its kind 99 KB.
SHARED = {80: 99, 90: 227, 100: 227}


def compile_kernel(name, dtype, width, config, arch, half=(True, True), dot="tf32", causal=False):
    """Return (PTX, registers, stack bytes, KB of shared memory) for aligned tensors."""
    kernel = getattr(kernels, name)
    constants = {
        "HAS_QT": True, "HAS_KT": True, "HAS_VT": True, "CAUSAL": causal, "DOT": dot,
        "D": width, "BD": width, "BM": config.queries, "BN": config.keys,
    }  # fmt: skip
    if name == "key_kernel":
        constants |= {"TO_KEY": half[0], "TO_VALUE": half[1]}
    names = kernel.arg_names
    kind = lambda a: (  # noqa: E731
        "*fp32" if a in STATISTICS else f"*{dtype}" if a.endswith("_ptr")
        else "fp32" if a == "scale" else "i32"
    )  # fmt: skip
    aligned = [a for a in names if a not in ("scale", "L", "S", "H")]
    compiled = compile_for(
        arch,
        kernel,
        {a: kind(a) for a in names},
        constants,
        aligned,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    usage = resources(compiled.asm["cubin"])
    return compiled.asm["ptx"], *usage, compiled.metadata.shared / 1024


def halves(name, width):
    """Return the launches of a kernel."""
    whole = name != "key_kernel" or width <= launch.WIDEST_WHOLE
    return ((True, True),) if whole else ((True, False), (False, True))


@pytest.mark.parametrize("arch", TABLES)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", KERNELS)
def test_16_bits_do_not_spill(name, width, arch):
    config = TABLES[arch][width][KERNELS.index(name)]
    for half in halves(name, width):
        ptx, _, stack, shared = compile_kernel(name, "bf16", width, config, arch, half)
        assert stack == 0
        assert shared <= SHARED[arch]
        assert re.search(r"mma\.sync|wgmma|tcgen05\.mma", ptx)
        # Rows move 16 bytes at a time; what is narrower is a number of a row, in float32.
        assert not re.search(r"\b(ld|st)\.global\S*\.b(8|16)\b", ptx)
        assert widths(ptx, "ld")[0] >= 4
        assert widths(ptx, "st")[1] <= 2


@pytest.mark.parametrize("name", KERNELS)
def test_causal_does_not_spill(name):
    config = launch.HOPPER[64][KERNELS.index(name)]
    assert compile_kernel(name, "fp16", 64, config, 90, causal=True)[2] == 0


@pytest.mark.parametrize("name", KERNELS)
def test_float32_runs_on_tensor_cores(name):
    config = launch.FLOAT32[64][KERNELS.index(name)]
    for arch in TABLES:
        ptx, _, stack, shared = compile_kernel(name, "fp32", 64, config, arch, dot="tf32x3")
        assert "mma.sync" in ptx
        assert shared <= SHARED[arch]
        # The query kernel has all 255 registers of a thread, and on sm_100 lacks six.
        assert stack <= (24 if (name, arch) == ("query_kernel", 100) else 0)
