"""The operators where there is no GPU: `dgan_kernels` beside the plain PyTorch for the same layer.

    python benchmarks/kernels/on_cpu.py [--out FOLDER] [--seconds 0.6] [--only NAME]

Forward, forward and backward, and a gradient penalty (differentiated twice). What counts is the
ratio: 1 is as fast as plain PyTorch, less is faster. Ours, the plain layer, and the plain layer
once more take turns, in an order that rotates and reverses, so that none profits from what the one
before it left in the caches. A ratio is the median of those within each round; `control` is the
plain layer's second run against its first: how far from 1 a ratio of equals can be on this machine.
One thread, and seconds of the processor rather than of the clock: who else is on the machine then
counts only for what they take of its caches and memory.
"""

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from on_cpu_layers import Case, Layer, cases, draw
from report import store

FEWEST, MOST = 12, 240
"""Rounds: multiples of 6, so that each of three runs takes each place equally often."""
SHORTEST_MS = 10.0
"""A run is repeated until it takes this long, as layers follow one another in a network. Alone
between two others, Python would come from memory anew for each run, at several times its cost.
"""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Relative to the largest value: bfloat16 has 8 bits, some lost in each of a penalty's steps."""


def orders(layer: Layer, tensors: tuple[Tensor, ...]) -> dict[str, Callable[[], Any]]:
    """What is timed: each computes from the inputs on."""
    # As in a penalty of a network: what the layers above send back depends on parameters, too.
    x, y = tensors[0], layer(*tensors)
    result = y if isinstance(y, Tensor) else y[0]
    drawn = zip(draw(result.shape, x.shape), (result, x))
    dy, v = (torch.empty_like(like.detach()).copy_(t) for t, like in drawn)
    dy.requires_grad_()

    def forward() -> Any:
        with torch.no_grad():
            return layer(*tensors)

    def backward() -> tuple[Tensor | None, ...]:
        y = layer(*tensors)
        ones = torch.ones_like(y) if isinstance(y, Tensor) else [torch.ones_like(t) for t in y]
        return torch.autograd.grad(y, tensors, ones)

    def penalty() -> tuple[Tensor | None, ...]:
        y = layer(*tensors)
        (dx,) = torch.autograd.grad(y, tensors[0], dy, create_graph=True)
        return torch.autograd.grad(dx, (dy, *tensors), v, allow_unused=True)

    return {"forward": forward, "backward": backward, "penalty": penalty}


def check(got: Any, want: Any) -> None:
    """Raise unless both forms of a layer compute the same."""
    for a, b in zip(*(t if isinstance(t, tuple) else (t,) for t in (got, want)), strict=True):
        if a is None or b is None:
            rest = b if a is None else a
            assert rest is None or not rest.any()  # what nothing depends on may be 0
            continue
        atol = TOLERANCE[b.dtype] * b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def milliseconds(run: Callable[[], Any], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        run()
    return 1e3 * (time.process_time() - start) / times


def turns(runs: list[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Time all runs in each of many rounds; return the times of each."""
    once = [milliseconds(run, 1) for run in runs]
    times = max(1, round(SHORTEST_MS / min(once)))
    rounds = min(MOST, max(FEWEST, int(1e3 * seconds / (sum(once) * times)))) // 6 * 6
    taken = [[] for _ in runs]
    for i in range(rounds):
        start = i % len(runs)
        order = [*range(start, len(runs)), *range(start)]
        for j in order if i // len(runs) % 2 else reversed(order):
            taken[j].append(milliseconds(runs[j], times))
    return taken


def measure(case: Case, order: str, seconds: float) -> dict[str, Any]:
    tensors = tuple(t.detach().requires_grad_() for t in case.tensors)
    ours, plain = (orders(layer, tensors)[order] for layer in (case.ours, case.plain))
    check(ours(), plain())
    mine, theirs, again = turns([ours, plain, plain], seconds)
    shape = list(case.tensors[0].shape)
    return {
        "layer": case.name,
        "shape": shape,
        "order": order,
        "ours_ms": statistics.median(mine),
        "plain_ms": statistics.median(theirs),
        "ratio": statistics.median(m / t for m, t in zip(mine, theirs)),
        "control": statistics.median(a / t for a, t in zip(again, theirs)),
        "rounds": len(mine),
    }


def keep_memory() -> None:
    """Let glibc keep what is freed.

    Whether it gives pages back between two runs, and zeroed ones must be had again, depends on
    what lies behind them in the heap: chance, which costs several times what a norm does.
    """
    libc, trim, mmap, most = ctypes.CDLL(None), -1, -3, 2**30
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim, most)
        libc.mallopt(mmap, most)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the operators' CPU paths.")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=0.6, help="for each row, about")
    parser.add_argument("--only", default="", help="a part of the names of the layers to measure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    rows = []
    for case in cases():
        if options.only not in case.name:
            continue
        for order in case.orders:
            row = measure(case, order, options.seconds)
            rows.append(row)
            size = "×".join(map(str, row["shape"]))
            print(
                f"{case.name:37s}{size:14s}{order:9s}{row['ours_ms']:8.3f}{row['plain_ms']:8.3f} ms"
                f"{row['ratio']:7.2f}   control{row['control']:5.2f}",
                flush=True,
            )
    if not options.only:
        store("kernels-on-cpu", rows, "One thread; processor time.", options.out)


if __name__ == "__main__":
    main()
