"""What no run can be: refused before anything is built, in words that say what to set."""

import re
from dataclasses import is_dataclass, replace
from functools import reduce
from typing import Any

import pytest
from tiny import tiny

from dgan.config import Augment, Balance, Judges, Penalty
from dgan.divergence import SIGNS
from dgan.schedule import constant
from dgan.toy import toy_recipe
from dgan.validation import validate

NO_PENALTY = Penalty(gamma=constant(0.0))
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"penalty__one_sided": True}, "--penalty.one_sided is for --penalty.kind one_centered"),
    ({"penalty__augmented": True}, "--penalty.augmented needs an --augment.kind"),
    (
        {"augment": Augment(kind="scheduled", probability=constant(1.5))},
        "--augment.probability.start is 1.5; it must be from 0 to 1",
    ),
    ({"augment": Augment(kind="scheduled")}, "--augment.kind scheduled never augments anything"),
    (
        {"augment": Augment(kind="ada", probability=constant(0.3))},
        "--augment.probability.end is for --augment.kind scheduled, and it is ada",
    ),
    ({"augment": Augment(kind="diff", cutout=1.0)}, "--augment.cutout are for --augment.kind ada"),
    ({"average__ramp": 0.05, "average__width": 0.1}, "set one of them to 0"),
    (
        {"task__loss": "wasserstein", "penalty": NO_PENALTY},
        "--regularizers.clip 0.01 (WGAN), or --penalty.gamma.start 10 --penalty.gamma.end 10",
    ),
    (
        {"task__loss": "relativistic_average", "train__accumulation": 2},
        "--task.loss relativistic_average has a mean over the whole batch",
    ),
    (
        {"penalty__points": "around", "train__accumulation": 2},
        "--penalty.points around has a mean over the whole batch",
    ),
    ({"regularizers__top_k": 0.0}, "--regularizers.top_k is 0.0; it must be above 0"),
    (
        {"regularizers__top_k": 0.5, "task__loss": "relativistic_average"},
        "--regularizers.top_k picks samples",
    ),
    (
        {"regularizers__top_k": 0.5, "train__accumulation": 2},
        "--regularizers.top_k 0.5 has a mean over the whole batch",
    ),
    (
        {"task__generator": "feature_matching", "train__accumulation": 2},
        "--task.generator feature_matching has a mean over the whole batch",
    ),
    (
        {"task__generator": "feature_matching", "regularizers__top_k": 0.5},
        "--regularizers.top_k weighs samples by their logits",
    ),
    (
        {"generator__historical": 1.0, "parallel__strategy": "deepspeed"},
        "--generator.historical 1.0 adds to gradients, which --parallel.strategy deepspeed keeps",
    ),
    (
        {"discriminator__orthogonal": -1.0},
        "--discriminator.orthogonal is -1.0; it must be at least 0",
    ),
    ({"balance": Balance(low=0.9, high=0.6)}, "--balance.low is 0.9 and --balance.high 0.6"),
    ({"balance": Balance(by="accuracy", high=1.5)}, "--balance.high 1.5 bound an accuracy"),
    (
        {"judges": Judges(shadow_kimg=1.0), "parallel__strategy": "deepspeed"},
        "--judges.shadow_kimg 1.0 averages weights in full precision",
    ),
    (
        {"judges": Judges(scales=2), "task__loss": "relativistic_average"},
        "--task.loss relativistic_average compares with a mean logit",
    ),
    (
        {"judges": Judges(scales=2), "task__generator": "feature_matching"},
        "--task.generator feature_matching takes the features of one discriminator",
    ),
    ({"task__latents": 0}, "--task.latents is 0; it must be at least 1"),
    ({"regularizers__lecam": -1.0}, "--regularizers.lecam is -1.0; it must be at least 0"),
    ({"train__generator_updates": 0}, "--train.generator_updates is 0; it must be at least 1"),
    ({"data__kind": "stacked"}, "--data.channels is 1; --data.kind stacked makes 3 of single ones"),
    (
        {"data__kind": "stacked", "data__channels": 3, "evaluation__every": 5},
        "--evaluation.features stacked:PATH",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_no_run_can_be(changes: dict[str, Any], message: str) -> None:
    validate(tiny("shards-*.tar", "run"))
    with pytest.raises(ValueError, match=re.escape(message)):
        validate(tiny("shards-*.tar", "run", **changes))


def test_latents_are_no_images() -> None:
    recipe = tiny("latents-*.tar", "run", data__kind="latents", data__channels=4, data__flip=False)
    validate(recipe)
    for changes, message in (
        ({"data__flip": True}, "--data.flip True means nothing to --data.kind latents"),
        ({"data__crop": "centre"}, "--data.crop centre means nothing"),
        ({"augment": Augment(kind="ada")}, "--augment.kind ada means nothing"),
        ({"data__channels": 0}, "--data.channels is 0; it must be at least 1"),
        ({"evaluation__every": 0}, "--data.kind latents has no scores.*--evaluation.every -1"),
    ):
        given = {"data__kind": "latents", "data__channels": 4, "data__flip": False, **changes}
        with pytest.raises(ValueError, match=message):
            validate(tiny("latents-*.tar", "run", **given))


def test_what_keeps_a_critic_lipschitz_is_enough() -> None:
    clipped = {"task__loss": "wasserstein", "penalty": NO_PENALTY, "regularizers__clip": 0.01}
    validate(tiny("shards-*.tar", "run", **clipped))
    validate(tiny("shards-*.tar", "run", "sngan", task__loss="wasserstein", penalty=NO_PENALTY))


def test_points_are_no_images() -> None:
    recipe = toy_recipe("ring", "hinge")
    validate(recipe)
    with pytest.raises(ValueError, match=r"--augment\.kind ada means nothing to"):
        validate(replace(recipe, augment=replace(recipe.augment, kind="ada")))
    with pytest.raises(ValueError, match=r"--regularizers\.bcr 1\.0 means nothing to"):
        validate(replace(recipe, regularizers=replace(recipe.regularizers, bcr=1.0)))
    with pytest.raises(ValueError, match=r"--data\.classes 8 means nothing to --data\.kind points"):
        validate(replace(recipe, data=replace(recipe.data, classes=8)))


def test_what_is_advised_is_a_flag_of_the_command_line() -> None:
    told = [*(sign.advice for sign in SIGNS.values()), *(message for _, message in REFUSED)]
    flags = {flag for text in told for flag in re.findall(r"--([a-z_]+(?:\.[a-z_0-9]+)+)", text)}
    assert len(flags) > 20
    for flag in flags:
        value = reduce(getattr, flag.split("."), tiny("", ""))
        assert not is_dataclass(value), flag
