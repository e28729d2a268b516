"""Operators on dual numbers, written out so that reverse mode can follow.

Each has the arguments of the PyTorch function that it stands for, and is exact whichever of them
have a tangent. `dgan/objectives/operators.py` says which function is replaced and why.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from dgan.objectives.dual_functions import Normalised, Softmax
from dgan.objectives.dual_rules import Pair, on_dual, primal_of, product, tangent_of, total
from dgan_kernels import attention_jvp


def value(x: Tensor) -> Tensor:
    """What `x` is, without tangent and without history."""
    return forward_ad.unpack_dual(x).primal.detach()


def _normalise(x: Tensor, dims: tuple[int, ...], eps: float, centred: bool = True) -> Tensor:
    """(x − μ)/√(σ² + ε) over `dims`; not `centred`, x over its root mean square."""
    if tangent_of(x) is not None:
        return on_dual(Normalised, x, dims, eps, centred)
    x = x - x.mean(dims, keepdim=True) if centred else x
    return x * (x.square().mean(dims, keepdim=True) + eps).rsqrt()


def _widened(x: Tensor) -> Tensor:
    """Under autocast these operators compute in float32."""
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if narrow and torch.is_autocast_enabled(x.device.type) else x


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    if weight is None and bias is None:
        return x.clone()  # `Normalised` keeps x, and what is given out may be changed in place
    y = x if weight is None else _times(x, weight.view(*shape))
    y = y if bias is None else _plus(y, bias.view(*shape))
    return y.to(x.dtype)


_times, _plus = product(torch.mul), total(torch.add)


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
    normal = _normalise(_widened(input), dims, eps)
    return _affine(normal, weight, bias, tuple(normalized_shape))


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """As `torch.nn.functional.rms_norm`."""
    dims = tuple(range(-len(normalized_shape), 0))
    x = _widened(input)
    eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps if eps is None else eps
    normal = _normalise(x, dims, eps, centred=False)
    return _affine(normal, weight, None, tuple(normalized_shape))


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *unused: Any,
) -> Tensor:
    """As `torch.nn.functional.group_norm`."""
    groups = _widened(input).reshape(len(input), num_groups, -1)
    normal = _normalise(groups, (-1,), eps).view(input.shape)
    return _affine(normal, weight, bias, (1, -1, *[1] * (input.ndim - 2)))


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
    dims = tuple(range(2, input.ndim))
    if running_mean is not None and running_var is not None:
        variance, mean = torch.var_mean(value(input), dims)
        _track(running_mean, mean.mean(0), momentum)
        _track(running_var, variance.mean(0), momentum)
    return _affine(_normalise(input, dims, eps), weight, bias, shape)


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
    dims = (0, *range(2, input.ndim))
    if running_mean is not None and running_var is not None:
        variance, mean = torch.var_mean(value(input), dims)
        _track(running_mean, mean, momentum)
        _track(running_var, variance, momentum)
    return _affine(_normalise(input, dims, eps), weight, bias, shape)


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


def _track(running: Tensor, now: Tensor, momentum: float) -> None:
    with torch.no_grad():
        running.lerp_(now.to(running.dtype), momentum)


def softmax(input: Tensor, dim: int | None = -1, dtype: torch.dtype | None = None) -> Tensor:
    """As `torch.softmax`."""
    x = _widened(input) if dtype is None else input.to(dtype)
    dim = _softmax_dim(x) if dim is None else dim
    if tangent_of(x) is not None:
        return on_dual(Softmax, x, dim)
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


LONG = 512
"""Square root of the logits' number from which attention in blocks is as fast on a CPU; measured by
`benchmarks/kernels/attention_jvp.py`. It needs a quarter of the memory there, and ever less."""


def _long_attention(
    inputs: tuple[Tensor, Tensor, Tensor],
    scale: float | None,
    is_causal: bool,
    backend: str | None,
) -> Pair | None:
    """Output and tangent by `attention_jvp`; None for a call that it does not take or speed up."""
    query, key, value = inputs
    tangents = [tangent_of(x) for x in inputs]
    fits = (
        any(tangent is not None for tangent in tangents)
        and query.shape[-2] * key.shape[-2] >= LONG**2
        and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
    )
    if not fits:
        return None
    primals = [primal_of(x) for x in inputs]
    dtype = primals[0].dtype
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    primals = [x.to(dtype) for x in primals]
    moved = [None if tangent is None else tangent.to(dtype) for tangent in tangents]
    return attention_jvp(*primals, *moved, scale=scale, is_causal=is_causal, backend=backend)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str | None = None,
) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention`.

    Long sequences go through `dgan_kernels.attention_jvp`, whose memory is linear in their length;
    short ones, and masks, dropout and grouped queries, keep the N×N matrix. `backend` is of the
    former.
    """
    if attn_mask is None and dropout_p == 0 and not enable_gqa:
        pair = _long_attention((query, key, value), scale, is_causal, backend)
        if pair is not None:
            return forward_ad.make_dual(*pair)
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(repeats, -3) for x in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    # Contiguous, so that no product makes and keeps a copy of its own.
    query, key, value = (x.contiguous() for x in (_times(factor, query), key, value))
    logits = query @ key.transpose(-1, -2)
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
    y = F.relu6(input + 3) / 6
    return input.copy_(y) if inplace else y
