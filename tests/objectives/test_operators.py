"""What the tangent pass replaces, and every layer of `torch.nn`, against double backward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as spectral_norm_by_hook
from torch.nn.utils import weight_norm as weight_norm_by_hook

from dgan.objectives.operators import COMPOSITES, OPERATORS, differentiable_tangents
from dgan.objectives.penalties import gradient_penalty

Operator = Callable[..., Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """One way to call an operator: `call(h, weight, bias)` gives its arguments."""

    name: str
    shape: tuple[int, ...]
    call: Callable[[Tensor, Tensor, Tensor], Call]
    affine: tuple[int, ...] = ()


def stats(h: Tensor) -> tuple[Tensor, Tensor]:
    return numbers(h.shape[1], seed=5), numbers(h.shape[1], seed=6).abs() + 0.5


LAYER_NORM = [
    Case("affine", (4, 6), lambda h, w, b: ((h, (6,), w, b), {}), (6,)),
    Case("eps", (4, 3, 6), lambda h, w, b: ((h, (6,), w, b, 1e-2), {}), (6,)),
    Case("no bias", (4, 3, 6), lambda h, w, b: ((h, [6], w), {}), (6,)),
    Case("two dimensions", (4, 3, 6), lambda h, w, b: ((h, (3, 6)), {"weight": w}), (3, 6)),
    Case("plain", (4, 2, 3, 6), lambda h, w, b: ((h, torch.Size([6])), {}), (6,)),
]


def statistics_of_samples(h: Tensor, w: Tensor, b: Tensor) -> Call:
    return (h, *stats(h), w, b, True, 0.3, 1e-3), {}


BATCH_NORM = [
    Case("training", (6, 3), lambda h, w, b: ((h, *stats(h), w, b, True), {}), (3,)),
    Case("momentum", (6, 3, 5), statistics_of_samples, (3,)),
    Case("no statistics", (4, 3, 2, 5), lambda h, w, b: ((h, None, None, w, b, True), {}), (3,)),
    Case("plain", (4, 3, 2, 5), lambda h, w, b: ((h, None, None), {"training": True}), (3,)),
    Case("evaluation", (6, 3, 5), lambda h, w, b: ((h, *stats(h), w, b), {"eps": 1e-3}), (3,)),
]
INSTANCE_NORM = [
    Case("plain", (4, 3, 7), lambda h, w, b: ((h,), {}), (3,)),
    Case("affine", (4, 3, 2, 5), lambda h, w, b: ((h, None, None, w, b), {"eps": 1e-3}), (3,)),
    Case("momentum", (4, 3, 7), statistics_of_samples, (3,)),
    Case(
        "evaluation",
        (4, 3, 7),
        lambda h, w, b: ((h, *stats(h), w, b), {"use_input_stats": False}),
        (3,),
    ),
]


def in_native_order(cases: list[Case]) -> list[Case]:
    """For `torch.batch_norm` and `instance_norm`: weight and bias first, all of it positional."""
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")

    def native(case: Case) -> Case:
        def call(h: Tensor, w: Tensor, b: Tensor) -> Call:
            (_, *rest), extra = case.call(h, w, b)
            extra = (
                {"training": extra.pop("use_input_stats")}
                if len(extra) and ("use_input_stats" in extra)
                else extra
            )
            given = {
                "training": cases is INSTANCE_NORM,
                "momentum": 0.1,
                "eps": 1e-5,
                **dict.fromkeys(names[:4]),
                **dict(zip(names, rest)),
                **extra,
            }
            order = ("weight", "bias", "running_mean", "running_var", *names[4:])
            return (h, *[given[name] for name in order], False), {}

        return Case(case.name, case.shape, call, case.affine)

    return [native(case) for case in cases]


def by_dim(*calls: tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]) -> list[Case]:
    """Calls that take the input and constants."""

    def case(name: str, shape: tuple[int, ...], args: Any, kwargs: Any) -> Case:
        return Case(name, shape, lambda h, w, b: ((h * w + b, *args), kwargs), shape[1:])

    return [case(*call) for call in calls]


SOFTMAX = by_dim(
    ("last", (4, 6), (-1,), {}),
    ("named", (4, 3, 6), (), {"dim": 1}),
    ("four", (4, 2, 3, 5), (2,), {}),
)
NATIVE_SOFTMAX = SOFTMAX + by_dim(("first", (4, 6), (0,), {}))
FUNCTIONAL_SOFTMAX = SOFTMAX + by_dim(
    ("no dim, matrix", (4, 6), (), {"_stacklevel": 1}),
    ("no dim, three", (4, 3, 6), (), {"_stacklevel": 1}),
    ("no dim, four", (4, 3, 2, 5), (), {"_stacklevel": 1}),
)
GLU = by_dim(("last", (4, 6), (), {}), ("channels", (4, 6, 3), (1,), {}))
# Beyond ±3 in places, so that all three pieces are met.
HARDSIGMOID = [Case("plain", (4, 60), lambda h, w, b: ((4 * h * w + b,), {}), (60,))]

MASK = torch.ones(5, 5, dtype=torch.bool).tril(1)


def attention_case(name: str, shape: tuple[int, ...], **kwargs: Any) -> Case:
    def call(h: Tensor, w: Tensor, b: Tensor) -> Call:
        key, value = h.roll(1, -2) * w, h.roll(2, -1) + b
        if kwargs.get("enable_gqa"):
            key, value = key[:, :2], value[:, :2]
        return (h, key, value), kwargs

    return Case(name, shape, call, shape[-1:])


ATTENTION = [
    attention_case("plain", (3, 2, 5, 4)),
    attention_case("three dimensions", (3, 5, 4), dropout_p=0.0),
    attention_case("boolean mask", (3, 2, 5, 4), attn_mask=MASK),
    attention_case("added mask", (3, 2, 5, 4), attn_mask=numbers(3, 1, 5, 5, seed=8)),
    attention_case("causal", (3, 2, 5, 4), is_causal=True),
    attention_case("scale", (3, 2, 5, 4), scale=0.7),
    attention_case("grouped", (3, 4, 5, 4), enable_gqa=True),
]


def multi_head_case(name: str, **kwargs: Any) -> Case:
    def call(h: Tensor, w: Tensor, b: Tensor) -> Call:
        sequence = h.transpose(0, 1)
        project, out = numbers(24, 8, seed=3) * w / 2, numbers(8, 8, seed=4) + b
        fixed = (8, 2, project, numbers(24, seed=5), None, None, False, 0.0, out, b)
        return (sequence, sequence, sequence, *fixed), kwargs

    return Case(name, (3, 5, 8), call, (8,))


MULTI_HEAD = [
    multi_head_case("weights"),
    multi_head_case("no weights", need_weights=False),
    multi_head_case("masked", need_weights=False, attn_mask=~MASK),
    multi_head_case("padding", key_padding_mask=torch.arange(5).expand(3, 5) > 3),
]
GUMBEL = by_dim(("warm", (4, 6), (), {"tau": 2.0}), ("dim", (4, 3, 6), (), {"dim": 1}))

CASES: dict[Operator, list[Case]] = {
    F.layer_norm: LAYER_NORM,
    torch.layer_norm: LAYER_NORM,
    F.instance_norm: INSTANCE_NORM,
    torch.instance_norm: in_native_order(INSTANCE_NORM),
    F.batch_norm: BATCH_NORM,
    torch.batch_norm: in_native_order(BATCH_NORM),
    torch.softmax: NATIVE_SOFTMAX,
    torch.special.softmax: SOFTMAX,
    Tensor.softmax: NATIVE_SOFTMAX,
    F.softmax: FUNCTIONAL_SOFTMAX,
    F.softmin: FUNCTIONAL_SOFTMAX,
    torch.log_softmax: NATIVE_SOFTMAX,
    torch.special.log_softmax: SOFTMAX,
    Tensor.log_softmax: NATIVE_SOFTMAX,
    F.log_softmax: FUNCTIONAL_SOFTMAX,
    F.glu: GLU,
    F.hardsigmoid: HARDSIGMOID,
    F.scaled_dot_product_attention: ATTENTION,
    F.multi_head_attention_forward: MULTI_HEAD,
    F.gumbel_softmax: GUMBEL,
}
TABLE = [*OPERATORS, *COMPOSITES]
SILENTLY_WRONG = (
    *(F.layer_norm, torch.layer_norm, F.instance_norm, torch.instance_norm),
    *(F.batch_norm, torch.batch_norm),
)
"""The others raise."""
# PyTorch computes hardsigmoid's first derivative with a 1/6 of float32, in float64 too.
TOLERANCE = {F.hardsigmoid: 1e-7}


def name_of(operator: Operator) -> str:
    module = getattr(operator, "__module__", None) or "torch"
    return f"{module}.{getattr(operator, '__qualname__', operator.__name__)}"


EVERY_CASE = [
    pytest.param(operator, case, id=f"{index}-{name_of(operator)}-{case.name}")
    for index, operator in enumerate(TABLE)
    for case in CASES.get(operator, ())
]


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class Around(nn.Module):
    """tanh(a∘x) → the operator → c tanh, so that the operator's second derivative matters."""

    def __init__(self, operator: Operator, case: Case) -> None:
        super().__init__()
        self.operator, self.case = operator, case
        self.a = nn.Parameter(numbers(*case.shape[1:], seed=1))
        self.c = nn.Parameter(numbers(1, seed=2))
        self.weight = nn.Parameter(1 + numbers(*case.affine, seed=3) / 2)
        self.bias = nn.Parameter(numbers(*case.affine, seed=4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        args, kwargs = self.case.call((self.a * x).tanh(), self.weight, self.bias)
        return self.c * first(self.operator(*args, **kwargs)).tanh()

    def input(self) -> Tensor:
        return numbers(*self.case.shape, seed=9)


def parameter_gradient(network: nn.Module, of: Tensor) -> Tensor:
    parameters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(of, parameters, materialize_grads=True, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found])


def relative(found: Tensor, wanted: Tensor) -> float:
    assert wanted.norm() > 0
    return ((found - wanted).norm() / wanted.norm()).item()


@contextmanager
def written_out() -> Iterator[None]:
    """The double route's reference: attention that PyTorch can differentiate twice."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def penalty_gradient(network: nn.Module, x: Tensor, method: Any) -> Tensor:
    torch.manual_seed(3)
    with written_out():
        return parameter_gradient(network, gradient_penalty(network, x, method=method).loss)


def test_every_entry_of_the_table_has_a_case() -> None:
    missing = [name_of(operator) for operator in TABLE if not CASES.get(operator)]
    assert not missing, f"give these operators of the table a case here: {missing}"
    extra = [name_of(operator) for operator in CASES if operator not in TABLE]
    assert not extra, f"these cases belong to no operator of the table: {extra}"


@pytest.mark.parametrize(("operator", "case"), EVERY_CASE)
def test_the_replacement_equals_the_operator(operator: Operator, case: Case) -> None:
    """Value, first derivatives and what happens to running statistics."""
    results = []
    for replaced in (False, True):
        h = numbers(*case.shape, seed=9).requires_grad_()
        weight = (1 + numbers(*case.affine, seed=3) / 2).requires_grad_()
        bias = (numbers(*case.affine, seed=4) / 2).requires_grad_()
        args, kwargs = case.call(h, weight, bias)
        torch.manual_seed(3)
        with written_out():
            if replaced:
                with differentiable_tangents():
                    output = first(operator(*args, **kwargs))
            else:
                output = first(operator(*args, **kwargs))
        seen = torch.autograd.grad(
            (output * numbers(*output.shape, seed=7)).sum(),
            (h, weight, bias),
            materialize_grads=True,
            allow_unused=True,
        )
        left = [a for a in args if isinstance(a, Tensor) and not a.requires_grad]
        results.append([output, *seen, *left])
    for found, wanted in zip(results[1], results[0], strict=True):
        tolerance = TOLERANCE.get(operator, 1e-12)
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "operator", [op for op in TABLE if "softmax" in name_of(op) or "softmin" in name_of(op)]
)
def test_softmax_in_another_dtype(operator: Operator) -> None:
    if operator is F.gumbel_softmax:
        pytest.skip("gumbel_softmax takes no dtype")
    x = numbers(4, 6).float()
    wanted = operator(x, -1, dtype=torch.float64)
    with differentiable_tangents():
        results = [operator(x, -1, dtype=torch.float64)]
        if CASES[operator] is NATIVE_SOFTMAX:
            results.append(operator(x, -1, torch.float64))
    for found in results:
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("operator", "case"), EVERY_CASE)
def test_the_penalty_equals_double_backward(operator: Operator, case: Case) -> None:
    # PyTorch cannot differentiate hardsigmoid twice: by hand, x/6 + 1/2 between 0 and 1.
    by_hand = {F.hardsigmoid: lambda x: (x / 6 + 0.5).clamp(0, 1)}
    network, x = Around(operator, case), numbers(*case.shape, seed=9)
    wanted = penalty_gradient(Around(by_hand.get(operator, operator), case), x, "double")
    error = relative(penalty_gradient(network, x, "forward"), wanted)
    assert error < TOLERANCE.get(operator, 1e-10)


def left_to_pytorch(network: Around) -> Tensor | None:
    """The penalty's gradient by PyTorch's own forward mode; None where it raises."""
    x = network.input().requires_grad_()
    with written_out():
        torch.manual_seed(3)
        (gradient,) = torch.autograd.grad(network(x).sum(), x)
        torch.manual_seed(3)
        try:
            with forward_ad.dual_level():
                dual = network(forward_ad.make_dual(x.detach(), gradient))
                tangent = forward_ad.unpack_dual(dual).tangent
            assert tangent is not None
            return parameter_gradient(network, tangent.sum() / len(x))
        except (RuntimeError, NotImplementedError):
            return None


@pytest.mark.parametrize("operator", TABLE, ids=name_of)
def test_pytorch_itself_still_fails(operator: Operator) -> None:
    """A canary: what fails here needs no replacement any more."""
    case = CASES[operator][0]
    found = left_to_pytorch(Around(operator, case))
    fixed = f"torch {torch.__version__} fixed {name_of(operator)}: remove it from the table"
    if operator in SILENTLY_WRONG:
        wanted = penalty_gradient(Around(operator, case), numbers(*case.shape, seed=9), "double")
        assert found is None or relative(found, wanted) > 1e-3, fixed
    else:
        assert found is None, fixed


def test_the_canary_sees_an_operator_that_is_right() -> None:
    case = GLU[0]
    network = Around(F.silu, case)
    found = left_to_pytorch(network)
    assert found is not None
    assert relative(found, penalty_gradient(network, network.input(), "double")) < 1e-10


# ── every layer of torch.nn ──────────────────────────────────────────────────────────────────────


class Shaped(nn.Module):
    """`layer` on 64 features a sample in `shape`; a tuple's first output counts."""

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape

    def forward(self, h: Tensor) -> Tensor:
        return first(self.layer(h.reshape(len(h), *self.shape))).flatten(1)


class Calls(nn.Module):
    """Any use of one layer, written as a function of it and of h `[N, 8, 8]`."""

    def __init__(self, layer: nn.Module, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.use = layer, use

    def forward(self, h: Tensor) -> Tensor:
        return self.use(self.layer, h.view(-1, 8, 8)).flatten(1)


class Unpooled(nn.Module):
    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{dimensions}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{dimensions}d")(2)

    def forward(self, h: Tensor) -> Tensor:
        return self.unpool(*self.pool(h))


class Projected(nn.Module):
    """A projection discriminator's head: embedding(label)·h beside the plain logit."""

    def __init__(self, embedding: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.embedding, self.labels = embedding, labels

    def forward(self, h: Tensor) -> Tensor:
        return h + (self.embedding(self.labels[: len(h)]) * h).sum(1, keepdim=True)


class Tied(nn.Module):
    """W and Wᵀ."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(64, 64), nn.Linear(64, 64)
        self.outer.weight = self.inner.weight

    def forward(self, h: Tensor) -> Tensor:
        return self.outer(self.inner(h).tanh()).tanh() @ self.inner.weight


class Pair(nn.Module):
    """Two maps of h, for layers that compare."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.other = layer, nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h, self.other(h))


SHAPES: dict[int, tuple[int, ...]] = {1: (8, 8), 2: (4, 4, 4), 3: (1, 4, 4, 4)}
WIDE: dict[int, tuple[int, ...]] = {1: (8, 8), 2: (4, 4, 4), 3: (4, 2, 2, 4)}
LABELS = torch.tensor([2, 0, 1, 2])
ELEMENTWISE = (
    "ReLU LeakyReLU RReLU PReLU ELU SELU CELU GELU SiLU Mish Sigmoid Tanh Softplus Softsign "
    "Tanhshrink Hardswish Hardtanh ReLU6 LogSigmoid Softshrink Hardshrink Identity Dropout "
    "AlphaDropout FeatureAlphaDropout"
)


def layers() -> dict[str, Callable[[], nn.Module]]:
    made: dict[str, Callable[[], nn.Module]] = {}

    def add(name: str, make: Callable[[], nn.Module], *shape: int) -> None:
        assert name not in made
        made[name] = lambda: Shaped(make(), *shape)

    def use(name: str, make: Callable[[], nn.Module], how: Callable[[Any, Tensor], Any]) -> None:
        made[name] = lambda: Calls(make(), how)

    for d in (1, 2, 3):
        shape, wide = SHAPES[d], WIDE[d]
        for kind in ("Conv", "ConvTranspose"):
            layer = getattr(nn, f"{kind}{d}d")
            add(f"{kind}{d}d", partial(layer, wide[0], 3, 3, padding=1), *wide)
        for pad in ("Reflection", "Replication", "Circular", "Zero"):
            add(f"{pad}Pad{d}d", partial(getattr(nn, f"{pad}Pad{d}d"), 1), *shape)
        add(f"ConstantPad{d}d", partial(getattr(nn, f"ConstantPad{d}d"), 1, 0.5), *shape)
        for pool in ("Avg", "Max"):
            add(f"{pool}Pool{d}d", partial(getattr(nn, f"{pool}Pool{d}d"), 2), *shape)
            adaptive = f"Adaptive{pool}Pool{d}d"
            add(adaptive, partial(getattr(nn, adaptive), 2), *shape)
        add(f"LPPool{d}d", partial(getattr(nn, f"LPPool{d}d"), 2, 2), *shape)
        add(f"MaxUnpool{d}d", partial(Unpooled, d), *shape)
        batch, instance = getattr(nn, f"BatchNorm{d}d"), getattr(nn, f"InstanceNorm{d}d")
        add(f"BatchNorm{d}d", partial(batch, wide[0]), *wide)
        add(f"BatchNorm{d}d evaluation", lambda c=batch, n=wide[0]: c(n).eval(), *wide)
        add(f"InstanceNorm{d}d", partial(instance, wide[0], affine=True), *wide)
        tracking = {"affine": True, "track_running_stats": True}
        add(f"InstanceNorm{d}d tracking", partial(instance, wide[0], **tracking), *wide)
        add(f"Dropout{d}d", partial(getattr(nn, f"Dropout{d}d"), 0.3), *wide)
    add("BatchNorm1d cumulative", lambda: nn.BatchNorm1d(8, momentum=None), 8, 8)
    for kind in ("FractionalMaxPool2d", "FractionalMaxPool3d"):
        add(kind, partial(getattr(nn, kind), 2, output_size=2), *SHAPES[int(kind[-2])])
    for mode in ("nearest", "bilinear", "bicubic"):
        add(f"Upsample {mode}", partial(nn.Upsample, scale_factor=2, mode=mode), 4, 4, 4)
    add("Upsample trilinear", lambda: nn.Upsample(scale_factor=2, mode="trilinear"), 1, 4, 4, 4)
    add("UpsamplingBilinear2d", lambda: nn.UpsamplingBilinear2d(scale_factor=2), 4, 4, 4)
    add("UpsamplingNearest2d", lambda: nn.UpsamplingNearest2d(scale_factor=2), 4, 4, 4)
    add("PixelShuffle", lambda: nn.PixelShuffle(2), 4, 4, 4)
    add("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), 4, 4, 4)
    add("ChannelShuffle", lambda: nn.ChannelShuffle(2), 4, 4, 4)
    add(
        "Unfold",
        lambda: nn.Sequential(nn.Unfold(2), nn.Unflatten(1, (4, 4)), nn.Flatten()),
        4,
        4,
        4,
    )
    add("Fold", lambda: nn.Fold((3, 3), 2), 16, 4)
    add("LocalResponseNorm", lambda: nn.LocalResponseNorm(2), 4, 4, 4)
    add("GroupNorm", lambda: nn.GroupNorm(2, 4), 4, 4, 4)
    add("LayerNorm", lambda: nn.LayerNorm(8), 8, 8)
    add("LayerNorm plain", lambda: nn.LayerNorm((8, 8), elementwise_affine=False), 8, 8)
    add("RMSNorm", lambda: nn.RMSNorm(8), 8, 8)
    for name in ELEMENTWISE.split():
        add(name, getattr(nn, name), 8, 8)
    add("GELU tanh", lambda: nn.GELU("tanh"), 8, 8)
    add("Threshold", lambda: nn.Threshold(0.1, 0.0), 8, 8)
    add("ReLU in place", lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)), 8, 8)
    for name in ("Softmax", "Softmin", "LogSoftmax", "GLU"):
        add(name, partial(getattr(nn, name), -1), 8, 8)
    add("Softmax2d", nn.Softmax2d, 4, 4, 4)
    for form, spectral in (
        ("parametrised", parametrizations.spectral_norm),
        ("by hook", spectral_norm_by_hook),
    ):
        add(f"spectral_norm {form}", lambda s=spectral: s(nn.Linear(8, 8)), 8, 8)
        conv = f"spectral_norm {form}, convolution"
        add(conv, lambda s=spectral: s(nn.Conv2d(4, 4, 3)), 4, 4, 4)
    add("weight_norm", lambda: parametrizations.weight_norm(nn.Linear(8, 8)), 8, 8)
    add("weight_norm by hook", lambda: weight_norm_by_hook(nn.Linear(8, 8)), 8, 8)
    add("orthogonal", lambda: parametrizations.orthogonal(nn.Linear(8, 8)), 8, 8)
    add("Bilinear", lambda: Pair(nn.Bilinear(8, 8, 4)), 8, 8)
    add("CosineSimilarity", lambda: Pair(nn.CosineSimilarity(-1)), 8, 8)
    add("PairwiseDistance", lambda: Pair(nn.PairwiseDistance()), 8, 8)
    add("Embedding", lambda: Projected(nn.Embedding(3, 64), LABELS), 64)
    bags = LABELS[:, None].repeat(1, 2)
    add("EmbeddingBag", lambda: Projected(nn.EmbeddingBag(3, 64), bags), 64)
    add("tied weights", Tied, 64)
    add("RNN", lambda: nn.RNN(8, 8, batch_first=True), 8, 8)
    add("GRU", lambda: nn.GRU(8, 8, num_layers=2, dropout=0.3, batch_first=True), 8, 8)
    add("LSTM", lambda: nn.LSTM(8, 8, bidirectional=True, batch_first=True), 8, 8)
    use("RNNCell", lambda: nn.RNNCell(8, 8), lambda m, h: m(h[:, 1], m(h[:, 0])))
    use("GRUCell", lambda: nn.GRUCell(8, 8), lambda m, h: m(h[:, 1], m(h[:, 0])))
    use("LSTMCell", lambda: nn.LSTMCell(8, 8), lambda m, h: m(h[:, 1], m(h[:, 0]))[0])
    use("one module twice", lambda: nn.LayerNorm(8), lambda m, h: m(2 * m(h).tanh()))
    use(
        "spectral_norm, one module twice",
        lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
        lambda m, h: m(m(h).tanh()),
    )
    attention = {"num_heads": 2, "batch_first": True}
    for weights in (True, False):
        use(
            "MultiheadAttention" + (" with weights" if weights else ""),
            lambda: nn.MultiheadAttention(8, dropout=0.2, **attention),
            lambda m, h, weights=weights: m(h, h, h, need_weights=weights)[0],
        )
    block = {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "batch_first": True}
    add("TransformerEncoderLayer", lambda: nn.TransformerEncoderLayer(**block), 8, 8)
    modern = {**block, "activation": "gelu", "norm_first": True}
    add(
        "TransformerEncoderLayer evaluation",
        lambda: nn.TransformerEncoderLayer(**modern).eval(),
        8,
        8,
    )
    one = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    use("Transformer", lambda: nn.Transformer(**block, **one), lambda m, h: m(h, h.flip(1)))
    return made


LAYERS = layers()

LOSSES = (
    "AdaptiveLogSoftmaxWithLoss BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss "
    "CrossEntropyLoss GaussianNLLLoss HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss "
    "LinearCrossEntropyLoss MSELoss MarginRankingLoss MultiLabelMarginLoss "
    "MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss NLLLoss2d PoissonNLLLoss "
    "SmoothL1Loss SoftMarginLoss "
    "TripletMarginLoss TripletMarginWithDistanceLoss"
)
CONTAINERS = (
    "Container Module ModuleDict ModuleList ParameterDict ParameterList RNNBase RNNCellBase"
)
EXCLUDED: dict[str, str] = {
    **dict.fromkeys(LOSSES.split(), "a loss, not a layer"),
    **dict.fromkeys(CONTAINERS.split(), "a container or base class: what it holds is a layer"),
    "DataParallel": "superseded by DDP, and needs GPUs",
    "SyncBatchNorm": "needs GPUs and a process group",
    "CrossMapLRN2d": "a legacy autograd.Function without second derivative or forward mode",
    "Hardsigmoid": "PyTorch has no double backward to compare with; among the operators above",
}


class Discriminator(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(12, 64), middle, nn.LazyLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x).tanh()).tanh()).squeeze(1)


def discriminator(name: str) -> Discriminator:
    torch.manual_seed(1)
    network = Discriminator(LAYERS[name]())
    training = {module: module.training for module in network.modules()}
    network.double().eval()(numbers(2, 12))  # the head learns its width
    for module, mode in training.items():
        module.training = mode
    return network


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_equals_double_backward(name: str) -> None:
    one, two, x = discriminator(name), discriminator(name), numbers(4, 12, seed=9)
    before = [buffer.clone() for buffer in one.buffers()]
    wanted = penalty_gradient(one, x, "double")
    assert relative(penalty_gradient(two, x, "forward"), wanted) < 1e-10
    for found, expected in zip(two.buffers(), one.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if "spectral" in name or name.endswith(("tracking", "cumulative")):
        # Otherwise equal buffers would say nothing.
        assert any((old != new).any() for old, new in zip(before, one.buffers()))


def test_no_layer_of_pytorch_is_forgotten() -> None:
    public = {
        name
        for name, layer in vars(nn).items()
        if isinstance(layer, type) and issubclass(layer, nn.Module)
    }
    covered = {type(module).__name__ for make in LAYERS.values() for module in make().modules()}
    # A lazy layer turns into the ordinary one at its first call.
    forgotten = {
        n for n in public - covered - set(EXCLUDED) if n.removeprefix("Lazy") not in covered
    }
    assert not forgotten, f"give these layers a case, or a reason in EXCLUDED: {sorted(forgotten)}"
    both = covered & (EXCLUDED.keys() - set(CONTAINERS.split()))
    assert not both, f"covered, so no longer to be excluded: {sorted(both)}"
