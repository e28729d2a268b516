"""bias_act and upfirdn2d where StyleGAN2's and 3's of these names stood: the published contract.

`stylegan_bias_act` and `setup_filter` are what a user of StyleGAN would write to go over to
dgan_kernels. They are compared with the contract in NumPy and float64, pixel by pixel, which in
turn is compared with what comes out by hand. (`test_upfirdn2d_reference.py` has more by hand.)
"""

import math

import numpy as np
import pytest
import torch

from dgan_kernels import bias_act, downsample2d, filter2d, upfirdn2d, upsample2d

# The contract's names, what they are here, and the gain that is taken where none is given.
ACTIVATIONS = {
    "linear": ("linear", 1.0),
    "relu": ("relu", math.sqrt(2)),
    "lrelu": ("leaky_relu", math.sqrt(2)),
    "tanh": ("tanh", 1.0),
    "sigmoid": ("sigmoid", 1.0),
    "elu": ("elu", 1.0),
    "softplus": ("softplus", 1.0),
    "swish": ("silu", math.sqrt(2)),
}


def stylegan_bias_act(x, b=None, dim=1, act="linear", gain=None, clamp=None):
    """Without ``alpha``, which is 0.2 here as it is there by default, and without selu."""
    name, default = ACTIVATIONS[act]
    clamp = None if clamp is None or clamp < 0 else clamp
    return bias_act(x, b, act=name, gain=default if gain is None else gain, clamp=clamp, dim=dim)


def setup_filter(f, normalize=True, flip_filter=False, gain=1, separable=None):
    """Return the filter as upfirdn2d takes it; a number is one tap, eight taps stay one axis."""
    f = torch.as_tensor([1.0] if f is None else f, dtype=torch.float32)
    f = f[None] if f.ndim == 0 else f
    separable = f.ndim == 1 and f.numel() >= 8 if separable is None else separable
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    f = f / f.sum() if normalize else f
    f = f.flip(list(range(f.ndim))) if flip_filter else f
    return f * gain ** (f.ndim / 2)


def defined_bias_act(x, b, dim, act, gain, clamp):
    """Return clamp(gain · act(x + b)) in float64."""
    x = x.astype(np.float64)
    if b is not None:
        x = x + b.astype(np.float64).reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    y = {
        "linear": lambda u: u,
        "relu": lambda u: np.maximum(u, 0),
        "lrelu": lambda u: np.where(u >= 0, u, 0.2 * u),
        "tanh": np.tanh,
        "sigmoid": lambda u: 1 / (1 + np.exp(-u)),
        "elu": lambda u: np.where(u >= 0, u, np.expm1(u)),
        "softplus": lambda u: np.log1p(np.exp(u)),
        "swish": lambda u: u / (1 + np.exp(-u)),
    }[act](x)
    y = y * (ACTIVATIONS[act][1] if gain is None else gain)
    return y if clamp is None or clamp < 0 else np.clip(y, -clamp, clamp)


def defined_upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1.0):
    """Return the result pixel by pixel: up - 1 zeros after each, padded, filtered, each down-th."""
    (up_x, up_y), (down_x, down_y) = (v if isinstance(v, tuple) else (v, v) for v in (up, down))
    padding = np.ravel(padding).tolist()
    padding = padding * 4 if len(padding) == 1 else padding
    padding = np.repeat(padding, 2).tolist() if len(padding) == 2 else padding
    left, right, top, bottom = padding
    f = np.ones((1, 1)) if f is None else np.asarray(f, np.float64)
    f = np.outer(f, f) if f.ndim == 1 else f
    rows, columns = f.shape
    _, _, height, width = x.shape

    def at(image, row, column):
        """The pixel of the upsampled, padded image; zero between pixels and outside."""
        row, column = row - top, column - left
        inside = 0 <= row < height * up_y and 0 <= column < width * up_x
        if not inside or row % up_y or column % up_x:
            return 0.0
        return float(image[row // up_y, column // up_x])

    result = []
    for image in x.reshape(-1, height, width):
        for r in range(0, height * up_y + top + bottom - rows + 1, down_y):
            for c in range(0, width * up_x + left + right - columns + 1, down_x):
                total = 0.0
                for i in range(rows):
                    for j in range(columns):
                        # A convolution: the first tap meets the last pixel.
                        tap = f[i, j] if flip_filter else f[rows - 1 - i, columns - 1 - j]
                        total += tap * at(image, r + i, c + j)
                result.append(gain * total)
    size_y = (height * up_y + top + bottom - rows) // down_y + 1
    return np.array(result).reshape(*x.shape[:2], size_y, -1)


X = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
B = torch.tensor([0.5, -1.0, 2.0])


@pytest.mark.parametrize("clamp", [None, -1, 0.7])
@pytest.mark.parametrize("gain", [None, 0.5])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act(act, gain, clamp):
    for x, b, dim in ((X, B, 1), (X, None, 1), (X.movedim(1, 3), B, 3)):
        got = stylegan_bias_act(x, b, dim, act, gain, clamp)
        want = defined_bias_act(x.numpy(), None if b is None else b.numpy(), dim, act, gain, clamp)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"act": "lrelu"}, [-0.4 * 2**0.5, 0.0, 3 * 2**0.5]),
        ({"act": "lrelu", "gain": 1.0}, [-0.4, 0.0, 3.0]),
        ({"act": "relu"}, [0.0, 0.0, 3 * 2**0.5]),
        ({"act": "linear"}, [-2.0, 0.0, 3.0]),
        ({"act": "lrelu", "clamp": 2.0}, [-0.4 * 2**0.5, 0.0, 2.0]),  # after the gain
        ({"act": "linear", "gain": 2.0, "clamp": 5.0}, [-4.0, 0.0, 5.0]),
    ],
)
def test_bias_act_by_hand(options, want):
    x, b = torch.tensor([[-3.0, 2.0, 4.0]]), torch.tensor([1.0, -2.0, -1.0])
    np.testing.assert_allclose(stylegan_bias_act(x, b, **options).numpy()[0], want, rtol=1e-6)


FILTERS = {
    "none": None,
    "the usual": setup_filter([1, 3, 3, 1]),
    "separable": setup_filter([1, 2, 3, 5], separable=True),
    "not symmetric": setup_filter([[1, 2, 0], [4, -1, 3]], normalize=False),
}
OPTIONS = {
    "nothing": {},
    "up": {"up": 2, "padding": [2, 1, 2, 1], "gain": 4},
    "down": {"down": 2, "padding": [1, 1, 1, 1]},
    "x before y": {"up": (3, 1), "down": (1, 2), "padding": (4, 2)},
    "four sides": {"padding": [3, 0, 1, 2], "gain": 0.3},
    "cropped": {"up": 2, "padding": [-1, 3, 2, -2]},
    "flipped": {"up": (1, 2), "padding": 3, "flip_filter": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("f", FILTERS.values(), ids=FILTERS)
def test_upfirdn2d(f, options):
    want = defined_upfirdn2d(X[:1, :2].numpy(), None if f is None else f.numpy(), **options)
    got = upfirdn2d(X[:1, :2], f, **options)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)


IMAGE = np.array([[1.0, 2.0], [3.0, 4.0]])[None, None]
ASYMMETRIC = [[1, 10], [100, 1000]]
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
    "two axes of [1, 1], gain 4": ({"f": [1, 1], "gain": 4}, [[40]]),
}  # fmt: skip


@pytest.mark.parametrize(("options", "want"), BY_HAND.values(), ids=BY_HAND)
def test_upfirdn2d_by_hand(options, want):
    options = dict(options)
    f = options.pop("f")
    assert np.array_equal(defined_upfirdn2d(IMAGE, f, **options)[0, 0], want)
    f = None if f is None else torch.tensor(f, dtype=torch.float32)
    got = upfirdn2d(torch.from_numpy(IMAGE).float(), f, **options)
    assert np.array_equal(got[0, 0].numpy(), want)


@pytest.mark.parametrize("f", [FILTERS["the usual"], FILTERS["not symmetric"]])
def test_what_is_built_on_it(f):
    # The contract's paddings: what centres the filter, beside the caller's.
    rows, columns = f.shape
    calls = [
        (filter2d, {}, 1, 1, [columns // 2, (columns - 1) // 2, rows // 2, (rows - 1) // 2], 1),
        (upsample2d, {"up": 2}, 2, 1,
         [(columns + 1) // 2, (columns - 2) // 2, (rows + 1) // 2, (rows - 2) // 2], 4),
        (downsample2d, {"down": 2}, 1, 2,
         [(columns - 1) // 2, (columns - 2) // 2, (rows - 1) // 2, (rows - 2) // 2], 1),
    ]  # fmt: skip
    x = X[:1, :1]
    for function, options, up, down, padding, gain in calls:
        for more in (0, 1):
            want = defined_upfirdn2d(
                x.numpy(), f.numpy(), up, down, [p + more for p in padding], gain=0.5 * gain
            )
            got = function(x, f, padding=more, gain=0.5, **options)
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)


def test_setup_filter():
    assert setup_filter(None).tolist() == [[1.0]]
    assert torch.equal(setup_filter([1, 3], gain=4), torch.tensor([[1.0, 3], [3, 9]]) / 4)
    assert setup_filter([1] * 8, gain=4).tolist() == [0.25] * 8  # the root for each axis
    assert setup_filter([[1, 2]], normalize=False, flip_filter=True).tolist() == [[2.0, 1.0]]
