"""Kernels compiled for GPUs that are not here, and what their code tells."""

import functools
import pathlib
import re
import subprocess
import tempfile

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BOUNDS = pytest.mark.xfail(
    not triton.__version__.startswith("3.7."), raises=AssertionError, strict=False,
    reason="registers, spills and widths are bounded for the code of Triton 3.7",
)  # fmt: skip
"""For modules of tests: other compilers must compile, and may need more."""


def compile_for(arch, kernel, signature, constants, aligned, **options):
    """Compile `kernel` for sm_`arch`: what is `aligned`, and no constant, is a multiple of 16."""
    named = (tuple(sorted(d.items())) for d in (signature, constants, options))
    return _compiled(arch, kernel, *named, frozenset(aligned))


@functools.cache  # tests ask for the same code; Triton's own cache reads it from files again
def _compiled(arch, kernel, *items):
    (signature, constants, options), aligned = map(dict, items[:3]), items[3]
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={a: "constexpr" if a in constants else signature[a] for a in names},
        constexprs={(names.index(a),): v for a, v in constants.items()},
        attrs={(names.index(a),): [["tt.divisibility", 16]] for a in aligned if a not in constants},
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


@functools.cache
def resources(cubin):
    """Return the registers, and the bytes of stack, of a thread."""
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
