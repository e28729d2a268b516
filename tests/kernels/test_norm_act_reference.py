"""norm_act on the CPU: values, every derivative, errors; no Triton anywhere."""

import math

import pytest
import torch
import torch.nn.functional as F
from norm_act_oracle import AFFINE, CASES, channel_dim, inputs
from torch.autograd import gradcheck, gradgradcheck

from dgan_kernels import norm_act
from dgan_kernels import reference_norm_act as reference
from dgan_kernels.reference import ACTIVATIONS

DOUBLE = torch.float64


def affine_of(x, weight, bias, dim):
    """Return x · weight + bias, each [C] or [N, C]."""
    shape = [1] * x.ndim
    shape[dim] = -1
    for vector, combine in ((weight, torch.mul), (bias, torch.add)):
        if vector is not None:
            shape[0] = len(vector) if vector.ndim == 2 else 1
            x = combine(x, vector.view(shape))
    return x


def by_pytorch(x, options, eps):
    """Return the normalised x, by the functions of torch.nn."""
    norm = options["norm"]
    if norm == "instance":
        flat = x.flatten(2) if x.ndim > 2 else x[..., None]
        return F.instance_norm(flat, eps=eps).view(x.shape)
    if norm == "group":
        return F.group_norm(x, options["groups"], eps=eps)
    if norm == "batch":
        return F.batch_norm(x, None, None, training=True, eps=eps)
    dim = channel_dim(x.shape, options)
    last = x.movedim(dim, -1)
    plain = F.layer_norm if norm == "layer" else F.rms_norm
    return plain(last, last.shape[-1:], eps=eps).movedim(-1, dim)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("affine", AFFINE)
def test_is_the_plain_pytorch_layer(case, affine):
    shape, options = case
    x, weight, bias, *_ = inputs(shape, options, affine, DOUBLE)
    got = norm_act(x, weight, bias, act="leaky_relu", eps=1e-3, **options)
    plain = affine_of(by_pytorch(x, options, 1e-3), weight, bias, channel_dim(shape, options))
    torch.testing.assert_close(got, F.leaky_relu(plain, 0.2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["instance", "layer", "batch"])
def test_low_precision_computes_in_float32(case, dtype):
    shape, options = CASES[case]
    x, weight, bias, *_ = inputs(shape, options, dtype=dtype)
    got = norm_act(x, weight, bias, act="silu", **options)
    want = norm_act(x.double(), weight.double(), bias.double(), act="silu", **options)
    assert got.dtype == dtype
    # One rounding to dtype, after float32 arithmetic that is far finer where dtype has 16 bits.
    torch.testing.assert_close(got, want.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


SMOOTH = ["linear", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid", "softplus"]


@pytest.mark.parametrize("act", SMOOTH)
@pytest.mark.parametrize("affine", ["shared", "per_sample"])
def test_gradcheck_to_second_order_and_forward_mode(act, affine):
    options = {"norm": "group", "groups": 2}
    check_derivatives((2, 4, 3), options, affine, act)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_gradcheck_of_every_norm(case):
    shape, options = case
    small = tuple(min(s, 4) for s in shape)
    options = options | ({"groups": 2} if "groups" in options else {})
    check_derivatives(small, options, "shared", "silu")


def check_derivatives(shape, options, affine, act):
    tensors = inputs(shape, options, affine, DOUBLE)[:3]
    leaves = [t.requires_grad_() for t in tensors]
    f = lambda *t: norm_act(*t, act=act, eps=0.1, **options)  # noqa: E731
    # fast_mode compares one random projection, which a wrong term changes as surely as every entry.
    assert gradcheck(f, leaves, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(f, leaves, check_fwd_over_rev=True, fast_mode=True)


VIEWS = {
    "group": ((3, 2, 3, 4), (3, 2, 3, 1)),
    "channels": ((3, 2, 5, 4), (3, 1, 5, 1)),
    "batch": ((3, 1, 5, 4), (3, 1, 5, 1)),
}


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("over", VIEWS)
def test_closed_derivatives(over, centred, act):
    # What the kernels compute, written out, against autograd on the forward pass.
    shape, affine = VIEWS[over]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(s, generator=generator, dtype=DOUBLE)  # noqa: E731
    x, dy, weight, bias = (draw(*s).requires_grad_() for s in (shape, shape, affine, affine))
    v, vw, vb = draw(*shape), draw(*affine), draw(*affine)
    constants = (over, centred, act, 0.1, None)
    rest = (x, None, weight, bias, *constants)
    y = reference.norm_act(x, weight, bias, *constants)
    first = torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True)
    second = torch.autograd.grad(first, (dy, x, weight, bias), (v, vw, vb), allow_unused=True)
    second = [torch.zeros(()) if t is None else t for t in second]

    shift = torch.stack([vw, vb]).squeeze(-1)
    dx, sums = reference.norm_act_backward(dy, *rest)
    ddy, d_x, more = reference.norm_act_second(v, shift, dy, *rest)
    halves = [t.unsqueeze(-1) for t in (*sums, *more)]
    for got, want in zip((dx, *halves[:2], ddy, d_x, *halves[2:]), (*first, *second)):
        torch.testing.assert_close(got, want.expand(got.shape).to(got))
    torch.testing.assert_close(reference.norm_act_jvp(v, shift, *rest), ddy)


def test_a_third_derivative_is_there():
    x = torch.randn(3, 5, dtype=DOUBLE, requires_grad=True)

    def curvature(x):
        g = norm_act(x, norm="layer", act="silu", eps=0.1).square().sum()
        for _ in range(2):
            (g,) = torch.autograd.grad(g.sum(), x, create_graph=True)
        return g

    assert gradcheck(curvature, (x,))


@pytest.mark.parametrize("norm", ["instance", "layer", "batch"])
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_dim(norm, dim):
    x = torch.randn(3, 4, 5, dtype=DOUBLE)
    weight = torch.randn(x.shape[dim], dtype=DOUBLE)
    moved = x.movedim(dim, 1)
    want = norm_act(moved, weight, norm=norm, dim=1, act="tanh").movedim(1, dim)
    torch.testing.assert_close(norm_act(x, weight, norm=norm, dim=dim, act="tanh"), want)


def test_more_channels_than_a_chip_holds():
    x, weight = torch.randn(2, 3, 8200, dtype=DOUBLE), torch.randn(2, 8200, dtype=DOUBLE)
    want = F.layer_norm(x, (8200,)) * weight[:, None]
    torch.testing.assert_close(norm_act(x, weight, norm="layer"), want)


def test_modulate_of_a_transformer_block():
    # DiT (Peebles and Xie 2023): modulate(x, shift, scale) = x·(1 + scale) + shift, each [N, C].
    x, scale, shift = torch.randn(2, 5, 8), torch.randn(2, 8), torch.randn(2, 8)
    want = F.layer_norm(x, (8,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(norm_act(x, 1 + scale, shift, norm="layer", eps=1e-6), want)


def test_shapes_without_memory():
    x, weight = torch.empty(2, 3, 4, 4, device="meta"), torch.empty(3, device="meta")
    for norm in ("instance", "pixel", "batch"):
        assert norm_act(x, weight, norm=norm, act="silu").shape == x.shape
        assert norm_act(torch.zeros(0, 3), torch.zeros(3), norm=norm).shape == (0, 3)


X, W = torch.zeros(2, 3, 4), torch.zeros(3)
INSTANCE = {"norm": "instance"}
ERRORS = {
    "norm": ((X,), {"norm": "instnace"}, "norm='instnace': did you mean 'instance'? accepted: lay"),
    "activation": ((X,), {"norm": "layer", "act": "swish"}, "act='swish': "),
    "groups missing": ((X,), {"norm": "group"}, "groups=None; accepted for norm='group': a diviso"),
    "groups": ((X,), {"norm": "group", "groups": 2}, "groups=2; accepted for norm='group': a divi"),
    "groups elsewhere": ((X,), {"norm": "layer", "groups": 2}, "groups=2 with norm='layer'; accep"),
    "weight size": ((X, torch.zeros(4)), INSTANCE, "weight has shape (4,); accepted: [3] or [2, 3"),
    "bias size": ((X, W, torch.zeros(3, 3)), INSTANCE, "bias has shape (3, 3); accepted: [3] or ["),
    "weight for layer": ((X, W), {"norm": "layer"}, "weight has shape (3,); accepted: [4] or [2,"),
    "dim 0": ((X, torch.zeros(2, 2)), {"norm": "layer", "dim": 0}, "weight has shape (2, 2); acce"),
    "weight dtype": ((X, W.double()), INSTANCE, "weight has dtype torch.float64; accepted: torch."),
    "weight per sample dtype": ((X, torch.zeros(2, 3).half()), INSTANCE, "weight has dtype torch."),
    "bias device": ((X, W, W.to("meta")), INSTANCE, "bias is on meta; accepted: cpu"),
    "x dtype": ((X.int(),), INSTANCE, "x has dtype torch.int32; accepted: torch.float16, torch.b"),
    "x rank": ((W,), INSTANCE, "x has shape (3,); accepted: [N, C] or [N, C, *spatial]"),
    "dim": ((X, W), {"norm": "layer", "dim": 3}, "dim=3; accepted: -3 to 2"),
    "eps": ((X,), {"norm": "layer", "eps": -1.0}, "eps=-1.0; accepted: a finite number of at leas"),
    "ranks": ((X,), INSTANCE | {"process_group": 1}, "process_group with norm='instance'; accepte"),
    "backend": ((X,), INSTANCE | {"backend": "cuda"}, "backend='cuda'; accepted: None, 'triton', "),
    "no kernel here": ((X,), INSTANCE | {"backend": "triton"}, "backend='triton': x is on cpu, an"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "options", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_argument_value_and_what_is_accepted(args, options, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        norm_act(*args, **options)
    assert str(raised.value).startswith(message)


def by_hand(x, weight, bias, norm):
    """Group norm with 2 groups, and the others, of x [N, C, L]."""
    view = x.unflatten(1, (2, -1)) if norm == "group" else x
    dims = {"group": (2, 3), "instance": (2,), "layer": (1,), "batch": (0, 2)}[norm]
    centred = view - view.mean(dims, keepdim=True)
    normal = centred * (centred.square().mean(dims, keepdim=True) + 0.1).rsqrt()
    z = normal.reshape(x.shape) * (1 if weight is None else weight[:, None])
    return torch.nn.functional.silu(z if bias is None else z + bias[:, None])


@pytest.mark.parametrize("affine", [(), (0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("norm", ["group", "instance", "layer", "batch"])
def test_three_orders_by_pytorchs_own_norms(norm, affine):
    x = torch.randn(3, 4, 5, dtype=DOUBLE, requires_grad=True)
    vectors = [torch.randn(4, dtype=DOUBLE, requires_grad=i in affine) for i in range(2)]
    given = [v if i in affine else None for i, v in enumerate(vectors)]
    groups = 2 if norm == "group" else None
    ours = norm_act(x, *given, norm=norm, groups=groups, act="silu", eps=0.1, dim=1)
    inputs = [x, *(vectors[i] for i in affine)]

    def differentiated(y):
        gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return torch.cat([g.flatten() for g in gradients])

    want = by_hand(x, *given, norm)
    for order in range(4):
        torch.testing.assert_close(ours, want, msg=lambda m, o=order: f"order {o}: {m}")
        ours, want = differentiated(ours), differentiated(want)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("norm", ["group", "instance", "layer", "batch", "pixel"])
def test_a_penaltys_second_derivative_in_closed_form(norm, affine, last):
    # What a cotangent of dx alone sends on: the one case that is not left to autograd.
    options = {"norm": norm, "dim": 1} | ({"groups": 2} if norm == "group" else {})
    x, weight, bias, dy, v, *_ = inputs((3, 4, 5, 2), options, affine, DOUBLE)
    order = torch.channels_last if last else torch.contiguous_format
    leaves = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    dy.requires_grad_()

    def second(x, exact):
        # Differentiated further, the second derivative is PyTorch's of the formulas.
        y = norm_act(x, weight, bias, act="silu", eps=0.1, **options)
        (dx,) = torch.autograd.grad(y, leaves[0], dy, create_graph=True)
        return torch.autograd.grad(dx, (dy, *leaves), v, create_graph=exact, allow_unused=True)

    got = second(x.to(memory_format=order), exact=False)
    for a, b in zip(got, second(x, exact=True)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_in_a_penalty(act):
    x, weight, bias, dy, v, *_ = inputs((3, 4, 5, 2), {"norm": "group"}, "shared", DOUBLE)
    leaves = [t.requires_grad_() for t in (x, weight, bias, dy)]

    def gradients(y):
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        return dx, *torch.autograd.grad(dx, leaves, v, allow_unused=True, materialize_grads=True)

    ours = gradients(norm_act(x, weight, bias, norm="group", groups=2, act=act))
    by_torch = gradients(ACTIVATIONS[act].value(F.group_norm(x, 2, weight, bias)))
    for got, want in zip(ours, by_torch):
        torch.testing.assert_close(got, want)


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("of_dy", LAYOUTS, ids=str)
@pytest.mark.parametrize("of_x", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(3, 6, 5, 4), (1, 6, 1, 1)], ids=str)
@pytest.mark.parametrize("norm", ["group", "instance", "layer", "batch", "pixel", "rms"])
def test_a_gradient_arrives_in_any_layout(norm, shape, of_x, of_dy):
    """PyTorch's own backward kernels read it as x lies in memory, without a look.

    And of a single row, sums are no copies.
    """
    torch.manual_seed(0)
    options = {"norm": norm, "groups": 2 if norm == "group" else None, "dim": 1}
    if norm in ("batch", "instance") and math.prod(shape) == shape[1]:
        pytest.skip(f"PyTorch's {norm} norm refuses one value a channel")
    x, dy = torch.randn(2, *shape, dtype=DOUBLE).unbind()
    x, dy = x.to(memory_format=of_x), dy.to(memory_format=of_dy)
    weight, bias = torch.randn(2, 6, dtype=DOUBLE)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    got = torch.autograd.grad(norm_act(*leaves, **options), leaves, dy)
    plain = affine_of(by_pytorch(x, options, 1e-5), weight, bias, 1)
    for a, b in zip(got, torch.autograd.grad(plain, leaves, dy)):
        torch.testing.assert_close(a, b)
