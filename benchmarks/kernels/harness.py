"""Times of an operator by order of derivative, beside what a user would pick instead.

`operators.py` is the registry; `run.py` the command. GB/s are the bytes that no implementation can
avoid (`Operator.sweeps`, in passes over a tensor of x's size) over the time, so that a provider
which moves more of them shows less; `of_copy` divides by a copy measured in the same run. The
gradients of parameters are asked for as in training, and their bytes are not counted.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

REPEATS, WARMUP = 30, 5
COMPILE, FUNC = "compile", "compile(func.grad)"
PROVIDERS = ("eager", "ours", COMPILE, FUNC)
"""What a user would write; dgan_kernels; torch.compile of the former, which PyTorch does not
differentiate twice; and torch.compile of its gradient by torch.func, the strongest that stock
PyTorch has for a gradient that is differentiated again. The last two take seconds to compile."""
FEASIBLE = {COMPILE: ("forward", "backward", "dx"), FUNC: ("dx", "second")}
"""The orders of those that do not have all; PyTorch does not compile forward mode."""

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One operator on one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: str = "contiguous"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        words = ["x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        words += [] if self.layout == "contiguous" else [self.layout]
        return " ".join([*words, *(f"{k}={v}" for k, v in self.options.items() if v is not None)])


@dataclass(frozen=True)
class Operator:
    """An operator of dgan_kernels, and how to measure it.

    Attributes:
        name: its own.
        call: `(x, *parameters, backend=, **options)` to one tensor.
        parameters: what it takes besides x, from the case and a function that draws.
        sweeps: by order of derivative (forward, backward, dx, second, tangent), passes over x.
        cases: for a GPU. small: for Triton's interpreter.
        eager: what a user would write in its place; by default its plain PyTorch reference.
    """

    name: str
    call: Function
    parameters: Callable[[Case, Callable[..., Tensor]], list[Tensor]]
    sweeps: Callable[[Case], dict[str, float]]
    cases: tuple[Case, ...]
    small: tuple[Case, ...]
    eager: Callable[[Case], Function] | None = None

    def providers(self, case: Case) -> list[str]:
        """Who has any of the orders. torch.compile takes seconds: only in one dtype and layout."""
        common = case.dtype == torch.bfloat16 and case.layout == "contiguous"
        sweeps = self.sweeps(case)
        able = [p for p in PROVIDERS if not sweeps.keys().isdisjoint(FEASIBLE.get(p, sweeps))]
        return able if common else able[:2]

    def provider(self, name: str, case: Case) -> Function:
        """The operator as a function of x and its parameters."""
        backend = "triton" if name == "ours" else "reference"
        if name != "ours" and self.eager is not None:
            return self.eager(case)
        return partial(self.call, backend=backend, **case.options)


def tensors(operator: Operator, case: Case, device: str) -> tuple[list[Tensor], Tensor]:
    """x and parameters, which require grad, and v, the direction of the second derivative."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(case.dtype)

    order = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    x, v = (draw(*case.shape).to(memory_format=order) for _ in range(2))
    return [x.requires_grad_(), *operator.parameters(case, draw)], v


def orders(
    operator: Operator, case: Case, provider: str, inputs: list[Tensor], v: Tensor
) -> dict[str, Callable[[], tuple[Tensor | None, ...]]]:
    """By order of derivative, a function to time; each returns its results."""
    x, *rest = inputs
    trained = [t for t in inputs if t.requires_grad]
    plain = operator.provider(provider, case)
    compile_it = partial(torch.compile, fullgraph=True, dynamic=False)
    call = compile_it(plain) if provider == COMPILE else plain
    y = call(*inputs)
    dy = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype)
    dy.requires_grad_()

    def to_x(dy: Tensor, x: Tensor, *rest: Tensor) -> Tensor:
        return torch.func.vjp(lambda x: plain(x, *rest), x)[1](dy)[0]

    compiled_to_x = compile_it(to_x) if provider == FUNC else None

    def first(create_graph: bool = True) -> Tensor:
        if compiled_to_x is not None:
            return compiled_to_x(dy, x, *rest)
        again = y if not create_graph else call(*inputs)
        return torch.autograd.grad(again, x, dy, create_graph=create_graph, retain_graph=True)[0]

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (call(*inputs),)

    def backward() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(y, trained, dy, retain_graph=True, allow_unused=True)

    def second() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(dx, [dy, *trained], v, retain_graph=True, allow_unused=True)

    def tangent() -> tuple[Tensor, ...]:
        with torch.no_grad(), forward_ad.dual_level():
            dual = plain(forward_ad.make_dual(x.detach(), v), *(t.detach() for t in rest))
            return (forward_ad.unpack_dual(dual).tangent,)

    every = {"forward": forward, "backward": backward, "dx": lambda: (first(False),)}
    every |= {"second": second, "tangent": tangent}
    wanted = [o for o in operator.sweeps(case) if o in FEASIBLE.get(provider, every)]
    if "second" in wanted:
        dx = first()
    return {order: every[order] for order in wanted}


def milliseconds(run: Callable[[], Any]) -> float:
    """The median time of `run` on the GPU."""
    for _ in range(WARMUP):
        run()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def peak_mib(run: Callable[[], Any]) -> float:
    """What `run` needs at most above what is there before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def disagreement(got: tuple[Tensor | None, ...], want: tuple[Tensor | None, ...]) -> float:
    """The largest error relative to each result's largest value."""
    errors = [0.0]
    for g, w in zip(got, want):
        if g is not None and w is not None:
            scale = w.float().abs().max().clamp(min=1e-6)
            errors.append(((g.float() - w.float()).abs().max() / scale).item())
    return max(errors)


def measure(operator: Operator, case: Case, providers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row for each order and provider, on the GPU; compared with eager PyTorch's results."""
    torch._dynamo.reset()
    inputs, v = tensors(operator, case, "cuda")
    size = v.numel() * v.element_size()
    target = torch.empty_like(v)
    copy = 2 * size / milliseconds(lambda: target.copy_(v)) / 1e6
    eager = orders(operator, case, "eager", inputs, v)
    for provider in providers:
        runs = eager if provider == "eager" else orders(operator, case, provider, inputs, v)
        for order, run in runs.items():
            error = disagreement(run(), eager[order]())
            time = milliseconds(run)
            speed = operator.sweeps(case)[order] * size / time / 1e6
            yield {
                **{"operator": operator.name, "case": str(case), "elements": case.elements},
                **{"order": order, "provider": provider, "ms": time, "gb_per_s": speed},
                **{"of_copy": speed / copy, "peak_mib": peak_mib(run), "error": error},
            }


def check(operator: Operator, case: Case) -> Iterator[dict[str, Any]]:
    """The same without times, in Triton's interpreter; raises AssertionError where ours differs."""
    inputs, v = tensors(operator, case, "cpu")
    want, got = (orders(operator, case, p, inputs, v) for p in ("eager", "ours"))
    for order in want:
        error = disagreement(got[order](), want[order]())
        assert error < 1e-4, f"{operator.name} {case} {order}: error {error:.1e}"
        row = {"operator": operator.name, "case": str(case), "order": order}
        yield {**row, "provider": "ours", "error": error}
