"""Convolutions that are differentiated twice by the library's own kernels.

PyTorch makes the second derivative of a convolution from convolutions of transposed tensors, in the
weights' part one for each group. But a convolution is bilinear, and so are its two derivatives, for
which libraries have kernels: the gradients of the input and of the weights. The three are closed
under differentiation, to any order.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

Sizes = int | Sequence[int]


class Geometry(NamedTuple):
    """What `aten.convolution` takes behind its tensors."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


class BilinearConvolutions(TorchFunctionMode):
    """Within it, networks that call `torch.conv1d` to `3d` or their transposes get these.

    Left as they are: those that autograd does not record, and those whose weights depend on the
    network's input `x`, a leaf: they have a share in its gradient.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x
        self.only_input = False

    @contextmanager
    def gradient_of_input(self) -> Iterator[None]:
        """Within it no gradient of a weight is computed.

        autograd computes no gradient that nobody asked for, but cannot tell a `Function` which
        these are.
        """
        self.only_input = True
        try:
            yield
        finally:
            self.only_input = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """`func` itself, unless it is a convolution that autograd records."""
        kwargs = kwargs or {}
        if func not in _PARSERS:
            return func(*args, **kwargs)
        x, weight, bias, geometry = _PARSERS[func](*args, **kwargs)
        recorded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if not recorded or geometry is None or x.ndim != weight.ndim or depends(weight, self.x):
            return func(*args, **kwargs)
        if torch.is_autocast_enabled(x.device.type):
            narrow = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(narrow), weight.to(narrow)
            bias = None if bias is None else bias.to(narrow)
        y: Any = _Convolution.apply(x, weight, geometry, self)
        return y if bias is None else y + bias.view(-1, *(1,) * (weight.ndim - 2))


def depends(tensor: Tensor, leaf: Tensor) -> bool:
    """Whether autograd would come from `tensor` to `leaf`.

    From weights it is not far to their parameters, whatever normalises them.
    """
    if tensor is leaf:
        return True
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if getattr(node, "variable", None) is leaf:
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


def _ordinary(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1,
    padding: Sizes | str = 0, dilation: Sizes = 1, groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Geometry | None]:  # fmt: skip
    if isinstance(padding, str):
        return input, weight, bias, None
    each = partial(_each, axes=weight.ndim - 2)
    sizes = each(stride), each(padding), each(dilation)
    return input, weight, bias, Geometry(*sizes, False, each(0), groups)


def _transposed(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1,
    padding: Sizes = 0, output_padding: Sizes = 0, groups: int = 1, dilation: Sizes = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Geometry | None]:  # fmt: skip
    each = partial(_each, axes=weight.ndim - 2)
    sizes = each(stride), each(padding), each(dilation)
    return input, weight, bias, Geometry(*sizes, True, each(output_padding), groups)


def _each(value: Sizes, axes: int) -> Sequence[int]:
    return (value,) * axes if isinstance(value, int) else value


_PARSERS: dict[Any, Callable[..., tuple[Tensor, Tensor, Tensor | None, Geometry | None]]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _ordinary),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed
    ),
}
"""What reads the arguments of each; no geometry: one that is left to PyTorch."""


def _like(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Memory in the order of `tensor`'s, not filled: only its shape and order are read."""
    order = torch.contiguous_format
    if tensor.ndim > 3 and not tensor.is_contiguous():
        last = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
        order = last if tensor.is_contiguous(memory_format=last) else order
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=order)


class _Convolution(Function):
    """x and w to y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry, mode: BilinearConvolutions | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.mode = geometry, mode
        return torch.ops.aten.convolution(x, weight, None, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        to_x, to_weight = ctx.needs_input_grad[:2]
        to_weight &= ctx.mode is None or not ctx.mode.only_input
        return (
            _ToInput.apply(grad, weight, x.shape, ctx.geometry) if to_x else None,
            _ToWeight.apply(grad, x, weight.shape, ctx.geometry) if to_weight else None,
            None,
            None,
        )


class _ToInput(Function):
    """y's gradient g and w to x's."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.geometry = geometry
        mask = (True, False, False)
        return torch.ops.aten.convolution_backward(
            grad, _like(grad, shape), weight, None, *geometry, mask
        )[0]

    @staticmethod
    def backward(ctx: Any, to_x: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        grad, weight = ctx.saved_tensors
        to_grad, to_weight = ctx.needs_input_grad[:2]
        return (
            _Convolution.apply(to_x, weight, ctx.geometry, None) if to_grad else None,
            _ToWeight.apply(grad, to_x, weight.shape, ctx.geometry) if to_weight else None,
            None,
            None,
        )


class _ToWeight(Function):
    """y's gradient g and x to w's."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(grad, x)
        ctx.geometry = geometry
        mask = (False, True, False)
        return torch.ops.aten.convolution_backward(
            grad, x, grad.new_empty(shape), None, *geometry, mask
        )[1]

    @staticmethod
    def backward(ctx: Any, to_weight: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        grad, x = ctx.saved_tensors
        to_grad, to_x = ctx.needs_input_grad[:2]
        return (
            _Convolution.apply(x, to_weight, ctx.geometry, None) if to_grad else None,
            _ToInput.apply(grad, to_weight, x.shape, ctx.geometry) if to_x else None,
            None,
            None,
        )
