"""Gradient penalties, exact, as a function that any training loop can call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

Method = Literal["auto", "double"]


@dataclass(frozen=True)
class PenaltyOutput:
    """What one evaluation of a penalty gives.

    Attributes:
        loss: scalar; its backward gives the parameters' exact gradient of the penalty.
        logits: the discriminator's output on `x`, for the adversarial loss; differentiable.
        norms: ‖∇ₓD‖ of each sample, `[N]`, at least float32, detached.
    """

    loss: Tensor
    logits: Tensor
    norms: Tensor


def gradient_penalty(
    discriminator: Callable[..., Tensor],
    x: Tensor,
    *conditions: Tensor | None,
    kind: Literal["zero_centered", "one_centered"] = "zero_centered",
    method: Method = "auto",
) -> PenaltyOutput:
    """Penalise the norm of the discriminator's gradient with respect to its input.

    `zero_centered` is mean ½‖∇ₓD‖²: R1 on real samples, R2 on generated ones (Mescheder et al.
    2018, equation 9, there with γ). `one_centered` is mean (‖∇ₓD‖ − 1)² (WGAN-GP, Gulrajani
    et al. 2017, equation 3, there with λ).

    Logits of a discriminator that couples samples (batch normalisation) are differentiated as
    their sum, as PyTorch users do. A call of the discriminator happens once, so that one backward
    through `loss` and `logits` serves the penalty and the adversarial loss.

    Args:
        discriminator: a module, or a function around one, from `x` and the conditions to logits
            `[N]` or `[N, ...]`.
        x: samples `[N, ...]`, floating point. Gradients do not flow into what made them.
        conditions: passed on after `x`, for example labels.
        kind: which penalty.
        method: `double` differentiates twice (reverse over reverse). `auto` chooses it.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: `x` is empty, the logits do not depend on it, or FSDP2 would free the
            parameters that the second derivative needs.
    """
    _check(discriminator, x, kind, method)
    x = x.detach().requires_grad_(True)
    logits = discriminator(x, *conditions)
    if not logits.requires_grad:
        raise ValueError("the discriminator's output is detached: it has no gradient to penalise")
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError("the discriminator's output does not depend on its input x")
    squares = _squared_norms(gradient)
    return PenaltyOutput(_penalty(squares, kind), logits, squares.detach().sqrt())


def _squared_norms(gradient: Tensor) -> Tensor:
    """‖g‖² of each sample, summed in at least float32: `[N, ...]` → `[N]`."""
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return wide.flatten(1).square().sum(1)


def _penalty(squares: Tensor, kind: str) -> Tensor:
    if kind == "zero_centered":
        return 0.5 * squares.mean()
    # A square root has no derivative at 0; the penalty's own subgradient there is 0.
    safe = torch.where(squares > 0, squares, 1.0).sqrt()
    return torch.where(squares > 0, safe - 1, -1.0).square().mean()


def _check(discriminator: Callable[..., Tensor], x: Tensor, kind: str, method: str) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; a gradient needs a floating point input")
    if x.shape[0] == 0:
        raise ValueError("x holds no samples: every rank needs at least one")
    for name, value, choices in (
        ("kind", kind, ("zero_centered", "one_centered")),
        ("method", method, ("auto", "double")),
    ):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(choices)}")
    if isinstance(discriminator, nn.Module) and frees_parameters(discriminator):
        raise ValueError(
            "FSDP2 frees this discriminator's parameters before the second derivative: shard it "
            "with dgan.parallel.shard(..., keep_for_double_backward=True)"
        )


def frees_parameters(module: nn.Module) -> bool:
    """Whether FSDP2 reshards a part of `module` between the penalty's two backward passes."""
    parts = (part for part in module.modules() if isinstance(part, FSDPModule))
    groups = (part._get_fsdp_state()._fsdp_param_group for part in parts)
    return any(group is not None and group.reshard_after_backward for group in groups)
