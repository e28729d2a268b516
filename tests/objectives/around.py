"""One way to call an operator, and a network around it: helpers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from exactness import first, numbers
from torch import Tensor, nn

Operator = Callable[..., Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One way to call an operator: `call(h, weight, bias)` gives its arguments."""

    name: str
    shape: tuple[int, ...]
    call: Callable[[Tensor, Tensor, Tensor], Call]
    affine: tuple[int, ...] = ()


def name_of(operator: Operator) -> str:
    module = getattr(operator, "__module__", None) or "torch"
    return f"{module}.{getattr(operator, '__qualname__', operator.__name__)}"


class Around(nn.Module):
    """tanh(a∘x) → the operator → c tanh, so that the operator's second derivative matters."""

    def __init__(self, operator: Operator, case: Case) -> None:
        super().__init__()
        self.operator, self.case = operator, case
        self.a = nn.Parameter(numbers(*case.shape[1:], seed=1))
        self.c = nn.Parameter(numbers(1, seed=2))
        self.weight = nn.Parameter(1 + numbers(*case.affine, seed=3) / 2)
        self.bias = nn.Parameter(numbers(*case.affine, seed=4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        args, kwargs = self.case.call((self.a * x).tanh(), self.weight, self.bias)
        return self.c * first(self.operator(*args, **kwargs)).tanh()

    def input(self) -> Tensor:
        return numbers(*self.case.shape, seed=9)
