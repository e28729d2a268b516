"""Operators whose forward mode PyTorch cannot differentiate, written out so that it can.

The tangent pass of a penalty differentiates, in reverse, what forward mode computed. For some
operators that is silently wrong in PyTorch (layer, instance and training batch normalisation,
pytorch issues 196700 and 196699), for others an error (softmax, attention, GLU). Inside
`differentiable_tangents()` each is replaced by elementary operations, which are exact, also in
code that nobody can change. `tests/objectives/test_operators.py` walks this table and the layers
of `torch.nn`.
"""

import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode


def value(x: Tensor) -> Tensor:
    """What `x` is, without tangent and without history."""
    return forward_ad.unpack_dual(x).primal.detach()


def _normalise(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x − μ)/√(σ² + ε), μ and the biased σ² over `dims`, each kept with size 1."""
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    variance = centred.square().mean(dims, keepdim=True)
    return centred * (variance + eps).rsqrt(), mean, variance


def _widened(x: Tensor) -> Tensor:
    """Under autocast these operators compute in float32."""
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if narrow and torch.is_autocast_enabled(x.device.type) else x


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.view(*shape)
    return x if bias is None else x + bias.view(*shape)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *unused: Any,
) -> Tensor:
    """As `torch.nn.functional.layer_norm`."""
    dims = tuple(range(-len(normalized_shape), 0))
    normal, _, _ = _normalise(_widened(input), dims, eps)
    return _affine(normal, weight, bias, tuple(normalized_shape))


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *unused: Any,
) -> Tensor:
    """As `torch.nn.functional.instance_norm`."""
    shape = (1, -1, *[1] * (input.ndim - 2))
    if not use_input_stats:
        assert running_mean is not None
        assert running_var is not None
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    normal, mean, variance = _normalise(input, tuple(range(2, input.ndim)), eps)
    _track(running_mean, value(mean).mean((0, *range(2, input.ndim))), momentum)
    _track(running_var, _unbiased(variance, input[0, 0].numel()).mean(0).flatten(), momentum)
    return _affine(normal, weight, bias, shape)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *unused: Any,
) -> Tensor:
    """As `torch.nn.functional.batch_norm`."""
    shape = (1, -1, *[1] * (input.ndim - 2))
    if not training:
        assert running_mean is not None
        assert running_var is not None
        scale = (running_var + eps).rsqrt()
        normal = (input - running_mean.view(shape)) * scale.view(shape)
        return _affine(normal, weight, bias, shape)
    normal, mean, variance = _normalise(input, (0, *range(2, input.ndim)), eps)
    _track(running_mean, value(mean).flatten(), momentum)
    count = input.numel() // input.shape[1]
    _track(running_var, _unbiased(variance, count).flatten(), momentum)
    return _affine(normal, weight, bias, shape)


def native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *rest: Any,
    **named: Any,
) -> Tensor:
    """As `torch.batch_norm`, whose arguments have another order."""
    return batch_norm(input, running_mean, running_var, weight, bias, *rest, **_used(named))


def native_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *rest: Any,
    **named: Any,
) -> Tensor:
    """As `torch.instance_norm`, whose arguments have another order."""
    return instance_norm(input, running_mean, running_var, weight, bias, *rest, **_used(named))


def _used(named: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name != "cudnn_enabled"}


def _unbiased(variance: Tensor, count: int) -> Tensor:
    return value(variance) * (count / max(count - 1, 1))


def _track(running: Tensor | None, now: Tensor, momentum: float) -> None:
    if running is not None:
        with torch.no_grad():
            running.lerp_(now.to(running.dtype), momentum)


def softmax(input: Tensor, dim: int | None = -1, dtype: torch.dtype | None = None) -> Tensor:
    """As `torch.softmax`."""
    x = _widened(input) if dtype is None else input.to(dtype)
    dim = _softmax_dim(x) if dim is None else dim
    exponent = (x - value(x).amax(dim, keepdim=True)).exp()
    return exponent / exponent.sum(dim, keepdim=True)


def functional_softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `torch.nn.functional.softmax`."""
    return softmax(input, dim, dtype=dtype)


def functional_softmin(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `torch.nn.functional.softmin`."""
    return softmax(-input, dim, dtype=dtype)


def log_softmax(
    input: Tensor,
    dim: int | None = -1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `torch.log_softmax`."""
    x = _widened(input) if dtype is None else input.to(dtype)
    dim = _softmax_dim(x) if dim is None else dim
    shifted = x - value(x).amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def functional_log_softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `torch.nn.functional.log_softmax`."""
    return log_softmax(input, dim, dtype=dtype)


def _softmax_dim(x: Tensor) -> int:
    """What `torch.nn.functional` takes when no dimension is named."""
    return 0 if x.ndim in (0, 1, 3) else 1


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """As `torch.nn.functional.glu`."""
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention`, with the N×N matrix in memory."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(repeats, -3) for x in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = factor * (query @ key.transpose(-1, -2))
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    weights = softmax(logits, -1).to(query.dtype)
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    return weights @ value


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """As `torch.nn.functional.hardsigmoid`, whose second derivative PyTorch lacks."""
    return F.relu6(input + 3) / 6


def behind_the_override(function: Callable[..., Any]) -> Callable[..., Any]:
    """A composite of `torch.nn.functional` that does not ask for overrides of itself again."""
    asks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    unaware = {**function.__globals__, **dict.fromkeys(asks, lambda *_: False)}
    copy = types.FunctionType(function.__code__, unaware, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.instance_norm: instance_norm,
    torch.instance_norm: native_instance_norm,
    F.batch_norm: batch_norm,
    torch.batch_norm: native_batch_norm,
    torch.softmax: softmax,
    torch.special.softmax: softmax,
    Tensor.softmax: softmax,
    F.softmax: functional_softmax,
    F.softmin: functional_softmin,
    torch.log_softmax: log_softmax,
    torch.special.log_softmax: log_softmax,
    Tensor.log_softmax: log_softmax,
    F.log_softmax: functional_log_softmax,
    F.glu: glu,
    F.hardsigmoid: hardsigmoid,
    F.scaled_dot_product_attention: scaled_dot_product_attention,
}
"""Each operator and what replaces it in the tangent pass."""

COMPOSITES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: behind_the_override(F.multi_head_attention_forward),
    F.gumbel_softmax: behind_the_override(F.gumbel_softmax),
}
"""Functions written in Python that call operators of the table."""


class Replaced(TorchFunctionMode):
    """While active, the functions of a table are replaced.

    Args:
        table: each function and what is called instead.
        composites: functions that call others of the table, and how to call them past the
            override; the mode stays on inside.
    """

    def __init__(
        self,
        table: dict[Callable[..., Any], Callable[..., Any]],
        composites: dict[Callable[..., Any], Callable[..., Any]],
    ) -> None:
        super().__init__()
        self.table, self.composites = table, composites

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.composites:
            with self:  # inside here the mode is off; what the composite calls needs it again
                return self.composites[func](*args, **kwargs)
        return self.table.get(func, func)(*args, **kwargs)


def differentiable_tangents() -> Replaced:
    """A context in which the operators of the table are computed in elementary operations."""
    return Replaced(OPERATORS, COMPOSITES)
