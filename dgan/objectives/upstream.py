"""What a penalty needs to know and to set inside FSDP2, DDP and DeepSpeed.

The one file of `objectives` that reads what they do not document. Nothing is patched: flags are set
for one pass and set back. `tests/distributed/test_communication.py` fails when a release
changes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

FLAGS = ("reduce_grads", "all_reduce_grads", "reshard_after_backward", "post_forward_mesh_info")
"""Of FSDP2's parameter groups: reduce gradients over shards, and over copies; free weights after
the backward pass; and after the forward pass (None: keep them)."""


def parameter_groups(module: FSDPModule) -> list[Any]:
    """FSDP2's groups of the parameters that `module` gathers.

    Raises:
        RuntimeError: this release of PyTorch keeps them elsewhere.
    """
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):  # since torch 2.13
        groups = list(state._fsdp_param_groups)
    else:
        groups = [state._fsdp_param_group] if state._fsdp_param_group is not None else []
    if any(not hasattr(group, flag) for group in groups for flag in FLAGS):
        raise RuntimeError("FSDP2 of this release of PyTorch is not known to dgan")
    return groups


def frees_between_backwards(module: nn.Module) -> bool:
    """Whether FSDP2 frees weights of `module` that a second differentiation needs."""
    if not isinstance(module, FSDPModule):
        return False
    return any(group.reshard_after_backward for group in parameter_groups(module))


def gathered_dtype(module: FSDPModule) -> torch.dtype | None:
    """The dtype in which FSDP2 gathers the parameters of `module`; None: their own."""
    return next((group.mp_policy.param_dtype for group in parameter_groups(module)), None)


def is_engine(module: nn.Module) -> bool:
    """Whether `module` is a DeepSpeed engine."""
    return any(kind.__module__ == "deepspeed.runtime.engine" for kind in type(module).__mro__)


@contextmanager
def first_pass(module: nn.Module, *, keep_unsharded: bool = False) -> Iterator[None]:
    """Around a forward and a backward to the input that leave no gradient of a parameter.

    FSDP2 would reduce what was accumulated before; DDP and DeepSpeed would take the backward for
    their own. `keep_unsharded` lets FSDP2 keep what it gathers.
    """
    if isinstance(module, FSDPModule):
        with _without_reduction(module, keep_unsharded):
            yield
    elif isinstance(module, DistributedDataParallel) or is_engine(module):
        with unwrapped(module):
            yield
    else:
        yield


@contextmanager
def _without_reduction(module: FSDPModule, keep_unsharded: bool) -> Iterator[None]:
    # At its first forward FSDP2 still sets these itself.
    keep = keep_unsharded and module._get_fsdp_state()._is_root is not None
    set_to: dict[str, Any] = {"reduce_grads": False, "all_reduce_grads": False}
    if keep:
        set_to |= {"reshard_after_backward": False, "post_forward_mesh_info": None}
    groups = parameter_groups(module)
    before = [{flag: getattr(group, flag) for flag in set_to} for group in groups]
    for group in groups:
        vars(group).update(set_to)
    try:
        yield
    finally:
        for group, flags in zip(groups, before):
            vars(group).update(flags)


@contextmanager
def unwrapped(wrapper: Any) -> Iterator[None]:
    """Let DDP or an engine only call what it wraps."""
    if is_engine(wrapper):
        # What its forward does before: drop what the last micro-batch left.
        wrapper.optimizer.clear_backward_seen_flag()
    before = wrapper.__dict__.get("forward")
    wrapper.forward = wrapper.module.__call__
    try:
        yield
    finally:
        del wrapper.forward
        if before is not None:
            wrapper.forward = before
