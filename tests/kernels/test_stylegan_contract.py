"""`dgan_kernels.stylegan` where StyleGAN2's and 3's bias_act and upfirdn2d stood.

`benchmarks/kernels/stylegan.py` has the contract in NumPy and float64, which is compared here with
what comes out by hand; its vectors are compared with dgan_kernels, gradients too. In Triton that is
`interpreted_stylegan.py`. (`test_upfirdn2d_reference.py` has more by hand.)
"""

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dgan_kernels import stylegan

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "kernels"))
import stylegan as contract

VECTORS = list(contract.vectors())


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_values_and_gradients(vector):
    function = getattr(stylegan, vector.function)
    assert max(contract.errors(vector, function, "cpu")) <= contract.TOLERANCE
    assert max(contract.errors(vector, function, "cpu", impl="ref")) <= contract.TOLERANCE


def test_a_difference_is_seen():
    wrong = {
        "bias_act": lambda x, b=None, **o: stylegan.bias_act(x, b, **o) + 1e-3,
        # Right in value: the gradient alone is another.
        "upfirdn2d": lambda x, f, **o: stylegan.upfirdn2d((2 * x - x.detach()), f, **o),
    }
    for name, function in wrong.items():
        vector = next(v for v in VECTORS if v.function == name)
        assert max(contract.errors(vector, function, "cpu")) > contract.TOLERANCE


@pytest.mark.parametrize("options", [{"act": "selu"}, {"act": "lrelu", "alpha": 0.05, "clamp": 2}])
def test_what_has_no_kernel_is_differentiated_twice(options):
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda *t: stylegan.bias_act(*t, **options), (x, b))


def test_the_signatures():
    """Positions, too: published code passes some of these so."""
    published = {
        "bias_act": "x b dim act alpha gain clamp impl",
        "upfirdn2d": "x f up down padding flip_filter gain impl",
        "filter2d": "x f padding flip_filter gain impl",
        "upsample2d": "x f up padding flip_filter gain impl",
        "downsample2d": "x f down padding flip_filter gain impl",
        "setup_filter": "f device normalize flip_filter gain separable",
    }
    for name, arguments in published.items():
        assert list(inspect.signature(getattr(stylegan, name)).parameters) == arguments.split()


def test_what_is_refused():
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"act='leaky_relu': .*accepted: linear, relu, lrelu"):
        stylegan.bias_act(x, act="leaky_relu")
    with pytest.raises(ValueError, match=r"impl='cpu': .*accepted: cuda, ref, triton"):
        stylegan.upfirdn2d(x[None, None], None, impl="cpu")
    with pytest.raises(ValueError, match=r"act='selu', alpha=0.2 has no kernel"):
        stylegan.bias_act(x, act="selu", impl="triton")
    with pytest.raises(ValueError, match=r"f has shape \(1, 1, 2\)"):
        stylegan.setup_filter([[[1, 2]]])


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"act": "lrelu"}, [-0.4 * 2**0.5, 0.0, 3 * 2**0.5]),
        ({"act": "lrelu", "gain": 1.0}, [-0.4, 0.0, 3.0]),
        ({"act": "lrelu", "gain": 1.0, "alpha": 0.5}, [-1.0, 0.0, 3.0]),
        ({"act": "relu"}, [0.0, 0.0, 3 * 2**0.5]),
        ({"act": "linear"}, [-2.0, 0.0, 3.0]),
        ({"act": "lrelu", "clamp": 2.0}, [-0.4 * 2**0.5, 0.0, 2.0]),  # after the gain
        ({"act": "linear", "gain": 2.0, "clamp": 5.0}, [-4.0, 0.0, 5.0]),
    ],
)
def test_the_definition_of_bias_act_by_hand(options, want):
    x, b = np.array([[-3.0, 2.0, 4.0]]), np.array([1.0, -2.0, -1.0])
    np.testing.assert_allclose(contract.bias_act(x, b, **options)[0], want, rtol=1e-6)


IMAGE = np.array([[1.0, 2.0], [3.0, 4.0]])[None, None]
ASYMMETRIC = np.array([[1, 10], [100, 1000]])
BY_HAND = {
    "convolution": ({"f": ASYMMETRIC}, [[1 * 4 + 10 * 3 + 100 * 2 + 1000 * 1]]),
    "correlation": ({"f": ASYMMETRIC, "flip_filter": True}, [[1 + 20 + 300 + 4000]]),
    "zeros come after": ({"f": None, "up": (2, 1)}, [[1, 0, 2, 0], [3, 0, 4, 0]]),
    "the first is kept": ({"f": None, "down": (1, 2)}, [[1, 2]]),
    "left, right, top, bottom": (
        {"f": None, "padding": [1, 0, 0, 2]}, [[0, 1, 2], [0, 3, 4], [0, 0, 0], [0, 0, 0]]
    ),
    "x, y": ({"f": None, "padding": [1, 0]}, [[0, 1, 2, 0], [0, 3, 4, 0]]),
    "padded after the zeros": ({"f": None, "up": 2, "padding": [0, -1, 0, -1]},
                               [[1, 0, 2], [0, 0, 0], [3, 0, 4]]),
    "two axes of [1, 1], gain 4": ({"f": np.array([1, 1]), "gain": 4}, [[40]]),
}  # fmt: skip


@pytest.mark.parametrize(("options", "want"), BY_HAND.values(), ids=BY_HAND)
def test_the_definition_of_upfirdn2d_by_hand(options, want):
    assert np.array_equal(contract.upfirdn2d(IMAGE, **options)[0, 0], want)


@pytest.mark.parametrize("setup", [contract.setup_filter, stylegan.setup_filter])
def test_setup_filter(setup):
    assert setup(None).tolist() == [[1.0]]
    assert setup([1, 3], gain=4).tolist() == [[0.25, 0.75], [0.75, 2.25]]
    assert setup([1] * 8, gain=4).tolist() == [0.25] * 8  # the root for each axis
    assert setup([[1, 2]], normalize=False, flip_filter=True).tolist() == [[2.0, 1.0]]
