"""bias_act's kernels compiled for GPUs that are not here: spills, registers, width of loads."""

import os
import pathlib
import re
import subprocess
import tempfile

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to compile")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("the interpreter is on: kernels are not compiled", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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
    names = kernel.arg_names
    multiples_of_16 = [*POINTERS[name], "n", "C", "INNER"]
    source = ASTSource(
        fn=kernel,
        signature={a: "constexpr" if a in constants else signature[a] for a in names},
        constexprs={(names.index(a),): v for a, v in constants.items()},
        attrs={
            (names.index(a),): [["tt.divisibility", 16]]
            for a in multiples_of_16
            if a not in constants
        },
    )
    options = {"num_warps": triton_bias_act.WARPS}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return compiled.asm["ptx"], *resources(compiled.asm["cubin"])


def resources(cubin):
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this triton wheel has no cuobjdump to read registers with")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"\b{key}:(\d+)", report)[1]) for key in ("REG", "STACK"))


def widths(ptx, instruction):
    """Return how many global accesses move 16 bytes, and how many move less."""
    lines = re.findall(rf"\b{instruction}\.global\S*", ptx)
    wide = sum(bool(re.search(r"v4\.b32|v2\.b64|v8\.b16", line)) for line in lines)
    return wide, len(lines) - wide


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
