"""Every loss against its closed form and its derivative, number by number in Python floats."""

import math
from collections.abc import Callable

import pytest
import torch

from dgan.objectives.losses import LOSSES

Scalar = Callable[[float, float], float]


def softplus(t: float) -> float:
    return math.log1p(math.exp(t))


def sigmoid(t: float) -> float:
    return 1 / (1 + math.exp(-t))


# Of one pair (real logit, fake logit): D's loss, its two derivatives; the same of G.
CLOSED_FORMS: dict[str, tuple[Scalar, Scalar, Scalar, Scalar, Scalar, Scalar]] = {
    "non_saturating": (
        lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
        lambda r, f: -sigmoid(-r),
        lambda r, f: sigmoid(f),
        lambda r, f: -math.log(sigmoid(f)),
        lambda r, f: 0.0,
        lambda r, f: -sigmoid(-f),
    ),
    "hinge": (
        lambda r, f: max(0.0, 1 - r) + max(0.0, 1 + f),
        lambda r, f: -1.0 if r < 1 else 0.0,
        lambda r, f: 1.0 if f > -1 else 0.0,
        lambda r, f: -f,
        lambda r, f: 0.0,
        lambda r, f: -1.0,
    ),
    "relativistic": (
        lambda r, f: softplus(-(r - f)),
        lambda r, f: -sigmoid(f - r),
        lambda r, f: sigmoid(f - r),
        lambda r, f: softplus(-(f - r)),
        lambda r, f: sigmoid(r - f),
        lambda r, f: -sigmoid(r - f),
    ),
}
REAL = [-2.5, 0.3, 1.7, 0.99, -1.0, 4.0]
FAKE = [1.2, -0.4, -3.0, -1.01, 2.0, 0.0]


@pytest.mark.parametrize("shape", [(6,), (2, 1, 1, 3)], ids=["logits", "patches"])
@pytest.mark.parametrize("name", LOSSES)
def test_closed_forms(name: str, shape: tuple[int, ...]) -> None:
    loss = LOSSES[name]
    formulas = CLOSED_FORMS[name]
    for player, (value, by_real, by_fake) in (
        (loss.discriminator, formulas[:3]),
        (loss.generator, formulas[3:]),
    ):
        real = torch.tensor(REAL, dtype=torch.float64).reshape(shape).requires_grad_()
        fake = torch.tensor(FAKE, dtype=torch.float64).reshape(shape).requires_grad_()
        result = player(real, fake)
        assert result.shape == ()
        expected = sum(map(value, REAL, FAKE)) / 6
        assert result.item() == pytest.approx(expected, rel=1e-12)
        gradients = torch.autograd.grad(result, (real, fake), allow_unused=True)
        for gradient, derivative in zip(gradients, (by_real, by_fake)):
            wanted = [derivative(r, f) / 6 for r, f in zip(REAL, FAKE)]
            found = [0.0] * 6 if gradient is None else gradient.flatten().tolist()
            assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_generators_need_of_real_logits_is_declared(name: str) -> None:
    fake = torch.tensor(FAKE)
    one, other = (LOSSES[name].generator(torch.tensor(REAL) + shift, fake) for shift in (0, 1))
    assert LOSSES[name].generator_sees_real == (not torch.equal(one, other))


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_stay_finite(name: str) -> None:
    for sign in (1, -1):
        real = torch.tensor([sign * 1e4]).requires_grad_()
        fake = torch.tensor([-sign * 1e4]).requires_grad_()
        for player in (LOSSES[name].discriminator, LOSSES[name].generator):
            loss = player(real, fake)
            gradients = torch.autograd.grad(loss, (real, fake), allow_unused=True)
            assert loss.isfinite()
            assert all(g.isfinite() for g in gradients if g is not None)
