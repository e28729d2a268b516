"""The losses of synthesis against the formulas of the papers, written out in float64."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.draws import Draws
from dgan.networks import build
from dgan.objectives.augment import DIFF_AUGMENT_NUMBERS, diff_augment
from dgan.objectives.augment_adaptive import ADAPTIVE_NUMBERS, adaptive_augment
from dgan.schedule import Cosine, constant
from dgan.tasks.added import Regularizers
from dgan.tasks.augmentation import Augmentation
from dgan.tasks.penalty import Penalty
from dgan.tasks.synthesis import Synthesis

EXACT = {"rtol": 1e-10, "atol": 1e-12}
OPTIONS: dict[str, dict[str, Any]] = {
    "r3gan": {"widths": (6, 4, 4), "blocks": (1, 1, 1), "groups": (3, 2, 1)},
    "dcgan": {"widths": (6, 4)},
    "mlp": {"widths": (9, 8)},
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(family: str, classes: int) -> tuple[nn.Module, nn.Module]:
    networks = []
    for role in ("generator", "discriminator"):
        sizes = {"resolution": 16, "channels": 1, "classes": classes, **OPTIONS[family]}
        extra = {"z_dim": 5} if role == "generator" else {}
        networks.append(build(role, family, seed=len(networks), **sizes, **extra).double())
        for seed, parameter in enumerate(networks[-1].parameters()):
            parameter.data = parameter + 0.3 * numbers(*parameter.shape, seed=seed)
    return networks[0], networks[1]


BATCH = {
    "image": numbers(6, 1, 16, 16, seed=5).tanh(),
    "label": torch.tensor([0, 2, 1, 2, 1, 0]),
    "__key__": list("abcdef"),
}
DRAWS = Draws(
    seed=3,
    purpose="discriminator",
    step=7,
    rows=range(6, 12),
    device=torch.device("cpu"),
    dtype=torch.float64,
)
Z = DRAWS.normal(5)


def task(loss: str, gamma: float | Cosine = 0.0, classes: int = 3, **options: Any) -> Synthesis:
    schedule = gamma if isinstance(gamma, Cosine) else constant(gamma)
    names = {field.name for field in fields(Penalty)}
    penalty = Penalty(gamma=schedule, **{k: v for k, v in options.items() if k in names})
    options = {"separate": False} | {k: v for k, v in options.items() if k not in names}
    condition = "label" if classes else ""
    return Synthesis(loss=loss, penalty=penalty, z_dim=5, condition=condition, **options)


def squared_gradient(network: Callable[..., Tensor], x: Tensor, labels: Tensor | None) -> Tensor:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, labels).sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def parameter_gradients(loss: Tensor, network: nn.Module) -> list[Tensor]:
    parameters = list(network.parameters())
    return list(torch.autograd.grad(loss, parameters, materialize_grads=True))


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("family", ["r3gan", "mlp"])
def test_r3gan_discriminator_loss(family: str, classes: int, separate: bool) -> None:
    """Softplus(−(D(x) − D(G(z)))) + γ/2 (‖∇D(x)‖² + ‖∇D(G(z))‖²)."""
    generator, discriminator = pair(family, classes)
    labels = BATCH["label"] if classes else None
    real, fake = BATCH["image"], generator(Z, labels).detach()
    margin = discriminator(real, labels) - discriminator(fake, labels)
    adversarial = F.softplus(-margin).mean()
    r1 = squared_gradient(discriminator, real, labels)
    r2 = squared_gradient(discriminator, fake, labels)
    expected = adversarial + 0.7 / 2 * (r1 + r2)

    objective = task("relativistic", 0.7, classes, separate=separate)
    terms = objective.discriminator_loss(discriminator, generator, BATCH, DRAWS, 0)
    torch.testing.assert_close(terms["loss"], expected, **EXACT)
    wanted = parameter_gradients(expected, discriminator)
    for found, gradient in zip(parameter_gradients(terms["loss"], discriminator), wanted):
        torch.testing.assert_close(found, gradient, **EXACT)
    torch.testing.assert_close(terms["adversarial"], adversarial, **EXACT)
    torch.testing.assert_close(terms["penalty"], 0.35 * (r1 + r2), **EXACT)
    torch.testing.assert_close(terms["r1"], r1.detach(), **EXACT)
    torch.testing.assert_close(terms["r2"], r2.detach(), **EXACT)
    torch.testing.assert_close(terms["real_logits"] - terms["fake_logits"], margin.mean(), **EXACT)
    pairs = discriminator(real, labels) > discriminator(fake, labels)
    torch.testing.assert_close(terms["accuracy"], pairs.double().mean(), **EXACT)
    assert terms["moments"].shape == (2, 2, 64)
    assert all(terms[key].shape == () for key in terms.keys() - {"moments"})
    assert not any(terms[key].requires_grad for key in ("accuracy", "moments", "r1", "r2"))
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_a_discriminator_that_couples_samples_judges_each_half_alone() -> None:
    generator, discriminator = pair("dcgan", 0)
    real, fake = BATCH["image"], generator(Z, None).detach()
    r1 = squared_gradient(discriminator, real, None)
    r2 = squared_gradient(discriminator, fake, None)
    real_logits, fake_logits = discriminator(real), discriminator(fake)
    expected = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean() + 2 * (r1 + r2)
    results = [
        task("non_saturating", 4.0, 0, separate=separate).discriminator_loss(
            discriminator, generator, BATCH, DRAWS, 0
        )["loss"]
        for separate in (True, False)
    ]
    torch.testing.assert_close(results[0], expected, **EXACT)
    assert not torch.allclose(results[1], expected, rtol=1e-3)


FORMULAS = {
    "relativistic": (
        lambda r, f: F.softplus(f - r).mean(),
        lambda r, f: F.softplus(r - f).mean(),
    ),
    "hinge": (
        lambda r, f: (1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean(),
        lambda r, f: -f.mean(),
    ),
    "non_saturating": (
        lambda r, f: -(F.logsigmoid(r) + F.logsigmoid(-f)).mean(),
        lambda r, f: -F.logsigmoid(f).mean(),
    ),
}


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("loss", FORMULAS)
def test_losses_without_penalty(loss: str, classes: int) -> None:
    generator, discriminator = pair("r3gan", classes)
    labels = BATCH["label"] if classes else None
    fake = generator(Z, labels)
    logits = discriminator(BATCH["image"], labels), discriminator(fake, labels)
    for_discriminator, for_generator = (formula(*logits) for formula in FORMULAS[loss])

    objective = task(loss, classes=classes)
    terms = objective.discriminator_loss(discriminator, generator, BATCH, DRAWS, 0)
    torch.testing.assert_close(terms["loss"], for_discriminator, **EXACT)
    logged = {"real_logits", "fake_logits", "real_signs", "accuracy", "moments"}
    assert terms.keys() == {"loss", "adversarial"} | logged
    weights = list(generator.parameters())
    assert not any(
        g is not None for g in torch.autograd.grad(terms["loss"], weights, allow_unused=True)
    )
    terms = objective.generator_loss(generator, discriminator, BATCH, DRAWS, 0)
    torch.testing.assert_close(terms["loss"], for_generator, **EXACT)
    wanted = parameter_gradients(for_generator, generator)
    for found, gradient in zip(parameter_gradients(terms["loss"], generator), wanted):
        torch.testing.assert_close(found, gradient, **EXACT)


@pytest.mark.parametrize("kind", ["label", "condition"])
@pytest.mark.parametrize("separate", [False, True])
def test_real_samples_of_another_condition_are_refused(kind: str, separate: bool) -> None:
    """GAN-CLS (Reed et al. 2016, equation 4): s_r, and half of s_w and of s_f."""
    generator, discriminator = pair("r3gan", 3)
    batch = {**BATCH, "condition": numbers(6, 3, seed=8)}
    given, neighbours = batch[kind], batch[kind][[1, 0, 3, 2, 5, 4]]
    fake = generator(Z, given).detach()
    right, wrong = (discriminator(batch["image"], y) for y in (given, neighbours))
    parts = [
        -F.logsigmoid(right),
        -F.logsigmoid(-wrong),
        -F.logsigmoid(-discriminator(fake, given)),
    ]
    expected = parts[0].mean() + 0.5 * parts[1].mean() + 0.5 * parts[2].mean()

    objective = task("non_saturating", separate=separate, mismatch=0.5)
    objective.condition = kind
    terms = objective.discriminator_loss(discriminator, generator, batch, DRAWS, 0)
    torch.testing.assert_close(terms["loss"], expected, **EXACT)
    wanted = parameter_gradients(expected, discriminator)
    for found, gradient in zip(parameter_gradients(terms["loss"], discriminator), wanted):
        torch.testing.assert_close(found, gradient, **EXACT)
    torch.testing.assert_close(terms["matched"], (right > wrong).double().mean(), **EXACT)
    # A third of the weight, beside the penalty, and through the paired differences of R3GAN.
    terms = task("relativistic", 0.7, mismatch=1 / 3).discriminator_loss(
        discriminator, generator, BATCH, DRAWS, 0
    )
    labels = BATCH["label"]
    fake = generator(Z, labels).detach()
    scores = [discriminator(BATCH["image"], labels), discriminator(fake, labels)]
    scores.append(discriminator(BATCH["image"], labels[[1, 0, 3, 2, 5, 4]]))
    pairs = [F.softplus(other - scores[0]).mean() for other in scores[1:]]
    torch.testing.assert_close(terms["adversarial"], (2 * pairs[0] + pairs[1]) / 3, **EXACT)


def test_gamma_follows_its_schedule() -> None:
    generator, discriminator = pair("mlp", 0)
    objective = task("hinge", Cosine(start=2.0, end=0.0, kimg=1.0), 0)
    half, end = (
        objective.discriminator_loss(discriminator, generator, BATCH, DRAWS, seen)
        for seen in (500, 1000)
    )
    squares = half["r1"] + half["r2"]
    torch.testing.assert_close(half["penalty"].detach(), 0.5 * squares, **EXACT)
    assert "penalty" not in end


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (constant(0.0), False),
        (constant(1.0), True),
        (Cosine(start=1.0, end=0.0, kimg=1.0), True),
        (Cosine(start=0.0, end=1.0, kimg=1.0), True),
    ],
)
def test_a_penalty_at_any_time_is_announced(gamma: Cosine, expected: bool) -> None:
    assert task("hinge", gamma).penalty.is_taken == expected


def test_unconditional_networks_are_not_given_labels() -> None:
    generator, discriminator = pair("mlp", 0)
    seen = []
    for network in (generator, discriminator):
        network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    task("relativistic", 1.0, 0).discriminator_loss(discriminator, generator, BATCH, DRAWS, 0)
    task("relativistic", 1.0, 0).generator_loss(generator, discriminator, BATCH, DRAWS, 0)
    assert len(seen) == 5
    assert all(label is None for label in seen)


def test_a_lazy_penalty_comes_every_few_steps_and_is_as_much_stronger() -> None:
    """Lazy regularisation: none in steps 2 and 3, three times the penalty in steps 1 and 4."""
    generator, discriminator = pair("mlp", 3)
    usual, lazy = task("hinge", 2.0), task("hinge", 2.0, every=3)
    for step in (1, 2, 3, 4):
        draws = replace(DRAWS, step=step)
        a = usual.discriminator_loss(discriminator, generator, BATCH, draws, 0)
        b = lazy.discriminator_loss(discriminator, generator, BATCH, draws, 0)
        torch.testing.assert_close(a["adversarial"], b["adversarial"], **EXACT)
        if step in (1, 4):
            torch.testing.assert_close(b["penalty"], 3 * a["penalty"], **EXACT)
        else:
            assert "penalty" not in b
            torch.testing.assert_close(b["loss"], b["adversarial"], **EXACT)


def one_centred(network: nn.Module, x: Tensor, labels: Tensor | None) -> Tensor:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, labels).sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


@pytest.mark.parametrize("points", ["real", "fake", "between", "around"])
def test_where_a_penalty_is_taken(points: Any) -> None:
    """γ/2 ‖∇D‖² of R1 and R2; γ (‖∇D‖ − 1)² of WGAN-GP and DRAGAN."""
    generator, discriminator = pair("mlp", 3)
    real, labels = BATCH["image"], BATCH["label"]
    fake = generator(Z, labels).detach()
    if points in ("real", "fake"):
        x = real if points == "real" else fake
        expected, kind = 0.5 * squared_gradient(discriminator, x, labels), "zero_centered"
    else:
        named = DRAWS.named(points)
        if points == "between":
            x = fake + named.uniform(1)[:, 0].view(-1, 1, 1, 1) * (real - fake)
        else:
            noise = torch.special.ndtr(named.noise((1, 16, 16)))
            x = real + 0.5 * real.std(correction=0) * noise
        expected, kind = one_centred(discriminator, x, labels), "one_centered"
    objective = task("hinge", 3.0, points=points, kind=kind)
    terms = objective.discriminator_loss(discriminator, generator, BATCH, DRAWS, 0)
    torch.testing.assert_close(terms["penalty"], 3 * expected, **EXACT)
    torch.testing.assert_close(terms["loss"], terms["adversarial"] + terms["penalty"], **EXACT)
    found = parameter_gradients(terms["penalty"], discriminator)
    for gradient, wanted in zip(found, parameter_gradients(3 * expected, discriminator)):
        torch.testing.assert_close(gradient, wanted, **EXACT)
    logits = discriminator(real, labels).mean(), discriminator(fake, labels).mean()
    torch.testing.assert_close((terms["real_logits"], terms["fake_logits"]), logits, **EXACT)


def test_a_penalty_goes_through_the_augmentation_or_is_taken_behind_it() -> None:
    generator, discriminator = pair("mlp", 0)
    augmentation = Augmentation(kind="diff")
    real = BATCH["image"]
    uniform = DRAWS.named("augment real").uniform(DIFF_AUGMENT_NUMBERS)
    expected = {
        False: squared_gradient(
            lambda x, y: discriminator(diff_augment(x, uniform), y), real, None
        ),
        True: squared_gradient(discriminator, diff_augment(real, uniform), None),
    }
    for augmented, squares in expected.items():
        objective = task(
            "hinge", 1.0, 0, points="real", augmentation=augmentation,
            penalise_augmented=augmented,
        )  # fmt: skip
        terms = objective.discriminator_loss(discriminator, generator, BATCH, DRAWS, 0)
        torch.testing.assert_close(terms["r1"], squares.detach(), **EXACT)
    assert not torch.allclose(*expected.values(), rtol=1e-3)


def test_a_scheduled_probability_follows_the_images_seen() -> None:
    """Halfway through half a cosine from 0.2 to 0.6: 0.4; nothing that is logged moves it."""
    schedule = Cosine(start=0.2, end=0.6, kimg=0.1)
    augmentation = Augmentation(kind="scheduled", probability=schedule, color=0.5, cutout=0.9)
    objective = task("hinge", classes=0, augmentation=augmentation)
    generator, discriminator = pair("mlp", 0)
    uniform = DRAWS.named("augment real").uniform(ADAPTIVE_NUMBERS)
    objective.after_discriminator({"real_signs": 1.0}, images=100)
    for seen, p in ((0, 0.2), (50, 0.4), (100, 0.6)):
        changed = adaptive_augment(BATCH["image"], uniform, p, color=0.5, cutout=0.9)
        terms = objective.discriminator_loss(discriminator, generator, BATCH, DRAWS, seen)
        torch.testing.assert_close(
            terms["real_logits"], discriminator(changed).mean(), **EXACT, msg=str(seen)
        )
    assert objective.memory["p"].item() == 0


def test_ada_and_lecam_follow_what_the_discriminator_says() -> None:
    augmentation = Augmentation(kind="ada", target=0.6, kimg=1.0)
    objective = task(
        "non_saturating", augmentation=augmentation, regularizers=Regularizers(lecam=1.0)
    )
    objective.after_discriminator(
        {"real_signs": 0.9, "real_logits": 2.0, "fake_logits": -3.0}, images=100
    )
    assert objective.memory["p"].item() == pytest.approx(0.1)
    assert objective.memory["lecam_real"].item() == pytest.approx(0.01 * 2.0)
    assert objective.memory["lecam_fake"].item() == pytest.approx(0.01 * -3.0)
    objective.after_discriminator(
        {"real_signs": 0.1, "real_logits": 2.0, "fake_logits": -3.0}, images=40
    )
    assert objective.memory["p"].item() == pytest.approx(0.06)
    generator, discriminator = pair("mlp", 3)
    terms = objective.discriminator_loss(discriminator, generator, BATCH, DRAWS, 0)
    changed = adaptive_augment(
        BATCH["image"], DRAWS.named("augment real").uniform(ADAPTIVE_NUMBERS), augmentation.p
    )
    assert not torch.equal(changed, BATCH["image"])
    real_logits = discriminator(changed, BATCH["label"]).mean()
    torch.testing.assert_close(terms["real_logits"], real_logits, **EXACT)
    assert terms["lecam"].item() > 0
