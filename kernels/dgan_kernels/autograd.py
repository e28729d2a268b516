"""How a kernel launch becomes differentiable, on each of the three routes PyTorch has.

No single registration is right everywhere (seen in torch 2.13): an ``autograd.Function`` inside a
compiled function that differentiates loses terms silently, a ``custom_op`` loses forward-mode
tangents when nothing requires grad, and the ``setup_context`` style that ``torch.func`` demands
costs four times the CPU time of the ctx style. So a `Launch` has all three, and picks by context.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad
from torch.library import CustomOpDef, custom_op
from torch.utils._pytree import tree_map_only

Via = Callable[["Launch"], Callable[..., Any]]
Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Launch:
    """A kernel launch with its derivative rules.

    Every function below takes the launch's own arguments: ``tensors`` of them first (a tensor may
    be None), then constants. A rule calls another launch as ``via(OTHER)(...)``, which keeps it on
    the route it is called from, and so differentiable once more.

    Args:
        name: the operator's name under ``torch.ops.dgan_kernels``.
        schema: its signature, in the language of ``torch.library``.
        tensors: how many leading arguments are tensors.
        outputs: for each output, the index of the argument whose shape, dtype and strides it has;
            or, for outputs unlike any argument, a function of the arguments that allocates them.
        run: launches the kernels.
        plain: the same in broadcasting PyTorch; serves ``vmap``, and compiled torch.func.
        vjp: ``vjp(via, grads, *args)`` -> one gradient or None per tensor. Without it,
            differentiating raises: a gradient that lacks a term is worse than none.
        jvp: ``jvp(via, tangents, *args)`` -> each output's tangent; a tangent is None where zero.
        keeps: the indices of the tensors that the two rules read, or a function of the arguments
            that returns them; None for all. The others are not kept alive until the backward pass:
            a rule gets their shapes in their place.
        order: which derivative of the operator this launch computes; for the error message.
    """

    name: str
    schema: str
    tensors: int
    outputs: tuple[int, ...] | Callable[..., Tensor | tuple[Tensor, ...]]
    run: Callable[..., Any]
    plain: Callable[..., Any]
    vjp: Callable[..., Gradients] | None = None
    jvp: Callable[..., Tensor | tuple[Tensor, ...]] | None = None
    keeps: tuple[int, ...] | Callable[..., tuple[int, ...]] | None = None
    order: int = 0
    op: CustomOpDef = field(init=False)

    def __post_init__(self) -> None:
        # Registered at import: a compiler that is already tracing cannot register operators.
        object.__setattr__(self, "op", _custom_op(self))

    def __call__(self, *args: Any) -> Any:
        """Launch, on the route that this context calls for."""
        transformed = torch._C._are_functorch_transforms_active()
        if torch.compiler.is_compiling():
            # A custom_op refuses torch.func and drops forward_ad's tangents; a compiler fuses plain
            # PyTorch by itself.
            plain = transformed or forward_ad._current_level >= 0
            return self.plain(*args) if plain else self.op(*args)
        return self.functional(*args) if transformed else self.eager(*args)

    @cached_property
    def eager(self) -> Callable[..., Any]:
        """The ctx-style Function: the cheapest on the CPU."""
        return _eager_function(self).apply

    @cached_property
    def functional(self) -> Callable[..., Any]:
        """The setup_context Function, which grad, vjp, jvp and vmap of torch.func need."""
        return _functional_function(self).apply

    def split(self, args: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return (tensors, constants)."""
        return args[: self.tensors], args[self.tensors :]

    def remember(self, ctx: Any, args: Sequence[Any]) -> list[Tensor | None]:
        """Note on ctx what the rules will ask for; return the tensors among it, to be saved."""
        kept = range(self.tensors) if self.keeps is None else self.keeps
        ctx.kept = kept(*args) if callable(kept) else kept
        ctx.others = [
            None if i in ctx.kept else arg.shape if isinstance(arg, Tensor) else arg
            for i, arg in enumerate(args)
        ]
        return [args[i] for i in ctx.kept]

    @staticmethod
    def recall(ctx: Any) -> list[Any]:
        """Return the arguments that `remember` noted."""
        args = list(ctx.others)
        for i, tensor in zip(ctx.kept, ctx.saved_tensors):
            args[i] = tensor
        return args

    def gradients(self, via: Via, grads: Sequence[Tensor], args: Sequence[Any]) -> Gradients:
        """Return the vjp rule's answer, padded with None for the constants."""
        if self.vjp is None:
            raise NotImplementedError(
                f"dgan_kernels::{self.name} computes derivative {self.order} of its operator, the "
                f"highest its Triton kernels have; for a higher one, ask for backend='reference'"
            )
        return (*self.vjp(via, grads, *args), *[None] * (len(args) - self.tensors))

    def tangent(
        self, via: Via, tangents: Sequence[Any], args: Sequence[Any]
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the jvp rule's answer."""
        if self.jvp is None:
            raise NotImplementedError(
                f"dgan_kernels::{self.name} computes derivative {self.order} of its operator and "
                f"has no forward-mode rule; for a higher order, ask for backend='reference'"
            )
        return self.jvp(via, tangents[: self.tensors], *args)


def _custom_op(launch: Launch) -> CustomOpDef:
    op = custom_op(
        f"dgan_kernels::{launch.name}", launch.run, mutates_args=(), schema=launch.schema
    )

    def fake(*args: Any) -> Any:
        if callable(launch.outputs):
            return launch.outputs(*args)
        outputs = tuple(torch.empty_like(args[i]) for i in launch.outputs)
        return outputs[0] if len(launch.outputs) == 1 else outputs

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*launch.remember(ctx, inputs))

    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        return launch.gradients(attrgetter("op"), grads, launch.recall(ctx))

    op.register_fake(fake)
    op.register_autograd(backward, setup_context=setup_context)
    return op


def _eager_function(launch: Launch) -> type[torch.autograd.Function]:
    via = attrgetter("eager")

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            tensors = launch.remember(ctx, args)
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)
            return launch.run(*args)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Gradients:
            return launch.gradients(via, grads, launch.recall(ctx))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Tensor | tuple[Tensor, ...]:
            return launch.tangent(via, tangents, launch.recall(ctx))

    Eager.__name__ = launch.name
    return Eager


def _functional_function(launch: Launch) -> type[torch.autograd.Function]:
    via = attrgetter("functional")

    class Functional(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return launch.run(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            tensors = launch.remember(ctx, inputs)
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Gradients:
            return launch.gradients(via, grads, launch.recall(ctx))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Tensor | tuple[Tensor, ...]:
            return _one_level_down(partial(launch.tangent, via), tangents, launch.recall(ctx))

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
            tensors, constants = launch.split(args)
            # The batch goes first, where plain PyTorch broadcasts the tensors that lack it.
            batched = [
                t if t is None or d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims)
            ]
            outputs = launch.plain(*batched, *constants)
            return outputs, 0 if isinstance(outputs, Tensor) else (0,) * len(outputs)

    Functional.__name__ = launch.name
    return Functional


def _one_level_down(rule: Callable[..., Any], *args: Any) -> Any:
    """Call ``rule`` below the jvp of torch.func that asks for it, as PyTorch calls forward.

    At its own level forward mode is off, or the rule would call itself; but then (torch 2.13) what
    it adds up in plain PyTorch loses the tangents of a jvp around this one, silently.
    """
    if not torch._C._are_functorch_transforms_active():
        return rule(*args)
    interpreter = retrieve_current_functorch_interpreter()
    level = interpreter.level()
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    unwrap, wrap = functorch._unwrap_for_grad, functorch._wrap_for_grad
    args = tree_map_only(Tensor, lambda t: unwrap(t, level), args)
    with forward_ad._set_fwd_grad_enabled(True), interpreter.lower():
        result = rule(*args)
    return tree_map_only(Tensor, lambda t: wrap(t, level), result)
