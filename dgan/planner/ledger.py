"""What a piece of training allocates, exchanges and computes, noted operation by operation.

It needs no numbers: tensors may be fake ones, of a network that no machine here could hold.
"""

import functools
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten, prim = torch.ops.aten, torch.ops.prim

WEIGHTS, OPTIMIZER, AVERAGE = "weights", "optimizer", "average"
GRADIENTS = "gradients"
IN_FLIGHT = "in flight"
"""Weights of other ranks, here for a while, and gradients on their way to them."""
ON_THEIR_WAY = "gradients on their way"
"""What a backward pass makes in the shape of a weight: parts of its gradient, not yet summed."""
CAST = "weights cast"
"""Copies of weights that autocast makes, and keeps for the backward pass."""
REST = "activations"
"""What nothing else claims: activations and their gradients, temporaries, the batch."""
STEPPING = "optimizer's temporaries"

COLLECTIVES = {
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
}
"""PyTorch's operators, also those of functional collectives, and what they do."""


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, *options: Any, **_: Any
) -> int:
    """As many as the convolution itself has for each of the gradients of x and of the weight."""
    transposed, wanted = options[-4], options[-1]
    places = x.shape if transposed else gradient.shape
    return 2 * x.shape[0] * math.prod(places[2:]) * weight.numel() * sum(wanted[:2])


FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # PyTorch takes groups for one, which is dozens of times too many.
    aten.convolution_backward: _convolution_backward,
    # PyTorch knows of those of a GPU alone.
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""PyTorch's operators, and what gives their FLOPs."""


@dataclass
class Allocation:
    """A stretch of a storage's life; `birth` and `death` count the ledger's events."""

    size: int
    label: str
    birth: int
    death: int | None = None


@dataclass
class Segment:
    """What was noted between two marks."""

    name: str
    start: int = 0
    """The event after which it begins."""
    flops: int = 0
    exchanged: Counter[str] = field(default_factory=Counter)
    """Bytes of the whole that each exchange is about: of what a gather gives, a reduction takes."""
    exchanges: Counter[str] = field(default_factory=Counter)
    if_kept: int = 0
    """Bytes that FSDP2 would gather if weights stayed from a forward to its backward pass."""
    peak: int = 0
    """Bytes, of all that lived at its worst moment."""


class Ledger(TorchDispatchMode):
    """Notes every allocation, exchange and product of matrices while it is entered.

    Memory is that of PyTorch's tensors, exactly; what an operation takes for itself while it runs
    is not seen. FLOPs are as in `torch.utils.flop_counter` (a multiplication and an addition are
    two): products of matrices, convolutions and attention. Where a decision depends on a number
    that a fake tensor does not have, the number is 1. An activation's gradient that happens to have
    a weight's shape is taken for the weight's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.allocations: list[Allocation] = []
        self.segments = [Segment("start")]
        self.events = self.live = 0
        self.unclaimed = REST
        self.kept: set[int] = set()
        """Storages that were gathered since this was cleared, or since their backward pass."""
        self._held: dict[int, tuple[Any, Allocation]] = {}
        self._of_weights: set[tuple[int, ...]] = set()

    def __enter__(self) -> Self:
        # FSDP2 frees and fills storages in place, which no operation shows.
        self._resize = torch.UntypedStorage.resize_
        ledger, resize = self, self._resize

        @functools.wraps(resize)
        def resize_(storage: Any, size: int) -> Any:
            result = resize(storage, size)
            ledger.resized(storage)
            return result

        torch.UntypedStorage.resize_ = resize_  # pyright: ignore[reportAttributeAccessIssue]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # to see what it does with its local part
        if func is prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        kwargs = kwargs or {}
        try:
            out = func(*args, **kwargs)
        except DataDependentOutputException:
            if func is not aten._local_scalar_dense.default:
                raise
            return 1.0 if args[0].is_floating_point() else 1
        if formula := FLOPS.get(func._overloadpacket):
            self.segments[-1].flops += formula(*args, **kwargs, out_val=out)
        if func.namespace in ("c10d", "_c10d_functional"):
            self._exchanged(func, args)
        for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        if func is aten._to_copy.default and self.label_of(args[0]) == WEIGHTS:
            self.label(CAST, [out])
        return out

    def _exchanged(self, func: Any, args: tuple) -> None:
        collective = COLLECTIVES.get(func._overloadpacket.__name__)
        if collective is None:
            return
        # c10d's take the output first; where it is the smaller one, the whole comes second.
        whole = args[func.namespace == "c10d" and collective == "reduce_scatter"]
        segment = self.segments[-1]
        segment.exchanges[collective] += 1
        segment.exchanged[collective] += bytes_of(whole)
        if func.namespace == "c10d" and collective in ("all_gather", "reduce_scatter"):
            self.label(IN_FLIGHT, tree_leaves(whole))

    def note(self, tensor: Tensor) -> None:
        """Take a tensor into account."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._held and (size := storage.nbytes()):
            is_gradient = in_backward() and tuple(tensor.shape) in self._of_weights
            self._allocate(storage, size, ON_THEIR_WAY if is_gradient else self.unclaimed)

    @property
    def flops(self) -> int:
        """Of all that was noted so far."""
        return sum(segment.flops for segment in self.segments)

    def mark(self, name: str, unclaimed: str = REST) -> None:
        """Begin a segment; new memory is labelled `unclaimed` in it until something claims it."""
        self.unclaimed = unclaimed
        self.segments.append(Segment(name, start=self.events, peak=self.live))

    def label(self, label: str, tensors: Iterable[Any]) -> None:
        """Say what the memory of `tensors` is for, since it was allocated."""
        for tensor in tensors:
            if label == WEIGHTS:
                self._of_weights |= {tuple(tensor.shape), tuple(tensor.shape[::-1])}
            if isinstance(tensor, DTensor):
                tensor = tensor.to_local()
            if isinstance(tensor, Tensor):
                self.note(tensor)
                held = self._held.get(tensor.untyped_storage()._cdata)
                if held is not None:
                    held[1].label = label

    def label_of(self, tensor: Tensor) -> str | None:
        """What the memory of a tensor is for."""
        held = self._held.get(tensor.untyped_storage()._cdata)
        return None if held is None else held[1].label

    def resized(self, storage: Any) -> None:
        """A storage was freed, or filled anew, in place."""
        key = storage._cdata
        self._free(key)
        if size := storage.nbytes():
            self._allocate(storage, size, IN_FLIGHT)
            self.segments[-1].if_kept += 0 if key in self.kept else size
            self.kept.add(key)
        elif in_backward():
            self.kept.discard(key)

    def _allocate(self, storage: Any, size: int, label: str) -> None:
        self.events += 1
        self.live += size
        key = storage._cdata
        allocation = Allocation(size, label, self.events)
        self.allocations.append(allocation)
        self._held[key] = (weakref.ref(storage, lambda _: self._free(key, allocation)), allocation)
        self.segments[-1].peak = max(self.segments[-1].peak, self.live)

    def _free(self, key: int, allocation: Allocation | None = None) -> None:
        held = self._held.get(key)
        if held is None or (allocation is not None and held[1] is not allocation):
            return
        del self._held[key]
        self.events += 1
        self.live -= held[1].size
        held[1].death = self.events


def in_backward() -> bool:
    """Whether autograd is at work."""
    return torch._C._current_graph_task_id() != -1


def bytes_of(structure: Any) -> int:
    """Of all tensors in it."""
    return sum(
        t.numel() * t.element_size() for t in tree_leaves(structure) if isinstance(t, Tensor)
    )
