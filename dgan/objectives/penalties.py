"""Gradient penalties, exact, as a function that any training loop can call."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

import dgan_kernels
from dgan.objectives.convolutions import BilinearConvolutions
from dgan.objectives.forward_mode import (
    is_checkpointed,
    modules_of,
    same_randomness,
    value_and_tangent,
)
from dgan.objectives.upstream import first_pass, frees_between_backwards, is_engine, unwrapped
from dgan_kernels import penalty_direction, squared_norm

Kind = Literal["zero_centered", "one_centered"]
Method = Literal["auto", "double", "forward", "difference"]
Network = Callable[..., Tensor]


@dataclass(frozen=True)
class PenaltyOutput:
    """What one evaluation of a penalty gives.

    Attributes:
        loss: scalar; its backward gives the parameters' gradient of the penalty.
        logits: the discriminator's output on `x`, for the adversarial loss; differentiable.
        norms: ‖∇ₓD‖ of each sample, `[N]`, at least float32, detached.
        exact: False where the gradient is that of a central difference.
    """

    loss: Tensor
    logits: Tensor
    norms: Tensor
    exact: bool = True


def gradient_penalty(
    discriminator: Network,
    x: Tensor,
    *conditions: Tensor | None,
    kind: Kind = "zero_centered",
    method: Method = "auto",
    one_sided: bool = False,
    step: float = 1e-3,
    keep_unsharded: bool = False,
    backend: str | None = None,
) -> PenaltyOutput:
    """Penalise the norm of the discriminator's gradient with respect to its input.

    `zero_centered` is mean ½‖∇ₓD‖²: R1 on real samples, R2 on generated ones (Mescheder et al.
    2018, equation 9, there with γ). `one_centered` is mean (‖∇ₓD‖ − 1)² (WGAN-GP, Gulrajani
    et al. 2017, equation 3, there with λ); `one_sided` counts norms above 1 only (their
    section 4). Where `x` comes from is the caller's choice: `interpolate` and `neighbourhood`
    draw what WGAN-GP and DRAGAN take.

    With g = ∇ₓD and a penalty mean φ(‖g‖), three methods give the gradient in the parameters:

    - `double` differentiates g in reverse mode once more. Exact. It needs the parameters to stay
      in place between the two, which FSDP2 and ZeRO-3 do not offer as they come.
      Convolutions run on the library's gradient kernels in both (`objectives.convolutions`).
    - `forward` uses ∇θ mean φ(‖g‖) = ∇θ mean ∂D(x)·u with u = φ′(‖g‖) g/‖g‖ held constant: an
      ordinary backward for g, a forward pass that carries the tangent u, an ordinary backward.
      Exact, and no hook of a sharded or checkpointed module sees a second derivative.
    - `difference` replaces that derivative along u by a central difference of step `step` (over
      the batch's ‖u‖). An approximation: useless for piecewise linear activations.
    - `auto` takes `forward` where parameters are sharded or activations recomputed, else `double`.

    The discriminator runs under the caller's autocast. Samples may depend on one another (batch
    normalisation): g is the gradient of the logits' sum. Dropout masks and power iterations are
    those of one call, and running statistics advance once, whatever the number of passes. Modules
    that `torch.compile` compiled run as they are written where more than a first derivative is
    needed. Where a gradient is not finite neither is the loss, nor what its backward gives: nothing
    is hidden.

    Args:
        discriminator: a module (also under DDP or FSDP2), or a function around modules, from `x`
            and the conditions to logits `[N]` or `[N, ...]`.
        x: samples `[N, ...]`, floating point. Gradients do not flow into what made them.
        conditions: passed on after `x`, for example labels.
        kind: which penalty.
        method: how its gradient is computed.
        one_sided: of `one_centered`.
        step: of `difference`.
        keep_unsharded: of `forward` and `difference` under FSDP2: keep weights gathered from the
            first pass to the second, for half of the gathers and all of the weights' memory.
        backend: of the kernels that the penalty itself takes; see `dgan_kernels.squared_norm`.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: `x` is empty; the logits do not depend on it; an operation has no forward
            mode; or `double` is asked for where it is known to fail or to be wrong.
    """
    _check(x, kind, method)
    _refuse_static_graphs(discriminator)
    method = choose(discriminator) if method == "auto" else method
    if method == "double":
        if reason := why_not_double(discriminator):
            raise ValueError(f"method='double' {reason}; method='forward' is exact here")
        return _double(discriminator, x, conditions, kind, one_sided, backend)
    x = x.detach()
    turn_back = same_randomness(discriminator, x.device)
    gradient = input_gradient(discriminator, x, conditions, keep_unsharded=keep_unsharded)
    squares = squared_norm(gradient, backend=backend)
    # u = φ′(‖g‖) g/‖g‖ of each sample, the penalty's derivative in g; 0 where g is.
    centred = kind == "one_centered"
    direction = penalty_direction(
        gradient, squares, kind, one_sided=one_sided and centred, backend=backend
    )
    turn_back()
    if method == "forward":
        with as_written():
            logits, tangent = value_and_tangent(
                discriminator, x, direction, *conditions, backend=backend
            )
    else:
        logits, tangent = _difference(discriminator, x, direction, conditions, step, turn_back)
    surrogate = tangent.to(squares.dtype).sum() / len(x)
    value = penalty_of(squares, kind, one_sided)
    # The penalty's value with the surrogate's gradient.
    loss = surrogate - surrogate.detach() + value
    return PenaltyOutput(loss, logits, squares.sqrt(), exact=method == "forward")


def interpolate(real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A random point between each real and generated sample, where WGAN-GP takes its penalty.

    Detached.
    """
    mix = torch.rand(len(real), generator=generator, device=real.device, dtype=real.dtype)
    return dgan_kernels.interpolate(real.detach(), fake.detach(), mix)


def neighbourhood(real: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Real samples with noise of half their spread, where DRAGAN takes its penalty.

    Kodali et al. 2017, with the perturbation of their published code: x + ½ σ(x) · U(0, 1).
    """
    noise = torch.rand(real.shape, generator=generator, device=real.device, dtype=real.dtype)
    return real.detach() + 0.5 * real.detach().std() * noise


def choose(discriminator: Network) -> Literal["double", "forward"]:
    """What `auto` means for this discriminator."""
    modules = list(modules_of(discriminator))
    recomputes = any(is_checkpointed(module) for module in modules)
    return "forward" if recomputes or why_not_double(discriminator) else "double"


def why_not_double(discriminator: Network) -> str | None:
    """Why differentiating twice fails or is wrong here, or None."""
    for module in modules_of(discriminator):
        if frees_between_backwards(module):
            return "needs what FSDP2 frees between the two backward passes"
        if any(hasattr(p, "ds_id") for p in module.parameters(recurse=False)):
            return "needs what ZeRO-3 frees between the two backward passes"
    return None


def _refuse_static_graphs(discriminator: Network) -> None:
    for module in modules_of(discriminator):
        if isinstance(module, DistributedDataParallel) and module.static_graph:
            raise ValueError(
                "under DDP with static_graph=True the gradient of a penalty is silently wrong: "
                "leave static_graph out"
            )


def _double(
    discriminator: Network,
    x: Tensor,
    conditions: tuple,
    kind: Kind,
    one_sided: bool,
    backend: str | None,
) -> PenaltyOutput:
    x = x.detach().requires_grad_(True)
    convolutions = BilinearConvolutions(x)
    # PyTorch's fused attention has no second derivative.
    with ExitStack() as stack, sdpa_kernel(SDPBackend.MATH), as_written(), convolutions:
        for module in modules_of(discriminator):
            if is_engine(module):
                stack.enter_context(unwrapped(module))
        logits = discriminator(x, *conditions)
    with convolutions.gradient_of_input():
        gradient = _gradient(logits, x, create_graph=True)
    squares = squared_norm(gradient, backend=backend)
    loss = penalty_of(squares, kind, one_sided)
    return PenaltyOutput(loss, logits, squares.detach().sqrt())


def as_written() -> AbstractContextManager[object]:
    """Where compiled modules run as they are written: compiled code is derived once, in reverse."""
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return nullcontext()  # nothing is compiled, or the caller's code around this is
    return torch.compiler.set_stance("force_eager")


def input_gradient(
    discriminator: Network, x: Tensor, conditions: tuple, *, keep_unsharded: bool = False
) -> Tensor:
    """∇ₓ of the logits' sum, by a first-order pass that touches no parameter's gradient."""
    x = x.requires_grad_(True)
    with ExitStack() as stack:
        for module in modules_of(discriminator):
            stack.enter_context(first_pass(module, keep_unsharded=keep_unsharded))
        with torch.enable_grad():
            gradient = _gradient(discriminator(x, *conditions), x, create_graph=False)
    x.requires_grad_(False)
    return gradient


def _gradient(logits: Tensor, x: Tensor, *, create_graph: bool) -> Tensor:
    if not logits.requires_grad:
        raise ValueError("the discriminator's output is detached: it has no gradient to penalise")
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=create_graph, allow_unused=True)
    if gradient is None:
        raise ValueError("the discriminator's output does not depend on its input x")
    return gradient


def _difference(
    discriminator: Network,
    x: Tensor,
    direction: Tensor,
    conditions: tuple,
    step: float,
    turn_back: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """D(x), and (D(x + h u) − D(x − h u)) / 2h: three passes."""
    # One h for the batch: samples that depend on one another move together.
    length = direction.flatten(1).norm(dim=1).mean().clamp(min=torch.finfo(x.dtype).tiny)
    h = step / length
    ahead = discriminator(x + h * direction, *conditions)
    turn_back()
    behind = discriminator(x - h * direction, *conditions)
    turn_back()
    return discriminator(x, *conditions), (ahead - behind) / (2 * h)


def penalty_of(squares: Tensor, kind: Kind, one_sided: bool) -> Tensor:
    """The penalty, a scalar, of the squared norms `[N]` of the samples' gradients."""
    if kind == "zero_centered":
        return 0.5 * squares.mean()
    # A square root has no derivative at 0; the penalty's own subgradient there is 0.
    safe = torch.where(squares != 0, squares, 1.0).sqrt()
    excess = torch.where(squares != 0, safe - 1, -1.0)
    return (excess.clamp(min=0) if one_sided else excess).square().mean()


def _check(x: Tensor, kind: str, method: str) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; a gradient needs a floating point input")
    if x.ndim < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be [N, ...], one row a sample")
    if x.shape[0] == 0:
        raise ValueError("x holds no samples: every rank needs at least one")
    for name, value, choices in (("kind", kind, Kind), ("method", method, Method)):
        if value not in get_args(choices):
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(get_args(choices))}")
