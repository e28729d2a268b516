"""bias_act on the CPU: values, every derivative, errors; no Triton anywhere."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from dgan_kernels import bias_act
from dgan_kernels import reference_bias_act_scaled as scaled
from dgan_kernels.reference import ACTIVATIONS, bias_act_backward, bias_act_second

PYTORCH = {
    "linear": lambda u: u,
    "relu": F.relu,
    "leaky_relu": lambda u: F.leaky_relu(u, 0.2),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda u: F.gelu(u, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "elu": F.elu,
}


def draw(*shape, dtype=torch.float64):
    # Away from 0, where half of the activations have a corner that finite differences would cross.
    t = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)
    return torch.where(t.abs() < 0.05, t + 0.1, t).requires_grad_()


@pytest.mark.parametrize("act", PYTORCH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_is_the_plain_pytorch_layer(act, dtype):
    x, bias = draw(2, 3, 4, 5, dtype=dtype), draw(3, dtype=dtype)
    want = (PYTORCH[act](x + bias.view(1, 3, 1, 1)) * 1.5).clamp(-0.5, 0.5)
    assert torch.equal(bias_act(x, bias, act=act, gain=1.5, clamp=0.5), want)


def test_the_table_has_every_activation():
    assert list(ACTIVATIONS) == list(PYTORCH)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradcheck_to_second_order_and_forward_mode(act):
    x, bias = draw(2, 3, 2), torch.linspace(0.3, 0.5, 3, dtype=torch.float64, requires_grad=True)
    x = torch.where((x + bias.view(1, 3, 1)).abs() < 0.02, x + 0.1, x).detach().requires_grad_()
    f = lambda x, bias: bias_act(x, bias, act=act, gain=1.3, clamp=1.1)  # noqa: E731
    assert gradcheck(f, (x, bias), check_forward_ad=True)
    assert gradgradcheck(f, (x, bias), check_fwd_over_rev=True)


def draw_scaled(shape, dim=1, shared=False, dtype=torch.float64):
    """Return x, scale, noise and bias."""
    size = [1 if d == dim % len(shape) else n for d, n in enumerate(shape)]
    size[0] = 1 if shared else size[0]
    sizes = (shape, (shape[0], shape[dim]), size, (shape[dim],))
    return [draw(*s, dtype=dtype) for s in sizes]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dim", [1, 2, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_is_the_plain_pytorch_layer_with_scale_and_noise(dtype, dim, shared):
    x, scale, noise, bias = draw_scaled((2, 3, 4), dim, shared, dtype)
    along = (2, 3, 1) if dim == 1 else (2, 1, 4)
    u = x * scale.view(along) + noise + bias.view(1, *along[1:])
    want = (F.leaky_relu(u, 0.2) * 1.5).clamp(-0.5, 0.5)
    options = {"act": "leaky_relu", "gain": 1.5, "clamp": 0.5, "dim": dim}
    assert torch.equal(bias_act(x, bias, scale=scale, noise=noise, **options), want)


@pytest.mark.parametrize("act", ["leaky_relu", "silu"])
def test_gradcheck_with_scale_and_noise(act):
    tensors = [t.detach().requires_grad_() for t in draw_scaled((2, 3, 2))]
    f = lambda x, s, n, b: bias_act(x, b, scale=s, noise=n, act=act, gain=1.3, clamp=2.1)  # noqa: E731
    assert gradcheck(f, tensors, check_forward_ad=True)
    assert gradgradcheck(f, tensors, check_fwd_over_rev=True)


@pytest.mark.parametrize("without", [None, 1, 2, 3])
@pytest.mark.parametrize("act", ["linear", "leaky_relu", "silu"])
def test_closed_derivatives_with_scale_and_noise(act, without):
    layer = draw_scaled((2, 3, 4))
    layer = [layer[0], layer[1][:, :, None], layer[2], layer[3][None, :, None]]
    layer = [None if i == without else t for i, t in enumerate(layer)]
    present = [t for t in layer if t is not None]
    constants, dy = (act, 1.3, 2.1), draw(2, 3, 4).flip(0)
    directions = [None if t is None else t.detach().cos() for t in layer]
    y = scaled.forward(*layer, *constants)
    first = torch.autograd.grad(y, present, dy, create_graph=True)
    second = torch.autograd.grad(
        first, [dy, *present], [d for d in directions if d is not None], allow_unused=True
    )
    _, tangent = torch.func.jvp(
        lambda *ts: scaled.forward(*_fill(layer, ts), *constants),
        tuple(present),
        tuple(d for d in directions if d is not None),
    )
    torch.testing.assert_close(scaled.tangent(*directions, *layer, *constants), tangent)
    for closed, want in (
        (scaled.backward(dy, *layer, *constants), first),
        (scaled.second(*directions, dy, *layer, *constants), second),
    ):
        got = [t for t in closed if t.numel()]
        assert len(got) == len(want)
        for a, b in zip(got, want):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def _fill(layer, tensors):
    given = iter(tensors)
    return [None if t is None else next(given) for t in layer]


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_closed_derivatives_are_those_of_autograd(act):
    u = torch.linspace(-8, 8, 161, dtype=torch.float64)
    u = u[u != 0].requires_grad_()
    row = ACTIVATIONS[act]
    (first,) = torch.autograd.grad(row.value(u).sum() + 0 * u.sum(), u, create_graph=True)
    (second,) = torch.autograd.grad(first.sum() + 0 * u.square().sum(), u)
    torch.testing.assert_close(row.first(u), first)
    torch.testing.assert_close(torch.zeros_like(u) if row.second is None else row.second(u), second)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_closed_backward_and_double_backward(act):
    x, dy, v, bias = draw(4, 3, 6), draw(4, 3, 6) + 0, draw(4, 3, 6).flip(0), draw(3)
    constants = (act, 1.3, 1.1, 1)
    y = bias_act(x, bias, act=act, gain=1.3, clamp=1.1)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    terms = torch.autograd.grad(dx, (dy, x), v, allow_unused=True)
    wide = bias.view(1, 3, 1)
    torch.testing.assert_close(bias_act_backward(dy, x, wide, *constants), dx)
    for got, want in zip(bias_act_second(v, dy, x, wide, *constants), terms):
        torch.testing.assert_close(got, torch.zeros_like(x) if want is None else want)


def test_a_third_derivative_is_there():
    x = draw(5, 2)
    g = bias_act(x, act="silu").sum()
    for _ in range(3):
        (g,) = torch.autograd.grad(g.sum(), x, create_graph=True)
    u = x.detach().requires_grad_()
    (want,) = torch.autograd.grad(ACTIVATIONS["silu"].second(u).sum(), u)
    torch.testing.assert_close(g, want)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_dim(dim):
    x = draw(3, 4, 5)
    bias = draw(x.shape[dim])
    want = (x.movedim(dim, -1) + bias).movedim(-1, dim).tanh()
    torch.testing.assert_close(bias_act(x, bias, act="tanh", dim=dim), want)


def test_channels_last_stays():
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    y = bias_act(x, torch.zeros(8), act="leaky_relu", gain=2.0, clamp=1.0)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_shapes_without_memory():
    x, bias = torch.empty(2, 3, 4, 4, device="meta"), torch.empty(3, device="meta")
    assert bias_act(x, bias, act="silu").shape == x.shape
    assert bias_act(torch.zeros(0, 3), torch.zeros(3), act="silu").shape == (0, 3)


X, B = torch.zeros(2, 3, 4), torch.zeros(3)
S, N = torch.zeros(2, 3), torch.zeros(2, 1, 4)
ERRORS = {
    "unknown activation": ((X, B), {"act": "leakyrelu"}, "act='leakyrelu': did you mean 'leaky"),
    "no such activation": ((X, B), {"act": "?"}, "act='?': accepted: linear, relu, leaky_relu, s"),
    "bias of another size": ((X, torch.zeros(4)), {}, "bias has shape (4,); accepted: [3], the"),
    "bias of another rank": ((X, B[None]), {}, "bias has shape (1, 3); accepted: [3]"),
    "bias dtype": ((X, B.double()), {}, "bias has dtype torch.float64; accepted: torch.float32"),
    "bias device": ((X, B.to("meta")), {}, "bias is on meta; accepted: cpu"),
    "x dtype": ((X.int(), None), {}, "x has dtype torch.int32; accepted: torch.float16, torch.b"),
    "x rank": ((B, None), {}, "x has shape (3,); accepted: [N, C] or [N, C, *spatial]"),
    "dim": ((X, B), {"dim": 3}, "dim=3; accepted: -3 to 2"),
    "scale with dim 0": ((X, None), {"scale": S, "dim": 0}, "scale with dim=0; accepted: a dim"),
    "scale size": ((X, B), {"scale": B}, "scale has shape (3,); accepted: [2, 3], the sizes of d"),
    "scale dtype": ((X, B), {"scale": S.half()}, "scale has dtype torch.float16; accepted: torch"),
    "scale device": ((X, B), {"scale": S.to("meta")}, "scale is on meta; accepted: cpu"),
    "noise size": ((X, B), {"noise": X}, "noise has shape (2, 3, 4); accepted: [2 or 1, 1, 4], f"),
    "noise rank": ((X, B), {"noise": N[0]}, "noise has shape (1, 4); accepted: [2 or 1, 1, 4], f"),
    "noise dim": ((X, None), {"noise": N, "dim": 2}, "noise has shape (2, 1, 4); accepted: [2 or"),
    "noise dtype": ((X, B), {"noise": N.half()}, "noise has dtype torch.float16; accepted: torch"),
    "noise device": ((X, B), {"noise": N.to("meta")}, "noise is on meta; accepted: cpu"),
    "gain": ((X, B), {"gain": float("nan")}, "gain=nan; accepted: a finite number"),
    "clamp": ((X, B), {"clamp": -1.0}, "clamp=-1.0; accepted: None, or a number of at least 0"),
    "backend": ((X, B), {"backend": "cuda"}, "backend='cuda'; accepted: None, 'triton', 'ref"),
    "no kernel here": ((X, B), {"backend": "triton"}, "backend='triton': x is on cpu, and kernels"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "options", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_argument_value_and_what_is_accepted(args, options, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        bias_act(*args, **options)
    assert str(raised.value).startswith(message)


def test_imports_and_works_without_triton():
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, dgan_kernels\n"
        "y = dgan_kernels.bias_act(torch.ones(2, 3), torch.ones(3), act='relu')\n"
        "assert y.eq(2).all() and not [m for m in sys.modules if m.startswith('triton.')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Record(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def test_does_what_the_plain_layer_does_and_no_more():
    # Counting operators instead of seconds: a busy machine cannot make this one fail.
    x, bias = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    layers = (
        lambda: bias_act(x, bias, act="leaky_relu"),
        lambda: F.leaky_relu(x + bias.view(1, -1, 1, 1), 0.2),
    )
    calls = []
    for layer in layers:
        with Record() as record:
            torch.autograd.grad(layer().sum(), (x, bias))
        calls.append(record.calls)
    assert calls[0] == calls[1]


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_arguments_are_not_written_to(act):
    tensors = [t.detach() for t in draw_scaled((2, 3, 4))]
    before = [t.clone() for t in tensors]
    x, scale, noise, bias = tensors
    layers = (
        lambda: bias_act(x, act=act, gain=1.5, clamp=0.5),
        lambda: bias_act(x, bias, act=act, gain=1.5, clamp=0.5),
        lambda: bias_act(x, bias, scale=scale, noise=noise, act=act, gain=1.5, clamp=0.5),
    )
    values = [layer() for layer in layers]
    with torch.no_grad():
        for layer, value in zip(layers, values):
            torch.testing.assert_close(layer(), value, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))
