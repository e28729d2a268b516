"""Measure bias_act against eager PyTorch and torch.compile: forward, backward, penalty.

    python benchmarks/kernels/bias_act.py --out benchmarks/results/my-gpu

The byte model counts sweeps over an activation-sized tensor that no implementation can avoid: a
forward pass reads x and writes y (2), a backward pass reads dy and x and writes dx (3), a double
backward pass reads v, dy and x and writes two results (5), or reads v and x and writes one where
the activation does not curve (3). GB/s are these bytes over the time, so that a provider which
moves more of them shows less; the last column divides by a copy measured in the same run. The
bias's gradient is asked for as in training, and its bytes are not counted.

Without a GPU it checks one small case in Triton's interpreter instead.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when dgan_kernels is imported

from dgan_kernels import bias_act
from dgan_kernels.checks import TRITON
from dgan_kernels.reference import ACTIVATIONS

REPEATS, WARMUP = 30, 5


@dataclass(frozen=True)
class Case:
    """One layer's activation."""

    shape: tuple[int, ...]
    layout: str
    dtype: torch.dtype
    act: str
    gain: float = 2**0.5
    clamp: float | None = 256.0

    def options(self) -> dict[str, Any]:
        return {"act": self.act, "gain": self.gain, "clamp": self.clamp}

    def sweeps(self) -> dict[str, int]:
        second = 3 if ACTIVATIONS[self.act].second is None else 5
        return {"forward": 2, "backward": 3, "penalty": 3 + second}

    def __str__(self) -> str:
        dims = "x".join(map(str, self.shape))
        return f"{dims} {self.layout} {str(self.dtype).removeprefix('torch.')} {self.act}"


# 134 MB in 16 bits: beyond every cache.
LARGE = (32, 256, 64, 128)
CASES = [
    Case(LARGE, "contiguous", torch.bfloat16, "leaky_relu"),
    Case(LARGE, "contiguous", torch.bfloat16, "silu", clamp=None),
    Case(LARGE, "channels_last", torch.bfloat16, "leaky_relu"),
    Case(LARGE, "channels_last", torch.bfloat16, "silu", clamp=None),
    Case(LARGE, "contiguous", torch.float32, "silu", clamp=None),
]
SMALL = [Case((2, 8, 16, 16), "channels_last", torch.float32, "silu", clamp=2.0)]


def tensors(case: Case, device: str) -> list[Tensor]:
    """Return x, bias, dy and v."""
    generator = torch.Generator(device).manual_seed(0)
    draw = lambda *s: torch.randn(s, generator=generator, device=device)  # noqa: E731
    order = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    wide = [draw(*case.shape).to(case.dtype).to(memory_format=order) for _ in range(3)]
    bias = draw(case.shape[1]).to(case.dtype)
    return [t.requires_grad_() for t in (wide[0], bias, wide[1])] + [wide[2]]


def compiled(case: Case) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return torch.compile's forward, and its dx, which differentiates once more by itself."""
    layer = lambda x, b: bias_act(x, b, backend="reference", **case.options())  # noqa: E731

    def to_x(dy: Tensor, x: Tensor, b: Tensor) -> Tensor:
        return torch.func.vjp(lambda x: layer(x, b), x)[1](dy)[0]

    compile_it = partial(torch.compile, fullgraph=True, dynamic=False)
    return compile_it(layer), compile_it(to_x)


def orders(case: Case, provider: str, x: Tensor, b: Tensor, dy: Tensor, v: Tensor) -> dict:
    """Return, by order of derivative, a function to time; each returns its results."""
    if provider == "compile":
        forward, to_x = compiled(case)
    else:
        backend = "triton" if provider == "ours" else "reference"
        forward = lambda x, b: bias_act(x, b, backend=backend, **case.options())  # noqa: E731
        to_x = None
    y = forward(x, b)

    def evaluate() -> tuple[Tensor]:
        with torch.no_grad():
            return (forward(x, b),)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, (x, b), dy, retain_graph=True)

    def penalty() -> tuple[Tensor | None, ...]:
        dx = to_x(dy, x, b) if to_x else torch.autograd.grad(y, x, dy, create_graph=True)[0]
        return dx, *torch.autograd.grad(dx, (dy, x, b), v, allow_unused=True)

    return {"forward": evaluate, "backward": backward, "penalty": penalty}


def milliseconds(run: Callable[[], Any]) -> float:
    """Return the median time of ``run`` on the GPU."""
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


def disagreement(got: tuple, want: tuple) -> float:
    """Return the largest error relative to each result's largest value."""
    errors = [
        ((g.float() - w.float()).abs().max() / w.float().abs().max().clamp(min=1e-6)).item()
        for g, w in zip(got, want)
        if g is not None and w is not None
    ]
    return max(errors)


def measure(case: Case) -> Iterator[dict]:
    """Yield one row for each provider and order."""
    torch._dynamo.reset()
    inputs = tensors(case, "cuda")
    target = torch.empty_like(inputs[0])
    size = target.numel() * target.element_size()
    copy = 2 * size / milliseconds(lambda: target.copy_(inputs[0].detach())) / 1e6
    runs = {p: orders(case, p, *inputs) for p in ("eager", "compile", "ours")}
    for order, sweeps in case.sweeps().items():
        want = runs["eager"][order]()
        for provider, functions in runs.items():
            error = disagreement(functions[order](), want)
            ms = milliseconds(functions[order])
            speed = sweeps * size / ms / 1e6
            yield {
                "case": str(case), "order": order, "provider": provider, "ms": ms,
                "gb_per_s": speed, "of_copy": speed / copy, "error": error,
            }  # fmt: skip


def smoke() -> list[dict]:
    """Run one small case through the interpreter and compare with eager PyTorch."""
    rows = []
    for case in SMALL:
        inputs = tensors(case, "cpu")
        want, got = (orders(case, p, *inputs) for p in ("eager", "ours"))
        for order in case.sweeps():
            error = disagreement(got[order](), want[order]())
            assert error < 1e-5, f"{case} {order}: error {error:.1e}"
            rows.append({"case": str(case), "order": order, "provider": "ours", "error": error})
    return rows


def table(rows: list[dict]) -> str:
    """Return ``rows`` as text, with times where there are any."""
    lines, heading = [], None
    for row in rows:
        if row["case"] != heading:
            heading = row["case"]
            lines.append(f"\n{heading}")
        timing = ""
        if "ms" in row:
            timing = (
                f"{row['ms']:8.3f} ms {row['gb_per_s']:7.0f} GB/s {row['of_copy']:6.0%} of copy"
            )
        lines.append(
            f"  {row['order']:9s}{row['provider']:8s}{timing}  differs by {row['error']:.0e}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or check, and write ``bias_act.json``."""
    parser = argparse.ArgumentParser(description="Measure bias_act on this GPU.")
    parser.add_argument("--out", type=Path, help="folder for bias_act.json")
    out = parser.parse_args().out
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "cpu, interpreted"
    if not TRITON:
        print("bias_act: triton is not installed, nothing to measure")
        return
    if not gpu:
        print("bias_act: no GPU here, so no times; checking a small case in Triton's interpreter")
    rows = [row for case in CASES for row in measure(case)] if gpu else smoke()
    if out:
        out.mkdir(parents=True, exist_ok=True)
        cases = [asdict(c) | {"dtype": str(c.dtype)} for c in (CASES if gpu else SMALL)]
        report = {"device": device, "torch": torch.__version__, "cases": cases, "rows": rows}
        (out / "bias_act.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"bias_act on {device}, torch {torch.__version__}\n{table(rows)}")


if __name__ == "__main__":
    main()
