"""Spectral norms of many layers at once, against PyTorch's parametrization of each.

    python benchmarks/kernels/spectral_norm.py [--out FOLDER]

24 blocks of four weights; milliseconds of one power iteration and division, and of that with its
backward pass, the median of several on a GPU or a CPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from dgan_kernels import spectral_norm_power_iteration
from report import store

SHAPES = [(256, 64), (64, 256), (64, 64, 3, 3), (64, 64)] * 24
REPEATS = 15


def layer_of(shape: tuple[int, ...], device: str) -> nn.Linear | nn.Conv2d:
    made = nn.Linear(shape[1], shape[0], bias=False) if len(shape) == 2 else nn.Conv2d(64, 64, 3)
    made.weight.data += 0.2  # one large singular value, which both soon converge to
    return made.to(device)


def milliseconds(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def measure(device: str) -> list[dict[str, Any]]:
    layers = [layer_of(shape, device) for shape in SHAPES]
    weights = [layer.weight.detach().clone().requires_grad_() for layer in layers]
    vectors = [torch.randn(w.shape[0], device=device) for w in weights]
    normed: list[Any] = [nn.utils.parametrizations.spectral_norm(layer) for layer in layers]
    parameters = [layer.parametrizations.weight.original for layer in normed]

    def ours() -> list[Tensor]:
        sigmas = spectral_norm_power_iteration(weights, vectors)
        return [w / s for w, s in zip(weights, sigmas)]

    def eager() -> list[Tensor]:
        return [layer.weight for layer in normed]

    for _ in range(20):
        spectral_norm_power_iteration(weights, vectors)
        eager()
    error = max((a - b).abs().max().item() for a, b in zip(ours(), eager()))
    rows = []
    for provider, run, of in (("eager", eager, parameters), ("ours", ours, weights)):

        def both(run: Any = run, of: Any = of) -> None:
            normalised = run()
            torch.autograd.grad(normalised, of, [w.detach() for w in normalised])

        for order, step in (("forward", run), ("forward and backward", both)):
            row = {"provider": provider, "order": order, "ms": milliseconds(step), "error": error}
            rows.append({"weights": len(SHAPES), **row})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure batched spectral norms.")
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    rows = measure("cuda" if torch.cuda.is_available() else "cpu")
    for row in rows:
        print(f"{row['provider']:6s} {row['order']:21s} {row['ms']:8.2f} ms")
    print(f"stored in {store('kernels-spectral-norm', rows, out=options.out)}")


if __name__ == "__main__":
    main()
