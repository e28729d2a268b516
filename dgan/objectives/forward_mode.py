"""A network's value and its derivative along a direction, in one pass that reverse mode can follow.

Dual numbers carry the tangent through the network's own code, the user's hooks included. Hooks of
FSDP2 and DeepSpeed, and activation checkpointing, get value and tangent as two ordinary tensors:
they see nothing unusual, so nothing of them is patched.
"""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.checkpoint import checkpoint

from dgan.objectives.operators import differentiable_tangents

Tangents = list[tuple[int, Tensor]]
"""Which leaves of a structure have a tangent, and it."""


def value_and_tangent(
    function: Callable[..., Tensor],
    x: Tensor,
    direction: Tensor,
    *conditions: Any,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """f(x) and ∂f(x)·direction; reverse mode may differentiate both in f's parameters.

    Args:
        function: a module, or a function around modules.
        x: floating point, detached.
        direction: of the shape and dtype of `x`, detached.
        conditions: further arguments, without tangent.
        backend: of the kernels that replace PyTorch's operators; see `dgan_kernels.attention_jvp`.

    Raises:
        ValueError: an operator has no forward mode, or the result does not depend on `x`.
    """
    with _tangents_through(function, backend):
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

    Looked for in it, in what it closes over, is bound to or names in its module, and in what wraps
    a module, as `functools.partial`, DDP and DeepSpeed's engine do.
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
        elif isinstance(holder, (list, tuple)):
            waiting += holder
        elif isinstance(holder, dict):
            waiting += holder.values()
        elif not isinstance(holder, (type, types.ModuleType)):
            waiting += _held_by(holder)


def _held_by(holder: Any) -> Iterator[Any]:
    """What a function refers to; of any other object, its attributes that are modules."""
    for cell in getattr(holder, "__closure__", None) or ():
        with suppress(ValueError):  # a cell that is still empty
            yield cell.cell_contents
    names: tuple[str, ...] = ("__self__", "__func__", "__wrapped__", "module", "func")
    if callable(holder):
        yield from (getattr(holder, name, None) for name in names)
    if isinstance(holder, functools.partial):
        yield from (holder.args, holder.keywords)
    attributes = dict(getattr(holder, "__dict__", {}))
    if isinstance(holder, types.FunctionType):
        attributes = {name: holder.__globals__.get(name) for name in holder.__code__.co_names}
    yield from (held for held in attributes.values() if isinstance(held, nn.Module))


def is_checkpointed(module: nn.Module) -> bool:
    """Whether `module` recomputes its activations, by dgan's or by PyTorch's wrapper."""
    return _recomputed(module) is not None


@contextmanager
def _tangents_through(function: Callable[..., Any], backend: str | None) -> Iterator[None]:
    """Let dual numbers through every module that `function` reaches."""
    with ExitStack() as stack:
        stack.enter_context(_dual_level())
        stack.enter_context(differentiable_tangents(backend))
        for module in modules_of(function):
            stack.enter_context(_plain_for_hooks(module))
            stack.enter_context(_plain_for_checkpoint(module, backend))
        yield


@contextmanager
def _plain_for_hooks(module: nn.Module) -> Iterator[None]:
    """Let the hooks of sharding see values and tangents as ordinary tensors.

    Other hooks see dual numbers: what they compute has a tangent too.
    """
    replaced: list[tuple[dict[int, Any], int, Any]] = []
    before, after = module._forward_pre_hooks, module._forward_hooks
    for hooks, plain in ((before, _pre_hook_on_plain), (after, _hook_on_plain)):
        for key, hook in list(hooks.items()):
            if _shards(hook):
                replaced.append((hooks, key, hook))
                hooks[key] = plain(hook)
    try:
        yield
    finally:
        for hooks, key, hook in replaced:
            if key in hooks:
                hooks[key] = hook


def _shards(hook: Any) -> bool:
    """Whether a hook is FSDP2's or DeepSpeed's, whose autograd Functions have no forward mode."""
    origin = getattr(getattr(hook, "func", hook), "__module__", None) or ""
    return origin.startswith(("torch.distributed.", "deepspeed."))


def _pre_hook_on_plain(hook: Callable[..., Any]) -> Callable[..., Any]:
    def run(module: nn.Module, args: Any, *maybe_kwargs: Any) -> Any:
        if maybe_kwargs:
            # FSDP2 has to see the tangents too: the backward pass may arrive through them alone.
            (args, kwargs), tangents = _split((args, *maybe_kwargs))
            kwargs = {**kwargs, "dgan_tangents": tangents}
            args, kwargs = hook(module, args, kwargs) or (args, kwargs)
            tangents = kwargs.pop("dgan_tangents")
            return _join((args, kwargs), tangents)
        args, tangents = _split(args)
        result = hook(module, args)
        result = args if result is None else result
        return _join(result if isinstance(result, tuple) else (result,), tangents)

    return run


def _hook_on_plain(hook: Callable[..., Any]) -> Callable[..., Any]:
    def run(module: nn.Module, *arguments_and_output: Any) -> Any:
        *arguments, output = arguments_and_output
        primals = tree_map_only(Tensor, lambda x: forward_ad.unpack_dual(x).primal, arguments)
        plain = _split(output)
        result = hook(module, *primals, plain)
        return _join(*(plain if result is None else result))

    return run


@contextmanager
def _plain_for_checkpoint(module: nn.Module, backend: str | None) -> Iterator[None]:
    """Let what `module` recomputes take and give ordinary tensors, tangents beside values."""
    inner, before = _recomputed(module), module.__dict__.get("forward")
    if inner is None or hasattr(before, "carries_tangents"):
        yield
        return
    module.forward = _checkpointing(inner, backend)
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _checkpointing(inner: Callable[..., Any], backend: str | None) -> Callable[..., Any]:
    def on_plain(structure: Any, tangents: Tangents) -> tuple[Any, Tangents]:
        # Entered again here because checkpointing calls this from the backward pass.
        with _tangents_through(inner, backend), forward_ad._set_fwd_grad_enabled(True):
            args, kwargs = _join(structure, tangents)
            return _split(inner(*args, **kwargs))

    def forward(*args: Any, **kwargs: Any) -> Any:
        return _join(*checkpoint(on_plain, *_split((args, kwargs)), use_reentrant=False))

    forward.carries_tangents = True  # pyright: ignore[reportFunctionMemberAccess]
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
        if trace.tb_frame.f_globals.get("__name__") == "deepspeed.runtime.zero.linear":
            return (
                "DeepSpeed's own linear layer has no forward mode: set "
                "zero_optimization.memory_efficient_linear to false"
            )
        candidate = trace.tb_frame.f_locals.get("self")
        module = candidate if isinstance(candidate, nn.Module) else module
        trace = trace.tb_next
    where = "the discriminator" if module is None else type(module).__name__
    return (
        f"{where} has an operation without forward mode: {str(error).splitlines()[0]} Give its "
        "autograd.Function a `jvp`, or take method='double' where the parameters are not sharded"
    )


def same_randomness(function: Callable[..., Any], device: torch.device) -> Callable[[], None]:
    """A function that turns back random numbers and buffers to where they were here.

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
        for buffer, old in zip(buffers, before):
            # Not counted as a change: an earlier graph may have saved a buffer that stays as it is.
            buffer.data.copy_(old)

    return turn_back
