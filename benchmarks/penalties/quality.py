"""How near each way to compute R1's parameter gradient comes to the exact one.

    python benchmarks/penalties/quality.py [--batch 16] [--draws 16] [--out FOLDER]

The reference is double backward in float64. Against it, in float32: double backward, forward mode,
the central difference along the gradient, and what sharded trainings elsewhere use because they
cannot differentiate twice, ½‖D(x) − D(x + σn)‖²/σ² with one draw of n ~ N(0, 1) a sample (Lin et
al. 2025, "Diffusion Adversarial Post-Training for One-Step Video Generation" (APT), approximated
R1). Its expectation is the penalty up to O(σ²); one draw's gradient is what an optimizer gets, so
the table has the median over draws and their range.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dgan.objectives.penalties import gradient_penalty

sys.path.insert(0, str(Path(__file__).parents[1]))
from penalties.networks import build, images, perturb
from report import store

NETWORKS = ("conv leaky_relu", "conv gelu", "transformer gelu")
STATES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "initial": lambda network: network,
    "perturbed": perturb,
}
STEPS = (1e-2, 1e-3, 1e-4)
SIGMAS = (0.01, 0.1)


def approximated_r1(network: nn.Module, x: Tensor, sigma: float, seed: int) -> Tensor:
    """Mean ½‖D(x) − D(x + σn)‖²/σ², one draw a sample."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator).to(x)
    difference = (network(x) - network(x + sigma * noise)) / sigma
    return 0.5 * difference.square().mean()


def parameter_gradient(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    """∇θ of `loss`, one float64 vector on the CPU; zeros where a parameter has no part in it."""
    network.zero_grad(set_to_none=True)
    # The only one of PyTorch's attention kernels that can be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH):
        loss(network).backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    return torch.cat([part.flatten().double().cpu() for part in parts])


def candidates(x: Tensor, draws: int) -> dict[str, list[Callable[[nn.Module], Tensor]]]:
    """Losses whose gradients are compared, by name; several draws where it is random."""

    def exact(method: Any, **options: Any) -> Callable[[nn.Module], Tensor]:
        return lambda network: gradient_penalty(network, x, method=method, **options).loss

    def noisy(sigma: float, seed: int) -> Callable[[nn.Module], Tensor]:
        return lambda network: approximated_r1(network, x, sigma, seed)

    losses = {"double": [exact("double")], "forward": [exact("forward")]}
    losses |= {f"difference, h {h:g}": [exact("difference", step=h)] for h in STEPS}
    losses |= {
        f"one-draw noise, σ {sigma:g}": [noisy(sigma, seed) for seed in range(draws)]
        for sigma in SIGMAS
    }
    return losses


def compare(name: str, state: str, batch: int, draws: int, device: str) -> list[dict[str, Any]]:
    """Every candidate on one network in one state."""
    network = STATES[state](build(name)).to(device)
    x = images(batch, device)
    reference = parameter_gradient(
        copy.deepcopy(network).double(),
        lambda network: gradient_penalty(network, x.double(), method="double").loss,
    )
    rows = []
    for candidate, losses in candidates(x, draws).items():
        gradients = [parameter_gradient(network, loss) for loss in losses]
        cosines = [torch.cosine_similarity(g, reference, dim=0).item() for g in gradients]
        errors = [((g - reference).norm() / reference.norm()).item() for g in gradients]
        rows.append(
            {
                "network": name,
                "state": state,
                "gradient": candidate,
                "cosine": statistics.median(cosines),
                "relative_error": statistics.median(errors),
                "cosines": cosines,
                "relative_errors": errors,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | state | gradient | cosine | relative error |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cosine, error = f"{row['cosine']:.6f}", f"{row['relative_error']:.1e}"
        if len(row["cosines"]) > 1:
            cosine = f"{row['cosine']:.2f} {spread(row['cosines'])}"
            error = f"{row['relative_error']:.2f} {spread(row['relative_errors'])}"
        lines.append(
            f"| {row['network']} | {row['state']} | {row['gradient']} | {cosine} | {error} |"
        )
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    return f"({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare penalties' gradients with the exact one.")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--draws", type=int, default=16, help="of the noise approximation")
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [
        row
        for name in NETWORKS
        for state in STATES
        for row in compare(name, state, options.batch, options.draws, device)
    ]
    print(table(rows))
    notes = (__doc__ or "").partition("\n\n")[2]
    print(f"stored in {store('penalties-quality', rows, notes=notes, out=options.out)}")


if __name__ == "__main__":
    main()
