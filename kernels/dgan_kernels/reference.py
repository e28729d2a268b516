"""The operators in plain PyTorch: the CPU path, and the oracle the kernels are tested against.

Any floating dtype, any device, any derivative order, forward and reverse mode: autograd
differentiates these functions like any other PyTorch code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LEAKY_SLOPE = 0.2

_ROOT_HALF = math.sqrt(0.5)
_INV_ROOT_TAU = 1.0 / math.sqrt(2.0 * math.pi)
# GELU's tanh form is 0.5·u·(1 + tanh(k(u + a·u³))), Hendrycks and Gimpel 2016.
GELU_K = math.sqrt(2.0 / math.pi)
GELU_A = 0.044715

Pointwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Activation:
    """A pointwise function with its closed-form derivatives.

    ``second`` is None where it vanishes almost everywhere: the double backward pass then has no
    term in x, and the kernels skip it.
    """

    value: Pointwise
    first: Pointwise
    second: Pointwise | None


def _silu_first(u: Tensor) -> Tensor:
    p = u.sigmoid()
    return p * (1 + u * (1 - p))


def _silu_second(u: Tensor) -> Tensor:
    p = u.sigmoid()
    slope = torch.addcmul(p, p, p, value=-1)  # p(1 − p): a sweep less over memory
    return slope * (2 + u * torch.rsub(p, 1, alpha=2))


def _density(u: Tensor) -> Tensor:
    return _INV_ROOT_TAU * (-0.5 * u * u).exp()


def _gelu_first(u: Tensor) -> Tensor:
    return 0.5 * (1 + (_ROOT_HALF * u).erf()) + u * _density(u)


def _gelu_tanh_first(u: Tensor) -> Tensor:
    t = (GELU_K * (u + GELU_A * u**3)).tanh()
    return 0.5 * (1 + t) + 0.5 * u * (1 - t * t) * GELU_K * (1 + 3 * GELU_A * u * u)


def _gelu_tanh_second(u: Tensor) -> Tensor:
    t = (GELU_K * (u + GELU_A * u**3)).tanh()
    slope = GELU_K * (1 + 3 * GELU_A * u * u)
    bend = 6 * GELU_K * GELU_A * u
    return (1 - t * t) * (slope + 0.5 * u * bend - u * t * slope * slope)


def _sigmoid_first(u: Tensor) -> Tensor:
    return u.sigmoid() * (-u).sigmoid()


def _tanh_first(u: Tensor) -> Tensor:
    return 1 - u.tanh().square()


def _leaky_first(u: Tensor) -> Tensor:
    return torch.where(u > 0, 1.0, LEAKY_SLOPE).to(u.dtype)


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda u: u, torch.ones_like, None),
    "relu": Activation(F.relu, lambda u: (u > 0).to(u.dtype), None),
    "leaky_relu": Activation(lambda u: F.leaky_relu(u, LEAKY_SLOPE), _leaky_first, None),
    "silu": Activation(F.silu, _silu_first, _silu_second),
    "gelu": Activation(F.gelu, _gelu_first, lambda u: _density(u) * (2 - u * u)),
    "gelu_tanh": Activation(
        lambda u: F.gelu(u, approximate="tanh"), _gelu_tanh_first, _gelu_tanh_second
    ),
    "tanh": Activation(torch.tanh, _tanh_first, lambda u: -2 * u.tanh() * _tanh_first(u)),
    "sigmoid": Activation(
        torch.sigmoid, _sigmoid_first, lambda u: _sigmoid_first(u) * (1 - 2 * u.sigmoid())
    ),
    "softplus": Activation(F.softplus, torch.sigmoid, _sigmoid_first),
    "elu": Activation(
        F.elu,
        lambda u: u.clamp(max=0).exp(),
        lambda u: torch.where(u > 0, torch.zeros_like(u), u.clamp(max=0).exp()),
    ),
}


_IN_PLACE: dict[str, Pointwise] = {
    "relu": F.relu_,
    "leaky_relu": lambda u: F.leaky_relu_(u, LEAKY_SLOPE),
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "elu": F.elu_,
    "silu": lambda u: F.silu(u, inplace=True),
}


def activate(u: Tensor, act: str, own: bool) -> Tensor:
    """Return act(u), in u's memory if that is the caller's ``own`` and nothing differentiates it.

    A fresh page costs a CPU more than the arithmetic on it. Under autograd PyTorch could take relu
    and its like in place too, but then sends the zeros of their second derivative through them.
    """
    recorded = u.requires_grad and torch.is_grad_enabled()
    if own and not recorded and act in _IN_PLACE and not torch.compiler.is_compiling():
        return _IN_PLACE[act](u)
    return ACTIVATIONS[act].value(u)


def along(bias: Tensor, x: Tensor, dim: int) -> Tensor:
    """Return ``bias`` [C] as a view that broadcasts along dimension ``dim`` of ``x``."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return bias.view(shape)


def bias_act(
    x: Tensor,
    bias: Tensor | None,
    act: str,
    gain: float,
    clamp: float | None,
    dim: int,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Return clamp(gain · act(scale · x + noise + bias)); see `dgan_kernels.bias_act`."""
    own = False
    if scale is not None:
        shape = [1] * x.ndim
        shape[0], shape[dim] = scale.shape
        x, own = x * scale.view(shape), True
    if noise is not None:
        x, own = x + noise, True
    if bias is not None:
        x, own = x + along(bias, x, dim), True
    y = activate(x, act, own)
    if not torch.is_grad_enabled() and (own or y is not x) and not torch.compiler.is_compiling():
        y = y if gain == 1 else y.mul_(gain)
        return y if clamp is None else y.clamp_(-clamp, clamp)
    y = y if gain == 1 else y * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


# Below, `bias` is None or broadcasts against x as it is; `dim` keeps the kernels' signature.


def bias_act_forward(
    x: Tensor, bias: Tensor | None, act: str, gain: float, clamp: float | None, dim: int
) -> Tensor:
    """Return y."""
    y = ACTIVATIONS[act].value(x if bias is None else x + bias)
    if gain != 1:
        y = y * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


def bias_act_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, act: str, gain: float, clamp: float | None, dim: int
) -> Tensor:
    """Return dx = dy · gain · m · s'(x + bias), with m = 1 where the clamp lets y through."""
    u = x if bias is None else x + bias
    return _clamped(dy * gain * ACTIVATIONS[act].first(u), u, act, gain, clamp)


def bias_act_second(
    v: Tensor,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    act: str,
    gain: float,
    clamp: float | None,
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Return what a cotangent v of dx sends to dy, and to x (and, before summing, to the bias)."""
    u = x if bias is None else x + bias
    second = ACTIVATIONS[act].second
    to_x = torch.zeros_like(u) if second is None else v * dy * gain * second(u)
    to_dy = bias_act_backward(v, x, bias, act, gain, clamp, dim)
    # Under vmap both have the batch, though dy, which may bring it, is in one of them only.
    to_dy, to_x = torch.broadcast_tensors(to_dy, _clamped(to_x, u, act, gain, clamp))
    return to_dy, to_x


def _clamped(grad: Tensor, u: Tensor, act: str, gain: float, clamp: float | None) -> Tensor:
    if clamp is None:
        return grad
    passes = (gain * ACTIVATIONS[act].value(u)).abs() <= clamp
    return torch.where(passes, grad, torch.zeros_like(grad))
