"""The Dirac-GAN: what autograd measures through our losses against what the paper derives."""

import cmath
import math

import pytest
import torch

from dgan.draws import Draws
from dgan.laboratory.dirac import (
    GAMES,
    SLOPES,
    DiracDiscriminator,
    DiracGenerator,
    Game,
    descend,
    eigenvalues,
    field,
    jacobian,
    jump,
    theory,
)

PLAIN = [Game(loss=loss) for loss in SLOPES]
PENALISED = [
    Game(loss=loss, penalty=penalty, weight=weight)
    for loss in SLOPES
    for penalty in ("r1", "r1+r2")
    for weight in (0.1, 1.0, 3.0)
]
WGAN_GP = [Game(loss="wasserstein", penalty="wgan-gp", weight=w) for w in (0.25, 1.5, 10.0)]


def by_hand(damping: float, slope: float) -> list[complex]:
    """Roots of λ² + damping λ + slope² = 0, from the quadratic formula."""
    root = cmath.sqrt(damping**2 - 4 * slope**2)
    return [(-damping + root) / 2, (-damping - root) / 2]


@pytest.mark.parametrize(
    "game", [*PLAIN, *PENALISED, *WGAN_GP, *GAMES], ids=lambda game: game.title
)
def test_measured_eigenvalues_are_those_of_the_theory(game: Game) -> None:
    measured = eigenvalues(game)
    for found, expected in zip(measured, theory(game)):
        assert abs(found - expected) < 1e-6
    # With the formulas written down once more; the order of the two does not matter.
    slope = 1.0 if game.loss in ("hinge", "wasserstein", "relativistic_average") else 0.5
    damping = {"none": 0, "r1": 1, "r1+r2": 2, "wgan-gp": 2}[game.penalty] * game.weight
    for expected in by_hand(damping, slope):
        assert min(abs(found - expected) for found in measured) < 1e-6


def test_the_jacobian_is_the_field_s_finite_difference() -> None:
    """Away from the equilibrium too, where no closed form is asked for."""
    game, point, step = Game(loss="non_saturating", penalty="r1", weight=0.7), (0.8, -0.4), 1e-5

    def at(theta: float, psi: float) -> torch.Tensor:
        return field(game, torch.tensor([theta, psi], dtype=torch.float64, requires_grad=True))

    (theta, psi) = point
    columns = [
        (at(theta + step, psi) - at(theta - step, psi)) / (2 * step),
        (at(theta, psi + step) - at(theta, psi - step)) / (2 * step),
    ]
    torch.testing.assert_close(
        jacobian(game, point), torch.stack(columns, 1).detach(), rtol=1e-8, atol=1e-9
    )


def test_the_field_is_the_paper_s() -> None:
    """Mescheder et al. 2018, definition 2.1, in our sign: v = (ψ σ(−ψθ), −θ σ(ψθ) − γψ)."""
    theta, psi, gamma = 0.6, -1.1, 0.3
    game = Game(loss="non_saturating", penalty="r1", weight=gamma)
    v = field(game, torch.tensor([theta, psi], dtype=torch.float64, requires_grad=True))

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = [psi * sigmoid(-psi * theta), -theta * sigmoid(psi * theta) - gamma * psi]
    assert v.tolist() == pytest.approx(expected, rel=1e-12)


def test_only_wgan_gp_jumps() -> None:
    for game in GAMES:
        expected = 4 * game.weight if game.penalty == "wgan-gp" else 0.0
        assert jump(game) == pytest.approx(expected, abs=1e-6)


def test_what_descent_does() -> None:
    start = (0.5, 0.0)
    # |1 + hλ|² = 1 + h²/4: minimax is driven outwards.
    away = descend(Game(loss="minimax"), (0.05, 0.0), rate=0.2, steps=200).norm(dim=1)
    assert away[-1] / away[0] == pytest.approx((1 + 0.2**2 / 4) ** 100, rel=0.02)
    # R1 attracts at the rate of its eigenvalues.
    game = Game(loss="minimax", penalty="r1", weight=0.5)
    near = descend(game, start, rate=0.1, steps=400).norm(dim=1)
    expected = abs(1 + 0.1 * theory(game)[0]) ** 200
    assert near[400] / near[200] == pytest.approx(expected, rel=0.5)
    assert near[400] < 1e-3 * near[0]


def test_wgan_gp_circles_for_ever_as_wide_as_its_halves_say() -> None:
    """Each half plane turns around (∓2w, 0); half a turn shrinks the distance to it by q."""
    w = 0.25
    q = math.exp(-math.pi * w / math.sqrt(1 - w**2))
    cycle = 2 * w * (1 + q) / (1 - q)
    game = Game(loss="wasserstein", penalty="wgan-gp", weight=w)
    late = descend(game, (0.1, 0.0), rate=0.02, steps=2500)[-600:]
    assert late[:, 0].abs().max().item() == pytest.approx(cycle, rel=0.1)
    # An overdamped one comes to rest beside the data.
    game = Game(loss="wasserstein", penalty="wgan-gp", weight=2.0)
    rest = descend(game, (0.1, 0.0), rate=0.1, steps=500)[-1]
    assert rest[0].abs().item() == pytest.approx(2 * 2.0, rel=0.01)


def test_networks_play_the_same_game() -> None:
    """The modules that `train` takes, under the task that trains everything else."""
    from dgan.schedule import constant
    from dgan.tasks.penalty import Penalty
    from dgan.tasks.synthesis import Synthesis

    generator, discriminator = DiracGenerator(start=0.7).double(), DiracDiscriminator(start=-0.3)
    discriminator = discriminator.double()
    task = Synthesis(
        loss="relativistic",
        penalty=Penalty(gamma=constant(0.4), method="double"),
        z_dim=1,
        condition="",
        separate=False,
    )
    draws = Draws(
        seed=0, purpose="test", step=1, rows=range(3), device=torch.device("cpu"),
        dtype=torch.float64,
    )  # fmt: skip
    batch = {"image": torch.zeros(3, 1, dtype=torch.float64)}
    first = task.discriminator_loss(discriminator, generator, batch, draws, 0)["loss"]
    second = task.generator_loss(generator, discriminator, batch, draws, 0)["loss"]
    (psi,) = torch.autograd.grad(first, discriminator.psi)
    (theta,) = torch.autograd.grad(second, generator.theta)
    game = Game(loss="relativistic", penalty="r1+r2", weight=0.4)
    v = field(game, torch.tensor([0.7, -0.3], dtype=torch.float64, requires_grad=True))
    # Weights start in float32.
    assert v.tolist() == pytest.approx([-theta.item(), -psi.item()], rel=1e-6)


def test_what_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="no closed form for the loss 'least_squares'"):
        theory(Game(loss="least_squares"))
    with pytest.raises(ValueError, match="penalty is 'r3'; choose from none, r1"):
        Game(loss="minimax", penalty="r3")  # pyright: ignore
    with pytest.raises(ValueError, match="loss is 'min'"):
        Game(loss="min")
