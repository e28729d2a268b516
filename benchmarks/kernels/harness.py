"""Times of an operator by order of derivative, beside what a user would pick instead.

`operators.py` is the registry; `run.py` the command. GB/s are the bytes that no implementation can
avoid (`Operator.sweeps`, in passes over a tensor of x's size) over the time, so that a provider
which moves more of them shows less; `of_copy` divides by a copy measured in the same run. The
gradients of parameters are asked for as in training, and their bytes are not counted.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

REPEATS, WARMUP = 30, 5
PROVIDERS = ("eager", "compile", "ours")
"""What a user would write; torch.compile of it, with torch.func.vjp inside where it is
differentiated twice, the strongest that stock PyTorch has; and dgan_kernels."""

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One operator on one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: str = "contiguous"

    @property
    def providers(self) -> tuple[str, ...]:
        """torch.compile takes seconds a case: it is asked in one dtype and layout only."""
        common = self.dtype == torch.bfloat16 and self.layout == "contiguous"
        return PROVIDERS if common else ("eager", "ours")

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
    call = compile_it(plain) if provider == "compile" else plain
    y = call(*inputs)
    dy = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype)
    dy.requires_grad_()

    def to_x(dy: Tensor, x: Tensor, *rest: Tensor) -> Tensor:
        return torch.func.vjp(lambda x: plain(x, *rest), x)[1](dy)[0]

    compiled_to_x = compile_it(to_x) if provider == "compile" else None

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
    wanted = operator.sweeps(case)
    if "second" in wanted:
        dx = first()
        every["second"] = second
    every["tangent"] = tangent
    if provider == "compile":  # PyTorch does not compile forward mode
        every.pop("tangent")
    return {order: run for order, run in every.items() if order in wanted}


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


def measure(operator: Operator, case: Case) -> Iterator[dict[str, Any]]:
    """One row for each order and provider, on the GPU."""
    torch._dynamo.reset()
    inputs, v = tensors(operator, case, "cuda")
    size = v.numel() * v.element_size()
    target = torch.empty_like(v)
    copy = 2 * size / milliseconds(lambda: target.copy_(v)) / 1e6
    runs = {p: orders(operator, case, p, inputs, v) for p in case.providers}
    for order, sweeps in operator.sweeps(case).items():
        want = runs["eager"][order]()
        for provider, functions in runs.items():
            if order not in functions:
                continue
            error = disagreement(functions[order](), want)
            time = milliseconds(functions[order])
            speed = sweeps * size / time / 1e6
            yield {
                **{"operator": operator.name, "case": str(case), "order": order},
                **{"provider": provider, "ms": time, "gb_per_s": speed, "of_copy": speed / copy},
                **{"peak_mib": peak_mib(functions[order]), "error": error},
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
