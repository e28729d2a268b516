"""spectral_norm_power_iteration: values, derivatives, what happens to the vectors, errors."""

import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck
from torch.func import grad, jvp
from torch.utils._python_dispatch import TorchDispatchMode

from dgan_kernels import spectral_norm_power_iteration

SHAPES = [(4, 3, 3, 3), (5, 7), (4, 27), (5, 7), (1, 2), (17, 1), (4, 3, 3, 3)]


def draw(shapes=SHAPES, dtype=torch.float64, device="cpu"):
    """Return weights and unit vectors."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]
    vectors = [torch.randn(s[0], generator=generator, dtype=dtype) for s in shapes]
    return [w.to(device).requires_grad_() for w in weights], [
        (u / u.norm()).to(device) for u in vectors
    ]


def by_the_paper(w, u, iterations):
    """Algorithm 1 of Miyato et al. for one matrix: sigma, u, v."""
    w = w.detach().flatten(1)
    for _ in range(iterations):
        v = w.T @ u
        v = v / v.norm()
        u = w @ v
        u = u / u.norm()
    if not iterations:
        v = w.T @ u
        v = v / v.norm()
    return u @ w @ v, u, v


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_each_is_the_papers_algorithm(iterations):
    weights, vectors = draw()
    want = [by_the_paper(w, u, iterations) for w, u in zip(weights, vectors)]
    sigmas = spectral_norm_power_iteration(weights, vectors, iterations)
    grads = torch.autograd.grad(sum(sigmas), weights)
    for sigma, g, u, w, (s, u_after, v) in zip(sigmas, grads, vectors, weights, want):
        torch.testing.assert_close(sigma, s)
        torch.testing.assert_close(u, u_after)
        torch.testing.assert_close(g, torch.outer(u_after, v).view_as(w))


def test_converges_to_the_largest_singular_value():
    weights, vectors = draw()
    sigmas = spectral_norm_power_iteration(weights, vectors, 500)
    for sigma, w in zip(sigmas, weights):
        torch.testing.assert_close(sigma, torch.linalg.matrix_norm(w.flatten(1), 2))


def test_agrees_with_torchs_layer_by_layer():
    weights, vectors = draw([(4, 3, 3, 3), (4, 27)], torch.float32)
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.Linear(27, 4, bias=False)]
    for layer, w, u in zip(layers, weights, vectors):
        layer.weight.data.copy_(w)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.spectral_norm(layer)
        layer.weight_u.copy_(u)
    sigmas = spectral_norm_power_iteration(weights, vectors)
    for layer, w, u, sigma in zip(layers, weights, vectors, sigmas):
        layer(torch.zeros(1, 3, 3, 3) if w.ndim == 4 else torch.zeros(1, 27))
        torch.testing.assert_close(w / sigma, layer.weight)
        torch.testing.assert_close(u, layer.weight_u)
        (want,) = torch.autograd.grad(layer.weight.pow(3).sum(), layer.weight_orig)
        (got,) = torch.autograd.grad((w / sigma).pow(3).sum(), w, retain_graph=True)
        torch.testing.assert_close(got, want)


def test_derivatives_of_the_normalised_weight():
    (w, other), (u, other_u) = draw([(3, 4), (3, 4)])
    spectral_norm_power_iteration([w, other], [u, other_u], 3)

    def normalised(w):
        # At 0 iterations u is a constant and v is best for it, so that finite differences of
        # σ = ‖Wᵀu‖ agree; v's own change, of second order, is what the paper leaves out.
        return w / spectral_norm_power_iteration([w, other], [u, other_u], 0)[0]

    assert gradcheck(normalised, w, check_forward_ad=True)
    (g,) = torch.autograd.grad(normalised(w).pow(2).sum(), w, create_graph=True)
    _, _, v = by_the_paper(w, u, 0)
    fixed = lambda w: w / (u @ w @ v)  # noqa: E731
    (want,) = torch.autograd.grad(fixed(w).pow(2).sum(), w, create_graph=True)
    torch.testing.assert_close(g, want)
    (h,), (want,) = (torch.autograd.grad(t.pow(2).sum(), w) for t in (g, want))
    torch.testing.assert_close(h, want)


def test_inside_torch_func_and_the_penaltys_route():
    weights, vectors = draw([(3, 4), (3, 4)])
    spectral_norm_power_iteration(weights, vectors, 2)

    def penalty(ws, x):
        a, b = (w / s for w, s in zip(ws, spectral_norm_power_iteration(ws, vectors, 0)))
        D = lambda x: ((x @ a.T).tanh() * (x @ b.T)).sum()  # noqa: E731
        return grad(D)(x).square().sum()

    x = torch.randn(2, 4, dtype=torch.float64)
    got = grad(penalty)([w.detach() for w in weights], x)
    want = torch.autograd.grad(penalty(weights, x), weights)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)
    t = torch.ones(3, 4, dtype=torch.float64)
    tangent = jvp(lambda w: penalty([w, weights[1]], x), (weights[0],), (t,))[1]
    torch.testing.assert_close(tangent, (want[0] * t).sum())


def test_forward_mode_holds_the_vectors_constant():
    weights, vectors = draw([(3, 4), (3, 4)])
    tangents = [torch.randn_like(w) for w in weights]
    want = [by_the_paper(w, u, 1) for w, u in zip(weights, vectors)]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(w, t) for w, t in zip(weights, tangents)]
        sigmas = spectral_norm_power_iteration(duals, vectors)
        assert all(forward_ad.unpack_dual(u).tangent is None for u in vectors)
        for sigma, t, (_, u, v) in zip(sigmas, tangents, want):
            torch.testing.assert_close(forward_ad.unpack_dual(sigma).tangent, u @ t @ v)


def test_two_forward_passes_before_one_backward():
    # The vectors are overwritten in between: what autograd keeps must not be they.
    weights, vectors = draw()
    for iterations in (1, 0):
        first = spectral_norm_power_iteration(weights, vectors, iterations)
        second = spectral_norm_power_iteration(weights, vectors, 1)
        torch.autograd.grad(sum(first) + sum(second), weights)


def test_zero_and_nan_weights_leave_the_vector_usable():
    weights, vectors = draw([(3, 4), (3, 4), (3, 4)])
    start = [u.clone() for u in vectors]
    zero, nan, fine = (w.detach().clone() for w in weights)
    zero.zero_()
    nan[0, 0] = float("nan")
    sigmas = spectral_norm_power_iteration([zero, nan, fine], vectors, 2)
    assert sigmas[0] == 0
    assert sigmas[1].isnan()
    assert torch.equal(vectors[0], start[0])
    assert torch.equal(vectors[1], start[1])
    torch.testing.assert_close(sigmas[2], by_the_paper(fine, start[2], 2)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_iterate_in_float32(dtype):
    weights, vectors = draw(dtype=torch.float32)
    low = [w.detach().to(dtype).requires_grad_() for w in weights]
    want = [by_the_paper(w.float(), u, 1)[0] for w, u in zip(low, vectors)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sigmas = spectral_norm_power_iteration(low, vectors)
    for sigma, s in zip(sigmas, want):
        assert sigma.dtype == torch.float32
        torch.testing.assert_close(sigma, s)
    assert all(g.dtype == dtype for g in torch.autograd.grad(sum(sigmas), low))


def test_repeats_bit_for_bit_and_with_large_matrices_left_alone(monkeypatch):
    results = []
    for limit in (2**20, 2**20, 0):
        monkeypatch.setitem(spectral_norm_power_iteration.__globals__, "MAX_STACKED", limit)
        weights, vectors = draw()
        results.append(([*spectral_norm_power_iteration(weights, vectors, 2)], vectors))
    for a, b in zip(results[0][0] + results[0][1], results[1][0] + results[1][1]):
        assert torch.equal(a, b)
    for a, b in zip(results[0][0] + results[0][1], results[2][0] + results[2][1]):
        torch.testing.assert_close(a, b)


class Count(TorchDispatchMode):
    FREE = (
        "view", "unsqueeze", "transpose", "detach", "unbind", "squeeze", "expand", "promote_types"
    )  # fmt: skip
    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += func.overloadpacket.__name__ not in self.FREE
        return func(*args, **(kwargs or {}))


def test_layers_of_equal_shape_cost_the_operators_of_one():
    counts = []
    for layers in (2, 50):
        weights, vectors = draw([(4, 6)] * layers, torch.float32)
        with Count() as count:
            spectral_norm_power_iteration(weights, vectors)
        counts.append(count.total)
    assert counts[0] == counts[1] <= 16


def test_compiles():
    torch._dynamo.reset()
    weights, vectors = draw([(3, 4), (3, 4), (2, 5)])
    copies = [u.clone() for u in vectors]
    compiled = torch.compile(spectral_norm_power_iteration, backend="aot_eager", fullgraph=True)
    got, want = compiled(weights, vectors, 1), spectral_norm_power_iteration(weights, copies, 1)
    for a, b in zip([*got, *vectors], [*want, *copies]):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        torch.autograd.grad(sum(got), weights), torch.autograd.grad(sum(want), weights)
    ):
        torch.testing.assert_close(a, b)


def test_without_memory_and_without_layers():
    w, u = torch.empty(3, 4, device="meta"), torch.empty(3, device="meta")
    assert spectral_norm_power_iteration([w], [u])[0].shape == ()
    assert spectral_norm_power_iteration([], []) == []


W, U = torch.zeros(3, 4), torch.zeros(3)
ERRORS = {
    "count": (([W], [U, U]), "vectors has 2 tensors; accepted: 1, one for each weight"),
    "iterations": (([W], [U], -1), "iterations=-1; accepted: an integer of at least 0"),
    "weight": (([W, U], [U, U]), "weights[1] has shape (3,); accepted: [rows, ...], two or more"),
    "weight dtype": (([W.int()], [U]), "weights[0] has dtype torch.int32; accepted: a floating"),
    "vector dtype": (([W], [U.int()]), "vectors[0] has dtype torch.int32; accepted: a floating"),
    "vector": (([W, W], [U, U[:2]]), "vectors[1] has shape (2,); accepted: [3], the rows of its"),
    "device": (([W], [U.to("meta")]), "vectors[0] is on meta; accepted: cpu, where its weight is"),
}


@pytest.mark.parametrize(("args", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_argument_value_and_what_is_accepted(args, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        spectral_norm_power_iteration(*args)
    assert str(raised.value).startswith(message)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu():
    weights, vectors = draw(dtype=torch.float32, device="cuda")
    want = [by_the_paper(w.double(), u.double(), 2)[0] for w, u in zip(weights, vectors)]
    for sigma, s in zip(spectral_norm_power_iteration(weights, vectors, 2), want):
        torch.testing.assert_close(sigma.double(), s, rtol=1e-5, atol=1e-5)
