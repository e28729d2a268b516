"""Measure attention with its tangent, forward and backward: time and peak memory.

    python benchmarks/kernels/attention_jvp.py --out benchmarks/results/my-gpu

Against softmax and products written out, which keep four matrices of length × length for each
head, and against forward mode through softmax and products followed by reverse mode. One row is
the forward pass of value and tangent and the backward pass of both to all six inputs. TFLOP/s count
the 6 products of length × length × d that the forward pass needs and the 12 that any backward pass
needs, whichever are computed; memory is what is allocated beside inputs and cotangents, at most.

Without a GPU it compares plain PyTorch in blocks with the others at short lengths.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dgan_kernels import attention_jvp

REPEATS, WARMUP = 10, 3


@dataclass(frozen=True)
class Case:
    """One attention layer's queries, keys and values."""

    length: int
    width: int = 64
    heads: int = 16
    batch: int = 1
    dtype: torch.dtype = torch.bfloat16

    def tflop(self) -> float:
        products = 6 + 12
        return 2 * products * self.batch * self.heads * self.length**2 * self.width / 1e12

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.batch}x{self.heads}x{self.length}x{self.width} {name}"


LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
CASES = [Case(n, width) for width in (64, 128) for n in LENGTHS]
SMALL = [Case(n, heads=4, dtype=torch.float32) for n in (256, 1024)]


class Softmax(torch.autograd.Function):
    """P and Ṗ = P∘(Ṡ − rowsum(P∘Ṡ)), with a backward pass written by hand; keeps both."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, st: Tensor) -> tuple[Tensor, Tensor]:
        p = s.softmax(-1)
        pt = torch._softmax_backward_data(st, p, -1, p.dtype)
        ctx.save_for_backward(p, pt)
        return p, pt

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        (p, pt), bent = ctx.saved_tensors, None
        bent = pt * b
        ds = torch._softmax_backward_data(a, p, -1, p.dtype)
        ds.addcmul_(p, bent.sum(-1, keepdim=True), value=-1)
        ds.addcmul_(pt, (p * b).sum(-1, keepdim=True), value=-1).add_(bent)
        return ds, torch._softmax_backward_data(b, p, -1, p.dtype)


def written_out(q: Tensor, k: Tensor, v: Tensor, qt: Tensor, kt: Tensor, vt: Tensor) -> Any:
    """Softmax and products on values and tangents."""
    a = 1 / math.sqrt(q.shape[-1])
    q, qt = a * q, a * qt
    p, pt = Softmax.apply(q @ k.mT, qt @ k.mT + q @ kt.mT)
    return p @ v, pt @ v + p @ vt


def forward_mode(q: Tensor, k: Tensor, v: Tensor, qt: Tensor, kt: Tensor, vt: Tensor) -> Any:
    """PyTorch's forward mode; with a softmax whose tangent can be differentiated."""
    with fwd.dual_level():
        q, k, v = (fwd.make_dual(x, t) for x, t in ((q, qt), (k, kt), (v, vt)))
        exponent = (q @ k.mT / math.sqrt(q.shape[-1])).exp()
        return tuple(fwd.unpack_dual((exponent / exponent.sum(-1, keepdim=True)) @ v))


PROVIDERS = {"softmax": written_out, "forward mode": forward_mode, "ours": attention_jvp}


def step(case: Case, provider: str, device: str) -> Callable[[], tuple[Tensor, ...]]:
    """Return a function that computes both outputs and six gradients."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (case.batch, case.heads, case.length, case.width)
    drawn = [torch.randn(shape, generator=generator, device=device) for _ in range(8)]
    *leaves, g, h = (t.to(case.dtype) for t in drawn)
    leaves = [t.requires_grad_() for t in leaves]

    def run() -> tuple[Tensor, ...]:
        outputs = PROVIDERS[provider](*leaves)
        grads = torch.autograd.grad(outputs, leaves, (g, h))
        return *(o.detach() for o in outputs), *grads

    return run


def peak_on_cpu(run: Callable[[], Any]) -> float:
    """Return the most MiB that were allocated at once, as PyTorch's profiler saw them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler
    assert results is not None
    events = results.kineto_results.events()
    memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(itertools.accumulate((e.nbytes() for e in memory), initial=0)) / 2**20


def measure(case: Case, provider: str) -> dict:
    """Return time and peak memory on the GPU, or that memory did not suffice."""
    row = {"case": str(case), "provider": provider}
    try:
        run = step(case, provider, "cuda")
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        row["mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        times = [elapsed(run) for _ in range(WARMUP + REPEATS)][WARMUP:]
    except torch.cuda.OutOfMemoryError:
        return row | {"error": "out of memory"}
    row["ms"] = statistics.median(times)
    return row | {"tflop_per_s": case.tflop() / row["ms"] * 1e3}


def elapsed(run: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def smoke(cases: list[Case]) -> list[dict]:
    """Return time and peak memory on the CPU, and check the results against each other."""
    rows = []
    for case in cases:
        want = step(case, "softmax", "cpu")()
        for provider in PROVIDERS:
            run = step(case, provider, "cpu")
            for got, answer in zip(run(), want):
                error = ((got - answer).abs().max() / answer.abs().max()).item()
                assert error < 1e-4, f"{case} {provider}: error {error:.1e}"
            times = []
            for _ in range(3):
                start = time.perf_counter()
                run()
                times.append(1e3 * (time.perf_counter() - start))
            row = {"case": str(case), "provider": provider, "ms": min(times)}
            rows.append(row | {"mib": peak_on_cpu(run)})
    return rows


def table(rows: list[dict]) -> str:
    """Return ``rows`` as text."""
    lines, heading = [], None
    for row in rows:
        if row["case"] != heading:
            heading = row["case"]
            lines.append(f"\n{heading}")
        if "error" in row:
            lines.append(f"  {row['provider']:14s}{row['error']}")
            continue
        speed = f"{row['tflop_per_s']:8.1f} TFLOP/s" if "tflop_per_s" in row else ""
        lines.append(f"  {row['provider']:14s}{row['ms']:10.3f} ms {row['mib']:9.1f} MiB{speed}")
    return "\n".join(lines)


def main() -> None:
    """Measure and write ``attention_jvp.json``."""
    parser = argparse.ArgumentParser(description="Measure attention with its tangent.")
    parser.add_argument("--out", type=Path, help="folder for attention_jvp.json")
    parser.add_argument("--lengths", type=int, nargs="*", help="other lengths, on the CPU")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "cpu"
    small = [Case(n, heads=4, dtype=torch.float32) for n in options.lengths or ()] or SMALL
    cases = CASES if gpu else small
    rows = [measure(c, p) for c in cases for p in PROVIDERS] if gpu else smoke(cases)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        described = [asdict(c) | {"dtype": str(c.dtype)} for c in cases]
        report = {"device": device, "torch": torch.__version__, "cases": described, "rows": rows}
        (options.out / "attention_jvp.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"attention_jvp on {device}, torch {torch.__version__}\n{table(rows)}")


if __name__ == "__main__":
    main()
