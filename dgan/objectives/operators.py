"""What the tangent pass of a penalty computes in place of PyTorch's operators.

That pass differentiates, in reverse, what forward mode computed. For some operators this is
silently wrong in PyTorch (layer, instance and training batch normalisation, pytorch issues 196700
and 196699), for others an error (softmax, attention, GLU). Inside `differentiable_tangents()` each
is replaced by one that is exact, also in code that nobody can change; and operators that are exact
but wasteful by one that is not. `tests/objectives/test_operators*.py` walk these tables and the
layers of `torch.nn`.
"""

import types
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from dgan.objectives import dual_functions, replacements
from dgan.objectives.dual_rules import Operator, by_rule, linear_in_input, product, total


def behind_the_override(function: Operator) -> Operator:
    """A composite of `torch.nn.functional` that does not ask for overrides of itself again."""
    asks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    unaware = {**function.__globals__, **dict.fromkeys(asks, lambda *_: False)}
    copy = types.FunctionType(function.__code__, unaware, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


OPERATORS: dict[Operator, Operator] = {
    F.layer_norm: replacements.layer_norm,
    torch.layer_norm: replacements.layer_norm,
    F.instance_norm: replacements.instance_norm,
    torch.instance_norm: replacements.native_instance_norm,
    F.batch_norm: replacements.batch_norm,
    torch.batch_norm: replacements.native_batch_norm,
    torch.softmax: replacements.softmax,
    torch.special.softmax: replacements.softmax,
    Tensor.softmax: replacements.softmax,
    F.softmax: replacements.functional_softmax,
    F.softmin: replacements.functional_softmin,
    torch.log_softmax: replacements.log_softmax,
    torch.special.log_softmax: replacements.log_softmax,
    Tensor.log_softmax: replacements.log_softmax,
    F.log_softmax: replacements.functional_log_softmax,
    F.glu: replacements.glu,
    F.hardsigmoid: replacements.hardsigmoid,
    F.scaled_dot_product_attention: replacements.scaled_dot_product_attention,
}
"""Operators whose forward mode PyTorch cannot differentiate, and what replaces them."""

CHEAPER: dict[Operator, Operator] = {
    **{
        operator: linear_in_input(operator)
        for operator in (
            F.linear,
            *(F.conv1d, F.conv2d, F.conv3d),
            *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        )
    },
    **{
        operator: product(operator)
        for operator in (torch.matmul, Tensor.matmul, torch.mul, Tensor.mul)
    },
    **{operator: total(operator) for operator in (torch.add, Tensor.add)},
    F.leaky_relu: by_rule(dual_functions.leaky_relu, F.leaky_relu),
    F.gelu: by_rule(dual_functions.gelu, F.gelu),
    F.silu: by_rule(dual_functions.silu, F.silu),
    F.group_norm: replacements.group_norm,
    torch.group_norm: replacements.group_norm,
    F.rms_norm: replacements.rms_norm,
    torch.rms_norm: replacements.rms_norm,
}
"""Operators that are exact in PyTorch too, and what is faster or keeps less."""

COMPOSITES: dict[Operator, Operator] = {
    F.multi_head_attention_forward: behind_the_override(F.multi_head_attention_forward),
    F.gumbel_softmax: behind_the_override(F.gumbel_softmax),
}
"""Functions written in Python that call operators of the table."""


class Replaced(TorchFunctionMode):
    """While active, the functions of a table are replaced.

    Args:
        table: each function and what is called instead.
        composites: functions that call others of the table, and how to call them past the
            override; the mode stays on inside.
    """

    def __init__(
        self, table: dict[Operator, Operator], composites: dict[Operator, Operator]
    ) -> None:
        super().__init__()
        self.table, self.composites = table, composites

    def __torch_function__(
        self,
        func: Operator,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.composites:
            with self:  # inside here the mode is off; what the composite calls needs it again
                return self.composites[func](*args, **kwargs)
        return self.table.get(func, func)(*args, **kwargs)


def differentiable_tangents(backend: str | None = None) -> Replaced:
    """A context in which tangents pass the operators of both tables exactly, and cheaply.

    What is replaced around it already stays so, for example kinks that are rounded. `backend` is
    that of the kernels among what replaces, as in `dgan_kernels.attention_jvp`.
    """
    outer = [m for m in _get_current_function_mode_stack() if isinstance(m, Replaced)]
    taken = {function for mode in outer for function in mode.table}
    ours = {**CHEAPER, **OPERATORS}
    attention = F.scaled_dot_product_attention
    ours[attention] = partial(ours[attention], backend=backend)
    return Replaced({f: ours[f] for f in ours.keys() - taken}, COMPOSITES)
