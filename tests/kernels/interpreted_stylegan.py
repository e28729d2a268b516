"""StyleGAN's contract on the Triton kernels: values, and gradients by finite differences.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
from test_stylegan_contract import VECTORS, contract

from dgan_kernels import stylegan


def has_kernel(vector):
    return vector.options.get("act") != "selu" and "alpha" not in vector.options


@pytest.mark.parametrize("vector", [*filter(has_kernel, VECTORS)], ids=str)
def test_values_and_gradients(vector):
    function = getattr(stylegan, vector.function)
    assert max(contract.errors(vector, function, "cpu", impl="triton")) <= contract.TOLERANCE
