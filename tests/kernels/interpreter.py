"""Whether Triton's interpreter runs here."""

import numpy
import pytest


def need_interpreter():
    """Skip the module that calls this, with the reason, where kernels cannot be interpreted."""
    triton = pytest.importorskip("triton", reason="triton is not installed: nothing to interpret")
    if _version(triton) < (3, 7) and _version(numpy) >= (2, 4):
        pytest.skip(
            "the interpreter of Triton before 3.7 takes the bounds of a loop from an array, as "
            "NumPy does not allow since 2.4: pip install 'numpy<2.4'", allow_module_level=True,
        )  # fmt: skip


def _version(module):
    return tuple(int(part) for part in module.__version__.split(".")[:2])
