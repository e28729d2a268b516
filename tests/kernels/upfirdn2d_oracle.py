"""What tests of upfirdn2d share: cases, the float64 answer, and how close a kernel has to come."""

import torch
import torch.nn.functional as F

from dgan_kernels import bias_act, upfirdn2d

# Per dtype, relative to the largest value of the answer. Up to 36 products are summed in float32:
# 2⁻²⁴ for each rounding, which grow like their root and cancel in part: 2⁻²⁰. Storing rounds once:
# half a unit in the last place of a float16 is 2⁻¹¹; of a bfloat16 2⁻⁸, a whole one 2⁻⁷, for the
# interpreter cuts where a GPU rounds.
TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-11, torch.float32: 2**-20}

SMOOTH = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
ODD = torch.tensor([0.5, -0.2, 0.7])
LONG = torch.tensor([0.1, -0.3, 0.6, 0.9, 0.4, -0.2])
SQUARE = torch.outer(SMOOTH, SMOOTH)
TILTED = torch.tensor([[0.5, -0.1, 0.3], [0.2, 0.8, -0.6]])  # not an outer product

# filter, and the other arguments
CASES = {
    "blur": (SMOOTH, {"padding": [2, 1, 2, 1]}),
    "up": (SMOOTH, {"up": 2, "padding": [2, 1, 2, 1], "gain": 4.0}),
    "down": (SMOOTH, {"down": 2, "padding": [1, 1, 1, 1]}),
    "square blur": (SQUARE, {"padding": [2, 1, 2, 1]}),
    "square up": (SQUARE, {"up": 2, "padding": [2, 1, 2, 1], "gain": 4.0}),
    "square down": (SQUARE, {"down": 2, "padding": 1}),
    "up and down": (LONG, {"up": 3, "down": 2, "padding": [4, 3, 2, 2]}),
    "taps no multiple of up": (ODD, {"up": (2, 3), "down": (3, 1), "padding": [1, 2, 4, 0]}),
    "tilted": (TILTED, {"up": (3, 2), "down": (1, 2), "padding": [2, 3, 1, 2], "gain": -1.5}),
    "flipped": (ODD, {"padding": (2, 1), "flip_filter": True}),
    "tilted, flipped": (TILTED, {"up": 2, "padding": [1, 0, 2, 1], "flip_filter": True}),
    "cropped": (ODD, {"up": 2, "padding": [-1, -4, -2, 1]}),
    "cropped and padded far": (TILTED, {"down": (2, 3), "padding": [-2, 5, 8, -3]}),
    "more zeros than taps": (None, {"up": (4, 1), "padding": [3, 1, -1, 0]}),
}


def definition(x, filter, up=1, down=1, padding=0, flip_filter=False, gain=1.0):
    """Return the float64 answer in the words of the contract: zeros inserted, padded, filtered."""
    up_x, up_y = (up, up) if isinstance(up, int) else up
    down_x, down_y = (down, down) if isinstance(down, int) else down
    sides = [padding] * 4 if isinstance(padding, int) else list(padding)
    left, right, top, bottom = sides if len(sides) == 4 else [sides[i // 2] for i in range(4)]
    taps = torch.ones(1, 1) if filter is None else filter
    taps = taps.double()
    taps = torch.outer(taps, taps) if taps.ndim == 1 else taps
    taps = taps if flip_filter else taps.flip(0, 1)
    n, c, h, w = x.shape
    margin = 32  # of zeros, from which the padding takes what it needs
    wide = x.new_zeros(n, c, h * up_y + 2 * margin, w * up_x + 2 * margin, dtype=torch.float64)
    wide[:, :, margin:-margin, margin:-margin][:, :, ::up_y, ::up_x] = x.double()
    wide = wide[:, :, margin - top : margin + h * up_y + bottom]
    wide = wide[:, :, :, margin - left : margin + w * up_x + right]
    planes = wide.reshape(n * c, 1, *wide.shape[2:])
    y = F.conv2d(planes, taps[None, None].to(x.device)) * gain
    return y.view(n, c, *y.shape[2:])[:, :, ::down_y, ::down_x]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def channels_last(t):
    return t.to(memory_format=torch.channels_last)


def linear_orders(x, filter, backend="triton", **options):
    """Return y; the gradient that a random dy sends to x; and what a random v then sends to dy."""
    x = x.detach().requires_grad_()
    y = upfirdn2d(x, filter, backend=backend, **options)
    dy = draw(*y.shape, seed=1).to(y).requires_grad_()
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    v = draw(*x.shape, seed=2).to(x)
    (d_dy,) = torch.autograd.grad(dx, dy, v)
    return {"y": y.detach(), "dx": dx.detach(), "d_dy": d_dy}


def linear_expected(x, filter, **options):
    """Return the same by the definition in float64, of dy and v as x's dtype holds them."""
    dtype = x.dtype
    x = x.detach().double().requires_grad_()
    y = definition(x, filter, **options)
    (dx,) = torch.autograd.grad(y, x, draw(*y.shape, seed=1).to(dtype).to(y))
    v = draw(*x.shape, seed=2).to(dtype).to(x)
    return {"y": y.detach(), "dx": dx, "d_dy": definition(v, filter, **options)}


def fused_orders(x, bias, filter, layer, seed=1):
    """Return every derivative to the second order of ``layer(x, bias)``."""
    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    y = layer(x, bias)
    dy = draw(*y.shape, seed=seed).to(y).requires_grad_()
    dx, db = torch.autograd.grad(y, (x, bias), dy, create_graph=True)
    v = draw(*x.shape, seed=seed + 1).to(x)
    seconds = torch.autograd.grad(dx, (dy, x, bias), v, allow_unused=True)
    results = dict(zip(["y", "dx", "db", "d_dy", "d_x", "d_b"], (y, dx, db, *seconds)))
    return {k: torch.zeros(()) if t is None else t.detach() for k, t in results.items()}


def composed(filter, epilogue, **options):
    """Return ``layer(x, bias)`` in float64: the definition, then bias_act's reference."""
    return lambda x, bias: bias_act(
        definition(x, filter, **options), bias, backend="reference", **epilogue
    )


def assert_close(got, want, dtype, roundings=1):
    """Compare, where ``roundings`` results were stored on the way to each result."""
    for name, answer in want.items():
        value = got[name].to(answer)
        assert value.shape == answer.shape or not answer.any(), name
        if answer.numel():
            # A sum's error grows with its terms' size: allow root growth over a bias's gradient.
            terms = got["y"].numel() // got["y"].shape[1] if name in ("db", "d_b") else 1
            scale = max(answer.abs().max().item(), 1.0) * roundings * terms**0.5
            error = (value - answer).abs().max().item()
            assert error <= TOLERANCE[dtype] * scale, f"{name}: {error:.2e} at scale {scale:.1f}"
