"""How an operator treats dual numbers: value and tangent apart, by a rule, and together again.

PyTorch's forward mode multiplies by zeros where an argument has no tangent, again in reverse, and
differentiates piece by piece what it computed for the tangent. A rule computes both as plain
tensors that ordinary autograd differentiates. It must be exact or decline.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function, forward_ad

Operator = Callable[..., Any]
Pair = tuple[Tensor, Tensor]
"""A value and its tangent, two plain tensors of one shape."""


def tangent_of(argument: Any) -> Tensor | None:
    """The tangent of a dual number; None of anything else."""
    return forward_ad.unpack_dual(argument).tangent if isinstance(argument, Tensor) else None


def primal_of(argument: Any) -> Any:
    """The value of a dual number; anything else as it is."""
    return forward_ad.unpack_dual(argument).primal if isinstance(argument, Tensor) else argument


def on_dual(function: type[Function], x: Tensor, *constants: Any) -> Tensor:
    """An `autograd.Function` from `(x, ẋ, *constants)` to `(y, ẏ)`, applied to a dual number."""
    return forward_ad.make_dual(*function.apply(*forward_ad.unpack_dual(x), *constants))


def by_rule(rule: Callable[..., Pair | None], operator: Operator) -> Operator:
    """`operator`, where its first argument alone has a tangent, by a rule.

    Args:
        rule: `(x, ẋ, *further arguments)` to `(y, ẏ)`, or None for a call it does not cover.
        operator: takes all other calls; their tangents are PyTorch's.
    """

    def replacement(input: Tensor, *args: Any, **named: Any) -> Any:
        tangent = tangent_of(input)
        elsewhere = any(tangent_of(argument) is not None for argument in (*args, *named.values()))
        if tangent is None or elsewhere:
            return operator(input, *args, **named)
        pair = rule(primal_of(input), tangent, *args, **named)
        return operator(input, *args, **named) if pair is None else forward_ad.make_dual(*pair)

    return replacement


def linear_in_input(operator: Operator) -> Operator:
    """`operator(input, weight, bias, ...)`: y = op(x, W) + b and ẏ = op(ẋ, W)."""

    def rule(
        x: Tensor,
        tangent: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *rest: Any,
        **named: Any,
    ) -> Pair:
        y = operator(x, weight, bias, *rest, **named)
        return y, operator(tangent, weight, None, *rest, **named)

    return by_rule(rule, operator)


def product(operator: Operator) -> Operator:
    """`operator(left, right)`, linear in either: with one tangent, ẏ = op(ẋ, right)."""

    def replacement(input: Any, other: Any, **named: Any) -> Any:
        left, right = tangent_of(input), tangent_of(other)
        if named or (left is None) == (right is None):
            return operator(input, other, **named)
        x, y = primal_of(input), primal_of(other)
        tangent = operator(x, right) if left is None else operator(left, y)
        return forward_ad.make_dual(operator(x, y), tangent)

    return replacement


def total(operator: Operator) -> Operator:
    """`operator(left, right)`, a sum: where one of the two has a tangent, that is the sum's."""

    def replacement(input: Any, other: Any, **named: Any) -> Any:
        left, right = tangent_of(input), tangent_of(other)
        if named or (left is None) == (right is None):
            return operator(input, other, **named)
        y = operator(primal_of(input), primal_of(other))
        tangent: Any = right if left is None else left
        # A copy: changing the sum in place must not change the summand's tangent.
        return forward_ad.make_dual(y, tangent.expand_as(y).to(y.dtype, copy=True))

    return replacement
