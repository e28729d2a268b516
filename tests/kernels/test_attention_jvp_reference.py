"""attention_jvp on the CPU: values, all gradients, memory, errors; no Triton anywhere."""

import pytest
import torch
import torch.autograd.forward_ad as fwd
from attention_jvp_oracle import TOLERANCE, assert_close, inputs, naive, results
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dgan_kernels import attention_jvp, reference_attention_jvp

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    # So that a few dozen queries already are several blocks, the last of them not full.
    monkeypatch.setattr(reference_attention_jvp, "BLOCK", 1)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("length", "keys", "width"), [(70, 70, 16), (33, 90, 7), (90, 33, 8), (1, 5, 3), (5, 1, 3)]
)
def test_values_and_gradients(length, keys, width, is_causal):
    assert_close(*inputs(length, keys, width), EXACT, None, is_causal=is_causal)


@pytest.mark.parametrize("mask", range(1, 7))
def test_absent_tangents(mask):
    tangents = tuple(bool(mask >> i & 1) for i in range(3))
    assert_close(*inputs(40, 37, 8, tangents=tangents), EXACT, None, scale=0.7)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 2, 2), (0, 2)])
def test_leading_dimensions(leading):
    tensors, cotangents = inputs(6, 5, 4, leading)
    if 0 in leading:
        got = results(attention_jvp, tensors, cotangents)
        assert got["dK"].shape == tensors[1].shape
    else:
        assert_close(tensors, cotangents, EXACT, None)


LAYOUTS = {
    "heads_inside": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "channels_outside": lambda t: t.mT.contiguous().mT,
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "part_of_qkv": lambda t: torch.cat([t, t], -1)[..., t.shape[-1] :],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts(layout):
    tensors, cotangents = inputs(40, 37, 8)
    assert_close([layout(t) for t in tensors], cotangents, EXACT, None)
    assert_close(tensors, [layout(t) for t in cotangents], EXACT, None)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_narrow_dtypes(dtype):
    assert_close(*inputs(70, 50, 16, dtype=dtype), TOLERANCE[dtype], None)


def test_a_large_common_part_of_the_logits_tangent_cancels():
    # Ṡ of about 1000, of which all rows but ±1 is a constant that attention does not see.
    tensors, cotangents = inputs(20, 30, 8, dtype=torch.float32)
    tensors[4] += 1000.0
    assert_close(tensors, cotangents, 2**-10, None)  # 1000 / 2²³, seen through sums of 30


def test_is_forward_mode_of_the_math_kernel():
    tensors, _ = inputs(9, 7, 5)
    pairs = list(zip(tensors[:3], tensors[3:]))
    with fwd.dual_level(), sdpa_kernel(SDPBackend.MATH):
        duals = [fwd.make_dual(x, t) for x, t in pairs]
        output = torch.nn.functional.scaled_dot_product_attention(*duals)
        want = fwd.unpack_dual(output)
    for got, wanted in zip(attention_jvp(*tensors), want):
        torch.testing.assert_close(got, wanted, rtol=EXACT, atol=EXACT)


def test_under_autocast_and_inside_a_dual_level():
    tensors, cotangents = inputs(40, 37, 8)
    with torch.autocast("cpu", torch.bfloat16), fwd.dual_level():
        assert_close(tensors, cotangents, EXACT, None)


def test_checkpointed():
    tensors, cotangents = inputs(40, 37, 8)
    kept = lambda *t: checkpoint(attention_jvp, *t, use_reentrant=False)  # noqa: E731
    got, want = results(kept, tensors, cotangents), results(naive, tensors, cotangents)
    for name, answer in want.items():
        torch.testing.assert_close(got[name], answer, rtol=EXACT, atol=EXACT)


def test_the_gradient_of_a_penalty_by_double_backward():
    # The whole purpose: t = JVP of the sum along u = its gradient, then one ordinary backward.
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    weights = [torch.randn(6, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    leaf = x.clone().requires_grad_()
    output = naive(*[leaf @ w for w in weights], *[leaf @ w for w in weights])[0]
    (g,) = torch.autograd.grad(output.tanh().sum(), leaf, create_graph=True)
    want = torch.autograd.grad(0.5 * g.square().sum(), weights)
    u = g.detach()
    output, moved = attention_jvp(*[x @ w for w in weights], *[u @ w for w in weights])
    got = torch.autograd.grad(((1 - output.tanh().square()) * moved).sum(), weights)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


@pytest.mark.parametrize("is_causal", [False, True])
def test_nothing_as_large_as_the_matrix(is_causal):
    largest = []
    for length in (1024, 2048):
        tensors, cotangents = inputs(length, length, 8, (1, 2), dtype=torch.float32)
        with Largest() as record:
            results(attention_jvp, tensors, cotangents, is_causal=is_causal)
        largest.append(record.elements)
    # A block has the fewest rows, 2 heads · 32 · length: linear, and 1/64 of the matrix.
    assert largest == [2 * 32 * 1024, 2 * 32 * 2048]


def test_a_second_derivative_raises_where_the_cotangent_is_a_constant():
    # As under a double-backward penalty, whose other layers would hide that terms are missing.
    tensors, _ = inputs(5, 5, 4)
    leaf = tensors[0].requires_grad_()
    (g,) = torch.autograd.grad(attention_jvp(*tensors)[1].sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        (g + leaf).sum().backward()


def test_dual_numbers_and_torch_func_raise():
    tensors, _ = inputs(5, 5, 4)
    with fwd.dual_level(), pytest.raises(RuntimeError, match="must implement the jvp function"):
        attention_jvp(fwd.make_dual(tensors[0], tensors[3]), *tensors[1:])
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda q: attention_jvp(q, *tensors[1:])[0].sum())(tensors[0])


def test_compiled_breaks_the_graph_and_is_right():
    tensors, cotangents = inputs(5, 5, 4)
    doubled = lambda *t: [2 * o for o in attention_jvp(*[2 * x for x in t])]  # noqa: E731
    torch._dynamo.reset()
    got = results(torch.compile(doubled, backend="aot_eager"), tensors, cotangents)
    want = results(doubled, tensors, cotangents)
    assert all(torch.equal(got[name], want[name]) for name in want)


Q = torch.zeros(2, 3, 5, 4)
ERRORS = {
    "dtype": ([Q.int(), Q, Q, Q, None, None], {}, "query has dtype torch.int32; accepted: "),
    "rank": ([Q[0, 0, 0], Q, Q, Q, None, None], {}, "query has shape (4,); accepted: [*, L, d]"),
    "no keys": ([Q, Q[..., :0, :], Q, Q, None, None], {}, "key has shape (2, 3, 0, 4); accepted"),
    "grouped heads": ([Q, Q[:, :1], Q[:, :1], Q, None, None], {}, "key has shape (2, 1, 5, 4); a"),
    "wide values": ([Q, Q, Q[..., :2], Q, None, None], {}, "value has shape (2, 3, 5, 2); accep"),
    "tangent shape": ([Q, Q, Q, Q[:1], None, None], {}, "query_tangent has shape (1, 3, 5, 4); a"),
    "tangent dtype": ([Q, Q, Q, Q.half(), None, None], {}, "query_tangent is torch.float16 on cp"),
    "no tangent": ([Q, Q, Q, None, None, None], {}, "query_tangent, key_tangent and value_tange"),
    "scale": ([Q, Q, Q, Q, None, None], {"scale": float("inf")}, "scale=inf; accepted: a finite"),
    "backend": ([Q, Q, Q, Q, None, None], {"backend": "cuda"}, "backend='cuda'; accepted: None"),
    "no kernel": ([Q, Q, Q, Q, None, None], {"backend": "triton"}, "backend='triton': x is on cpu"),
    "wide heads": ([torch.zeros(1, 2, 3, 512)] * 6, {"backend": "triton"}, "backend='triton': qu"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "options", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_argument_value_and_what_is_accepted(args, options, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        attention_jvp(*args, **options)
    assert str(raised.value).startswith(message)
