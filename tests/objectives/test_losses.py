"""Every loss against its closed form and its derivative, number by number in Python floats."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor

from dgan.objectives.losses import (
    LOSSES,
    alone,
    check_logits,
    feature_matching,
    loss_named,
)
from dgan_kernels.rank_mean import mean_over_ranks

Scalar = Callable[[float, float], float]


def softplus(t: float) -> float:
    return math.log1p(math.exp(t))


def sigmoid(t: float) -> float:
    return 1 / (1 + math.exp(-t))


# Of one pair (real logit, fake logit): D's loss, its two derivatives; the same of G.
CLOSED_FORMS: dict[str, tuple[Scalar, Scalar, Scalar, Scalar, Scalar, Scalar]] = {
    "minimax": (
        lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
        lambda r, f: -sigmoid(-r),
        lambda r, f: sigmoid(f),
        lambda r, f: math.log(1 - sigmoid(f)),
        lambda r, f: 0.0,
        lambda r, f: -sigmoid(f),
    ),
    "least_squares": (
        lambda r, f: ((r - 1) ** 2 + f**2) / 2,
        lambda r, f: r - 1,
        lambda r, f: f,
        lambda r, f: (f - 1) ** 2 / 2,
        lambda r, f: 0.0,
        lambda r, f: f - 1,
    ),
    "wasserstein": (
        lambda r, f: f - r,
        lambda r, f: -1.0,
        lambda r, f: 1.0,
        lambda r, f: -f,
        lambda r, f: 0.0,
        lambda r, f: -1.0,
    ),
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


def test_every_loss_has_a_closed_form() -> None:
    assert LOSSES.keys() == CLOSED_FORMS.keys() | {"relativistic_average"}


@pytest.mark.parametrize("shape", [(6,), (2, 1, 1, 3)], ids=["logits", "patches"])
@pytest.mark.parametrize("name", CLOSED_FORMS)
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


def average_by_hand(better: list[float], worse: list[float]) -> tuple[float, list[float]]:
    """-E log σ(b - E w) - E log(1 - σ(w - E b)), and its derivatives in b, then in w."""
    n = len(better)
    b, w = sum(better) / n, sum(worse) / n
    value = sum(softplus(w - x) for x in better) / n + sum(softplus(y - b) for y in worse) / n
    of_better, of_worse = [sigmoid(w - x) / n for x in better], [sigmoid(y - b) / n for y in worse]
    slopes = [-own - sum(of_worse) / n for own in of_better]
    return value, slopes + [own + sum(of_better) / n for own in of_worse]


@pytest.mark.parametrize("shape", [(6,), (2, 1, 1, 3)], ids=["logits", "patches"])
def test_relativistic_average(shape: tuple[int, ...]) -> None:
    loss = LOSSES["relativistic_average"]
    for player, sides in ((loss.discriminator, (0, 1)), (loss.generator, (1, 0))):
        numbers = (REAL, FAKE)
        expected, slopes = average_by_hand(*(numbers[side] for side in sides))
        tensors = [torch.tensor(n, dtype=torch.float64).reshape(shape) for n in numbers]
        leaves = [tensor.requires_grad_() for tensor in tensors]
        result = player(*leaves)
        assert result.item() == pytest.approx(expected, rel=1e-12)
        gradients = torch.autograd.grad(result, [leaves[side] for side in sides])
        found = torch.cat([gradient.flatten() for gradient in gradients]).tolist()
        assert found == pytest.approx(slopes, rel=1e-12)


@pytest.mark.parametrize("name", ["minimax", "non_saturating", "least_squares"])
def test_one_sided_label_smoothing(name: str) -> None:
    """The target of real samples is 0.9; generated ones and the generator's loss are as before."""
    smooth, plain = loss_named(name, smoothing=0.1), LOSSES[name]
    real, fake = (torch.tensor(n, dtype=torch.float64) for n in (REAL, FAKE))
    if name == "least_squares":
        by_hand = sum((r - 0.9) ** 2 + f**2 for r, f in zip(REAL, FAKE)) / 12
    else:
        cross = [-0.9 * math.log(sigmoid(r)) - 0.1 * math.log(1 - sigmoid(r)) for r in REAL]
        by_hand = (sum(cross) + sum(softplus(f) for f in FAKE)) / 6
    assert smooth.discriminator(real, fake).item() == pytest.approx(by_hand, rel=1e-12)
    assert torch.equal(smooth.generator(real, fake), plain.generator(real, fake))
    assert loss_named(name).discriminator(real, fake) == plain.discriminator(real, fake)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "relativistic_average"])
def test_weights_choose_samples(name: str) -> None:
    """Twice for one half of the samples, none for the other: the loss of that half alone."""
    generator = LOSSES[name].generator
    real, fake = torch.tensor(REAL).double(), torch.tensor(FAKE).double()
    weights = torch.tensor([2.0, 0, 0, 2, 2, 0], dtype=torch.float64)
    chosen = weights > 0
    expected = generator(real[chosen], fake[chosen])
    torch.testing.assert_close(generator(real, fake, weights=weights), expected)
    patches = generator(real.view(6, 1, 1), fake.view(6, 1, 1), weights=weights)
    torch.testing.assert_close(patches, expected)


def test_feature_matching_by_pencil() -> None:
    real = torch.tensor([[1.0, 4.0], [3.0, 0.0]]).double()
    fake = torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 3.0]]).double().requires_grad_()
    loss = feature_matching(real, fake)  # means (2, 2) and (1, 2)
    assert loss.item() == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad(loss, fake)
    assert gradient.flatten().tolist() == pytest.approx([-2 / 3, 0.0] * 3)
    with pytest.raises(ValueError, match=r"\(2,\), of generated ones \(3,\): .* same layer"):
        feature_matching(real, torch.zeros(2, 3))


def of_global_batch(parts: int = 1, rank: int = 0, over_ranks=alone) -> dict[str, Tensor]:
    """Losses and gradients in the weight of a linear discriminator, on part of 8 samples."""
    numbers = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 8, 3, generator=numbers, dtype=torch.float64).chunk(2)
    real, fake = (x[0].chunk(parts)[rank] for x in (real, fake + 1))
    weight = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
    loss = loss_named("relativistic_average", over_ranks=over_ranks)
    results = {
        "discriminator": loss.discriminator(real @ weight, fake @ weight),
        "generator": loss.generator(real @ weight, fake @ weight),
        "features": feature_matching((real * weight).tanh(), (fake * weight).tanh(), over_ranks),
    }
    gradients = {k: torch.autograd.grad(v, weight)[0] for k, v in results.items()}
    return {k: torch.cat([v.detach()[None], gradients[k]]) for k, v in results.items()}


def on_a_rank() -> dict[str, Tensor]:
    dist.init_process_group("gloo")
    group = dist.group.WORLD.group_name
    results = of_global_batch(
        dist.get_world_size(), dist.get_rank(), lambda x: mean_over_ranks(x, group)
    )
    dist.destroy_process_group()
    return results


def test_means_over_ranks_give_the_gradient_of_the_global_batch() -> None:
    whole = of_global_batch()
    ranks = run_ranks(2, on_a_rank)
    for name, expected in whole.items():
        # As a strategy does: gradients are averaged over ranks.
        mean = torch.stack([rank[name] for rank in ranks]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12, msg=name)
    halves = [of_global_batch(2, rank) for rank in (0, 1)]
    for name in whole:
        wrong = (halves[0][name] + halves[1][name]) / 2
        assert not torch.allclose(wrong, whole[name], rtol=1e-3), "the test cannot tell"


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"no loss 'hing'; did you mean 'hinge'\?"):
        loss_named("hing")
    with pytest.raises(ValueError, match=r"'hinge' has no labels to smooth: .*least_squares"):
        loss_named("hinge", smoothing=0.1)
    with pytest.raises(ValueError, match=r"smoothing is 1\.0; .* below 1"):
        loss_named("minimax", smoothing=1.0)
    with pytest.raises(ValueError, match=r"each real sample against one fake"):
        LOSSES["relativistic"].discriminator(torch.zeros(4), torch.zeros(2))
    check_logits("hinge", torch.zeros(4, 2, 2), 4)
    with pytest.raises(ValueError, match=r"shape \(2,\) for 4 samples; the loss 'hinge' takes"):
        check_logits("hinge", torch.zeros(2), 4)
