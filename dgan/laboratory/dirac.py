"""Dirac-GAN: the smallest adversarial game, whose convergence is known in closed form.

Mescheder et al. 2018 ("Which training methods for GANs do actually converge?"), definition 2.1: the
data is the point 0 of the line, the generator a point θ, the discriminator D(x) = ψx. Training
follows the field v = (−∂L_G/∂θ, −∂L_D/∂ψ), and near the equilibrium (0, 0) the eigenvalues of its
Jacobian decide: real parts below 0 attract, above 0 repel. At 0, nothing attracts at a linear rate,
and simultaneous gradient descent at any rate h is driven away, for |1 + hλ| > 1.

Here v and its Jacobian are measured: by autograd, through the losses and penalties that train every
other network. `theory` has what the paper derives.

- Unpenalised: λ = ±f′(0) i, where f′(0) is the loss's slope at a logit of 0.
- R1: λ = −γ/2 ± √(γ²/4 − f′(0)²). R2 doubles γ: on a linear D it is the same penalty again.
- WGAN-GP, weight w: the penalty w(|ψ| − 1)² has a kink at ψ = 0, where v jumps by 4w: (0, 0) is no
  equilibrium and there is no Jacobian at it. What one can look at is its limit from either side,
  that of an R1 with γ = 2w and f′(0) = 1: λ = −w ± √(w² − 1). Both limits attract, but to
  (∓2w, 0), on the other side of the data, from where the other half plane takes over: the game
  circles for ever if w < 1, and stands still at a wrong θ if not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dgan.objectives.losses import LOSSES
from dgan.objectives.penalties import gradient_penalty

Pair = tuple[complex, complex]

PENALTIES = ("none", "r1", "r1+r2", "wgan-gp")

SLOPES = {
    "minimax": 0.5,
    "non_saturating": 0.5,
    "relativistic": 0.5,
    "relativistic_average": 1.0,
    "hinge": 1.0,
    "wasserstein": 1.0,
}
"""|f′(0)|, the slope of both players' losses at a logit of 0. Least squares is not among them: its
labels are 0 and 1, and a D without a bias cannot say ½."""


@dataclass(frozen=True, kw_only=True)
class Game:
    """A loss and a penalty on the Dirac-GAN.

    Attributes:
        loss: a key of `objectives.losses.LOSSES`.
        penalty: `none`, `r1`, `r1+r2` (γ/2 ‖∇D‖² on real, or real and generated samples) or
            `wgan-gp` (weight · (‖∇D‖ − 1)² between them).
        weight: γ, or WGAN-GP's weight.

    Raises:
        ValueError: there is no such loss or penalty.
    """

    loss: str
    penalty: Literal["none", "r1", "r1+r2", "wgan-gp"] = "none"
    weight: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("loss", self.loss, LOSSES),
            ("penalty", self.penalty, PENALTIES),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; choose from {', '.join(known)}")

    @property
    def title(self) -> str:
        """In words."""
        extra = "" if self.penalty == "none" else f" + {self.penalty}, {self.weight:g}"
        return f"{self.loss}{extra}"


GAMES = (
    Game(loss="minimax"),
    Game(loss="wasserstein"),
    Game(loss="non_saturating", penalty="r1", weight=0.5),
    Game(loss="non_saturating", penalty="r1", weight=2.0),
    Game(loss="relativistic", penalty="r1+r2", weight=0.25),
    Game(loss="wasserstein", penalty="wgan-gp", weight=0.25),
    Game(loss="wasserstein", penalty="wgan-gp", weight=10.0),
)
"""What `dgan toy dirac` shows: undamped; underdamped and overdamped; and past the kink."""


def field(game: Game, point: Tensor) -> Tensor:
    """v at `point` = (θ, ψ), float `[2]`; differentiable in it."""
    theta, psi = point.unbind()
    real, fake = point.new_zeros(1, 1), theta.reshape(1, 1)

    def discriminator(x: Tensor) -> Tensor:
        return psi * x.sum(1)

    loss = LOSSES[game.loss]
    logits = discriminator(real), discriminator(fake)
    discriminator_loss = loss.discriminator(*logits) + _penalty(game, discriminator, real, fake)
    (towards_theta,) = torch.autograd.grad(loss.generator(*logits), theta, create_graph=True)
    (towards_psi,) = torch.autograd.grad(discriminator_loss, psi, create_graph=True)
    return -torch.stack([towards_theta, towards_psi])


def _penalty(
    game: Game, discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
) -> Tensor | float:
    if game.penalty == "none":
        return 0.0
    if game.penalty == "wgan-gp":
        middle = (real + fake) / 2
        output = gradient_penalty(discriminator, middle, kind="one_centered", method="double")
        return game.weight * output.loss
    both = [real, fake] if game.penalty == "r1+r2" else [real]
    terms = [gradient_penalty(discriminator, x, method="double").loss for x in both]
    return game.weight * torch.stack(terms).sum()


def jacobian(game: Game, point: tuple[float, float]) -> Tensor:
    """v's derivative at `point` = (θ, ψ) by autograd, float64 `[2, 2]`."""
    at = torch.tensor(point, dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda x: field(game, x), at)  # pyright: ignore


def eigenvalues(game: Game, kink: float = 1e-6) -> Pair:
    """Of v's Jacobian at (0, 0), measured; the one with the larger imaginary or real part first.

    Of WGAN-GP the limit from above, ψ = `kink`; from below it is the same.
    """
    psi = kink if game.penalty == "wgan-gp" else 0.0
    found = torch.linalg.eigvals(jacobian(game, (0.0, psi)))
    return _ordered(*(complex(value) for value in found.tolist()))


def theory(game: Game) -> Pair:
    """The eigenvalues in closed form, as `eigenvalues` orders them.

    Raises:
        ValueError: the loss has no entry in `SLOPES`.
    """
    if game.loss not in SLOPES:
        raise ValueError(
            f"no closed form for the loss {game.loss!r} here: {', '.join(SLOPES)} have one"
        )
    damping = {"none": 0.0, "r1": 1.0, "r1+r2": 2.0, "wgan-gp": 2.0}[game.penalty] * game.weight
    root = complex(damping**2 / 4 - SLOPES[game.loss] ** 2) ** 0.5
    return _ordered(-damping / 2 + root, -damping / 2 - root)


def jump(game: Game, kink: float = 1e-9) -> float:
    """By how much v's second component jumps at θ = 0 where ψ changes its sign; 0 if smooth."""
    points = torch.tensor([[0.0, kink], [0.0, -kink]], dtype=torch.float64, requires_grad=True)
    above, below = (field(game, point).detach() for point in points)
    return (above - below)[1].item()


def descend(
    game: Game, start: tuple[float, float], *, rate: float = 0.1, steps: int = 500
) -> Tensor:
    """The points (θ, ψ) that simultaneous gradient descent visits, float64 `[steps + 1, 2]`."""
    path = [torch.tensor(start, dtype=torch.float64)]
    for _ in range(steps):
        here = path[-1]
        path.append(here + rate * field(game, here.clone().requires_grad_(True)).detach())
    return torch.stack(path)


def _ordered(first: complex, second: complex) -> Pair:
    if (first.imag, first.real) < (second.imag, second.real):
        first, second = second, first
    return first, second


class DiracGenerator(nn.Module):
    """A point θ of the line, whatever the latents."""

    couples_samples = False

    def __init__(self, *, dimension: int = 1, z_dim: int = 1, start: float = 1.0) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.theta = nn.Parameter(torch.full((dimension,), start))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]` → points `[N, dimension]`."""
        return self.theta.expand(len(z), -1)


class DiracDiscriminator(nn.Module):
    """D(x) = ψ·x."""

    couples_samples = False

    def __init__(self, *, dimension: int = 1, start: float = 1.0) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.full((dimension,), start))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Points `[N, dimension]` → logits `[N]`."""
        return (x * self.psi).sum(1)
