"""A network's value and its derivative along a direction, in one pass that reverse mode can follow.

Dual numbers carry the tangent through the network's own code. Where a module has hooks (FSDP2,
DeepSpeed and activation checkpointing work through them), value and tangent cross as two ordinary
tensors: the hooks see nothing unusual, so nothing of them is patched.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from dgan.objectives.operators import differentiable_tangents

Tangents = list[tuple[int, Tensor]]
"""Which leaves of a structure have a tangent, and it."""


def value_and_tangent(
    function: Callable[..., Tensor], x: Tensor, direction: Tensor, *conditions: Any
) -> tuple[Tensor, Tensor]:
    """f(x) and ∂f(x)·direction; reverse mode may differentiate both in f's parameters.

    Args:
        function: a module, or a function around modules.
        x: floating point, detached.
        direction: of the shape and dtype of `x`, detached.
        conditions: further arguments, without tangent.

    Raises:
        ValueError: an operator has no forward mode, or the result does not depend on `x`.
    """
    with ExitStack() as stack:
        stack.enter_context(_dual_level())
        stack.enter_context(differentiable_tangents())
        for module in modules_of(function):
            if _is_boundary(module):
                stack.enter_context(_plain_across(module))
        try:
            result = function(forward_ad.make_dual(x, direction), *conditions)
        except NotImplementedError as error:
            raise ValueError(_no_forward_mode(error)) from error
        output, tangent = forward_ad.unpack_dual(result)
    if tangent is None:
        raise ValueError(
            "no tangent reached the discriminator's output: it does not depend on x, or an "
            "operation on the way (a custom_op, .data, NumPy) drops tangents"
        )
    return output, tangent


def modules_of(function: Callable[..., Any]) -> Iterator[nn.Module]:
    """Every module that a call of `function` may reach, each once.

    Looked for in it, in what it closes over or is bound to, and in what wraps a module under the
    name `module`, as DDP and DeepSpeed's engine do.
    """
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        if isinstance(holder, nn.Module):
            yield holder
            waiting += holder.children()
        elif callable(holder) and not isinstance(holder, type):
            cells = getattr(holder, "__closure__", None) or ()
            waiting += [cell.cell_contents for cell in cells]
            waiting += [getattr(holder, name, None) for name in ("__self__", "module", "func")]


def is_checkpointed(module: nn.Module) -> bool:
    """Whether `module` recomputes its activations, by dgan's or by PyTorch's wrapper."""
    return _recomputed(module) is not None


def _is_boundary(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks or module._forward_hooks
    return bool(hooks) or is_checkpointed(module)


@contextmanager
def _plain_across(module: nn.Module) -> Iterator[None]:
    """Let `module`'s hooks see values and tangents as ordinary tensors."""

    def separate(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        (args, kwargs), tangents = _split((args, kwargs))
        return args, {**kwargs, "dgan_tangents": tangents}

    def unite(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return _join(*output)

    inner = _recomputed(module)
    plain = _on_plain(module.forward if inner is None else inner)
    if inner is not None:
        plain = _checkpointing(plain)
    before = module.__dict__.get("forward")
    # Ours is the first hook before the call and the last one after it.
    first = module.register_forward_pre_hook(separate, prepend=True, with_kwargs=True)
    last = module.register_forward_hook(unite, with_kwargs=True)
    module.forward = plain
    try:
        yield
    finally:
        first.remove()
        last.remove()
        del module.forward
        if before is not None:
            module.forward = before


def _on_plain(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` on dual numbers, from ordinary tensors and to ordinary tensors."""

    def run(*args: Any, dgan_tangents: Tangents, **kwargs: Any) -> tuple[Any, Tangents]:
        # Entered again here because checkpointing calls this from the backward pass.
        with _dual_level(), differentiable_tangents(), forward_ad._set_fwd_grad_enabled(True):
            args, kwargs = _join((args, kwargs), dgan_tangents)
            return _split(forward(*args, **kwargs))

    return run


def _checkpointing(run: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    return forward


def _recomputed(module: nn.Module) -> Callable[..., Any] | None:
    """What an activation-checkpointed module recomputes."""
    ours = getattr(module.__dict__.get("forward"), "recomputes", None)
    return ours or getattr(module, "_checkpoint_wrapped_module", None)


@contextmanager
def _dual_level() -> Iterator[None]:
    """PyTorch has one level of dual numbers: enter it unless it is entered."""
    if forward_ad._current_level >= 0:
        yield
    else:
        with forward_ad.dual_level():
            yield


def _split(structure: Any) -> tuple[Any, Tangents]:
    leaves, spec = tree_flatten(structure)
    tangents: Tangents = []
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            primal, tangent = forward_ad.unpack_dual(leaf)
            if tangent is not None:
                # A copy: FSDP2 distrusts views, which unpacking makes.
                leaves[index] = primal.clone()
                tangents.append((index, tangent))
    return tree_unflatten(leaves, spec), tangents


def _join(structure: Any, tangents: Tangents) -> Any:
    leaves, spec = tree_flatten(structure)
    for index, tangent in tangents:
        leaves[index] = forward_ad.make_dual(leaves[index], tangent)
    return tree_unflatten(leaves, spec)


def _no_forward_mode(error: NotImplementedError) -> str:
    """Name the innermost module whose code was running when forward mode failed."""
    module, trace = None, error.__traceback__
    while trace is not None:
        candidate = trace.tb_frame.f_locals.get("self")
        module = candidate if isinstance(candidate, nn.Module) else module
        trace = trace.tb_next
    where = "the discriminator" if module is None else type(module).__name__
    return (
        f"{where} has an operation without forward mode: {str(error).splitlines()[0]} Give its "
        "autograd.Function a `jvp`, or take method='double' where the parameters are not sharded"
    )


@contextmanager
def same_randomness(
    function: Callable[..., Any], device: torch.device
) -> Iterator[Callable[[], None]]:
    """Yield a function that turns back random numbers and buffers to where they were here.

    Both passes of a penalty must see the same dropout masks and the same power iteration, and
    running statistics must advance once.
    """
    buffers = [
        buffer for module in modules_of(function) for buffer in module.buffers(recurse=False)
    ]
    before = [buffer.clone() for buffer in buffers]
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def turn_back() -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        with torch.no_grad():
            for buffer, old in zip(buffers, before):
                buffer.copy_(old)

    yield turn_back
