"""modulated_conv2d against its definition: weights for each sample, built one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from upfirdn2d_oracle import SMOOTH, TILTED, definition, draw

from dgan_kernels import modulated_conv2d

NAMES = ("x", "weight", "styles", "noise")


def defined(
    x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None,
    demodulate=True, flip_weight=True,
):  # fmt: skip
    """Return the result of Karras et al. 2020, equations 1 to 3, sample by sample."""
    columns, rows = 1, 1
    if resample_filter is not None:
        columns, rows = resample_filter.shape[-1], resample_filter.shape[0]
    sides = [padding] * 4
    if up > 1:
        more = (
            (columns + up - 1) // 2,
            (columns - up) // 2,
            (rows + up - 1) // 2,
            (rows - up) // 2,
        )
        sides = [s + m for s, m in zip(sides, more)]
    if down > 1:
        more = (
            (columns - down + 1) // 2, (columns - down) // 2,
            (rows - down + 1) // 2, (rows - down) // 2,
        )  # fmt: skip
        sides = [s + m for s, m in zip(sides, more)]
    first = resample_filter if up > 1 else None
    x = definition(x, first, up=up, padding=sides, gain=up**2)
    results = []
    for image, style in zip(x, styles):
        w = weight * style[None, :, None, None]  # equation 1
        if demodulate:
            w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()  # equation 3
        results.append(F.conv2d(image[None], w if flip_weight else w.flip((2, 3))))
    y = torch.cat(results)
    if down > 1:
        y = definition(y, resample_filter, down=down)
    return y if noise is None else y + noise


CASES = {
    "plain": {"padding": 1},
    "filter not used": {"padding": 1, "resample_filter": SMOOTH},
    "no padding": {},
    "image": {"demodulate": False},
    "convolution": {"padding": 1, "flip_weight": False},
    "up": {"up": 2, "padding": 1, "resample_filter": SMOOTH},
    "up by 3, tilted": {"up": 3, "padding": 2, "resample_filter": TILTED},
    "down": {"down": 2, "padding": 1, "resample_filter": SMOOTH},
    "up and down": {"up": 2, "down": 2, "padding": 1, "resample_filter": SMOOTH},
    "up, no filter": {"up": 2, "padding": 1},
}


def arguments(size=3, rows=3):
    x, weight = draw(2, 3, 5, 6), draw(4, 3, rows, size, seed=1)
    styles = 1 + 0.5 * draw(2, 3, seed=2)
    return [t.double().requires_grad_() for t in (x, weight, styles)]


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("size", [(3, 3), (1, 1), (3, 2)])
def test_is_the_definition_to_first_order(options, size):
    tensors = arguments(*size)
    got, want = modulated_conv2d(*tensors, **options), defined(*tensors, **options)
    torch.testing.assert_close(got, want)
    noise = draw(2, 1, *want.shape[2:], seed=3).double()
    torch.testing.assert_close(modulated_conv2d(*tensors, noise=noise, **options), want + noise)
    dy = torch.randn_like(want)
    pairs = zip(torch.autograd.grad(got, tensors, dy), torch.autograd.grad(want, tensors, dy))
    for name, (a, b) in zip(NAMES, pairs):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["plain", "up", "down", "image"])
def test_gradcheck_to_second_order_and_forward_mode(name):
    options = CASES[name] | {"padding": 1}
    x, weight, styles = draw(2, 2, 2, 2), draw(2, 2, 3, 2, seed=1), 1 + 0.3 * draw(2, 2, seed=2)
    noise = draw(2, 1, *modulated_conv2d(x, weight, styles, **options).shape[2:])
    tensors = [t.double().requires_grad_() for t in (x, weight, styles, noise)]
    f = lambda x, w, s, n: modulated_conv2d(x, w, s, noise=n, **options)  # noqa: E731
    assert gradcheck(f, tensors, check_forward_ad=True)
    assert gradgradcheck(f, tensors, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["plain", "up", "image"])
@pytest.mark.parametrize("channels", [None, 1, 4], ids=["no noise", "noise", "noise of channels"])
def test_epilogue(name, channels):
    options, tensors, bias = CASES[name] | {"padding": 1}, arguments(), draw(4, seed=4).double()
    leaves = [*tensors, bias.requires_grad_()]
    want = defined(*tensors, **options)
    noise = None if channels is None else draw(1, channels, *want.shape[2:], seed=3).double()
    if noise is not None:
        leaves.append(noise.requires_grad_())
        want = want + noise
    want = (2**0.5 * F.leaky_relu(want + bias.view(1, -1, 1, 1), 0.2)).clamp(-1.5, 1.5)
    got = modulated_conv2d(
        *tensors, noise=noise, bias=bias, act="leaky_relu", gain=2**0.5, clamp=1.5, **options
    )
    torch.testing.assert_close(got, want)
    dy = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, leaves, dy), torch.autograd.grad(want, leaves, dy)):
        torch.testing.assert_close(a, b)


def test_an_image_without_epilogue_is_the_convolution():
    y = modulated_conv2d(*arguments(), padding=1, demodulate=False)
    assert y.grad_fn.name() == "ConvolutionBackward0"


def test_path_length_penalty():
    tensors = arguments()
    norms = []
    for layer in (modulated_conv2d, defined):
        y = layer(*tensors, padding=1)
        direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        (g,) = torch.autograd.grad((y * direction).sum(), tensors[2], create_graph=True)
        norms.append(torch.autograd.grad(g.square().sum(), tensors))
    for name, a, b in zip(NAMES, *norms):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}")


def test_builds_no_weights_for_each_sample():
    # 64 samples' weights would be 64 times the weight; the largest tensor is one of activations.
    sizes = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    x, weight, styles = draw(64, 16, 2, 2), draw(16, 16, 3, 3), draw(64, 16)
    with Record():
        modulated_conv2d(x, weight, styles, padding=1)
    assert max(sizes) == x.numel() < 64 * weight.numel()


def test_float16_does_not_overflow():
    x, weight, styles = draw(2, 8, 5, 5), 30 * draw(4, 8, 3, 3, seed=1), 900 * draw(2, 8, seed=2)
    want = defined(x.double(), weight.double(), styles.double(), padding=1)
    got = modulated_conv2d(x.half(), weight, styles, padding=1)
    assert got.dtype == torch.float16
    # Activations, weights and styles are each rounded by at most 2⁻¹¹, 72 terms of either sign.
    assert (got.double() - want).abs().max() < 2**-8 * want.abs().max()


def test_styles_and_weights_may_be_wider():
    for dtype in (torch.bfloat16, torch.float32):
        x, weight, styles = (t.detach().float() for t in arguments())
        y = modulated_conv2d(x.to(dtype), weight, styles, padding=1, noise=draw(1, 1, 5, 6))
        assert y.dtype == dtype


X, W, S = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3), torch.zeros(2, 3)
ERRORS = {
    "x": ((X[0], W, S), {}, "x has shape (3, 4, 4); accepted: [N, C, H, W]"),
    "weight": ((X, W[:, :2], S), {}, "weight has shape (5, 2, 3, 3); accepted: [O, 3, rows, col"),
    "styles": ((X, W, S[:1]), {}, "styles has shape (1, 3); accepted: [2, 3], one for each samp"),
    "noise": ((X, W, S), {"noise": S}, "noise has shape (2, 3); accepted: [2 or 1, 1 or 5, 2, 2]"),
    "bias": ((X, W, S), {"bias": S[0]}, "bias has shape (3,); accepted: [5], one for each channel"),
    "act": ((X, W, S), {"act": "rely"}, "act='rely': did you mean 'relu'? accepted: linear, relu"),
    "up": ((X, W, S), {"up": 0}, "up=0; accepted: an integer of at least 1"),
    "padding": ((X, W, S), {"padding": (1, 2, 3)}, "padding=(1, 2, 3); accepted: an integer"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "options", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_argument_value_and_what_is_accepted(args, options, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        modulated_conv2d(*args, **options)
    assert str(raised.value).startswith(message)
