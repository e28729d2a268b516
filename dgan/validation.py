"""Values that no run can have are refused before anything is built."""

import math
from dataclasses import fields

from dgan.config import Augment, Balance, Data, Divergence, Judges, Parallel, Recipe
from dgan.scores import require_best, require_metrics
from dgan.validation_condition import check_condition
from dgan.validation_kinds import check_kind
from dgan.validation_task import check_task


def validate(recipe: Recipe) -> None:
    """Raise `ValueError` for values that no run can have."""
    least = {
        "train.steps": (recipe.train.steps, 1),
        "train.batch_size": (recipe.train.batch_size, 1),
        "train.accumulation": (recipe.train.accumulation, 1),
        "train.discriminator_updates": (recipe.train.discriminator_updates, 1),
        "train.generator_updates": (recipe.train.generator_updates, 1),
        "task.latents": (recipe.task.latents, 1),
        "train.log_every": (recipe.train.log_every, 1),
        "penalty.every": (recipe.penalty.every, 1),
        "train.seed": (recipe.train.seed, 0),
        "data.resolution": (recipe.data.resolution, 1),
        "data.classes": (recipe.data.classes, 0),
        "data.resize": (recipe.data.resize, 0),
        "data.embedding": (recipe.data.embedding, 0),
        "data.workers": (recipe.data.workers, 0),
        "data.cache_gigabytes": (recipe.data.cache_gigabytes, 0),
        "parallel.copies": (recipe.parallel.copies, 1),
        "parallel.reshard_within": (recipe.parallel.reshard_within, 0),
        "checkpoint.every": (recipe.checkpoint.every, 1),
        "checkpoint.keep": (recipe.checkpoint.keep, 1),
        "checkpoint.keep_best": (recipe.checkpoint.keep_best, 0),
        **{
            f"regularizers.{field.name}": (getattr(recipe.regularizers, field.name), 0)
            for field in fields(recipe.regularizers)
        },
        **{
            f"{role}.{key}": (getattr(getattr(recipe, role), key), 0)
            for role in ("generator", "discriminator")
            for key in ON_WEIGHTS
        },
        "regularizers.path_length_every": (recipe.regularizers.path_length_every, 1),
        "judges.scales": (recipe.judges.scales, 1),
        "judges.shadow_kimg": (recipe.judges.shadow_kimg, 0),
        "balance.most": (recipe.balance.most, 1),
        "average.ramp": (recipe.average.ramp, 0),
        "average.width": (recipe.average.width, 0),
        "divergence.patience": (recipe.divergence.patience, 0),
        "divergence.at_most": (recipe.divergence.at_most, 1),
        "samples.every": (recipe.samples.every, 1),
        "samples.count": (recipe.samples.count, 1),
        "evaluation.every": (recipe.evaluation.every, -1),
        "evaluation.samples": (recipe.evaluation.samples, 2),
        "evaluation.real_samples": (recipe.evaluation.real_samples, 0),
        "run.stall_minutes": (recipe.run.stall_minutes, 0),
        "run.start_minutes": (recipe.run.start_minutes, 0),
    }
    for key, (value, minimum) in least.items():
        if value < minimum:
            raise ValueError(f"--{key} is {value}; it must be at least {minimum}")
    _check_parallel(recipe.parallel)
    _check_on_weights(recipe)
    check_task(recipe)
    _check_objective(recipe)
    _check_augment(recipe.augment)
    _check_judges(recipe)
    _check_balance(recipe.balance)
    _check_weights(recipe.data)
    if not 0 <= recipe.data.max_skipped <= 1:
        raise ValueError(
            f"--data.max_skipped is {recipe.data.max_skipped}; it is a fraction, from 0 to 1"
        )
    _check_divergence(recipe.divergence)
    require_metrics(recipe.evaluation.metrics, "--evaluation.metrics")
    require_best(recipe.checkpoint.best, "--checkpoint.best")
    check_kind(recipe)
    check_condition(recipe)


ON_WEIGHTS = ("orthogonal", "historical")


def _check_on_weights(recipe: Recipe) -> None:
    for role in ("generator", "discriminator"):
        for key in ON_WEIGHTS:
            value = getattr(getattr(recipe, role), key)
            if value and recipe.parallel.strategy == "deepspeed":
                raise ValueError(
                    f"--{role}.{key} {value} adds to gradients, which --parallel.strategy "
                    "deepspeed keeps to itself: choose fsdp or ddp, or set it to 0"
                )


OF_STRATEGY = {
    "compile": ("single", "ddp", "fsdp"),
    "offload": ("fsdp", "deepspeed"),
    "reshard_after_forward": ("fsdp",),
    "reshard_within": ("fsdp",),
    "copies": ("fsdp",),
    "zero_stage": ("deepspeed",),
    "deepspeed_config": ("deepspeed",),
}
"""Which strategies an option of `Parallel` is for; the others would ignore it."""


def _check_parallel(parallel: Parallel) -> None:
    for key, strategies in OF_STRATEGY.items():
        value = getattr(parallel, key)
        if value != getattr(Parallel(), key) and parallel.strategy not in strategies:
            raise ValueError(
                f"--parallel.{key} {value} means nothing under --parallel.strategy "
                f"{parallel.strategy}: it is for {' and '.join(strategies)}"
            )


UNBOUNDED = (
    "characters", "dcgan", "mlp", "points", "r3gan", "stylegan2", "transformer", "video",
    "waveform", "waveform-judges",
)  # fmt: skip
"""Families of discriminators that nothing keeps Lipschitz by itself."""


def _check_objective(recipe: Recipe) -> None:
    task, penalty, parts = recipe.task, recipe.penalty, recipe.train.accumulation
    has_penalty = penalty.gamma.start > 0 or penalty.gamma.end > 0
    if penalty.one_sided and penalty.kind != "one_centered":
        raise ValueError(
            "--penalty.one_sided is for --penalty.kind one_centered: zero-centred, every norm is "
            "on the side that counts"
        )
    if penalty.augmented and recipe.augment.kind == "none":
        raise ValueError("--penalty.augmented needs an --augment.kind beside none")
    if recipe.average.ramp and recipe.average.width:
        raise ValueError(
            "--average.ramp bounds a half-life, and with --average.width there is none: set one of "
            "them to 0"
        )
    if not 0 < recipe.regularizers.top_k <= 1:
        raise ValueError(
            f"--regularizers.top_k is {recipe.regularizers.top_k}; it must be above 0 and at most 1"
        )
    if recipe.regularizers.top_k < 1 and task.loss == "relativistic_average":
        raise ValueError(
            "--regularizers.top_k picks samples, and --task.loss relativistic_average judges each "
            "by all others: choose another loss, or set it to 1"
        )
    matches = task.generator == "feature_matching"
    if recipe.regularizers.top_k < 1 and matches:
        raise ValueError(
            "--regularizers.top_k weighs samples by their logits, and --task.generator "
            "feature_matching looks at none: set one of them back"
        )
    unbounded = not has_penalty and not recipe.regularizers.clip
    if task.loss == "wasserstein" and unbounded and recipe.discriminator.network in UNBOUNDED:
        raise ValueError(
            "--task.loss wasserstein needs a discriminator that is kept Lipschitz: set "
            "--regularizers.clip 0.01 (WGAN), or --penalty.gamma.start 10 --penalty.gamma.end 10 "
            "--penalty.points between --penalty.kind one_centered (WGAN-GP)"
        )
    for key, value, global_mean in (
        ("task.loss", task.loss, task.loss == "relativistic_average"),
        ("task.generator", task.generator, matches),
        ("penalty.points", penalty.points, has_penalty and penalty.points == "around"),
        ("regularizers.top_k", recipe.regularizers.top_k, recipe.regularizers.top_k < 1),
    ):
        if global_mean and parts > 1:
            raise ValueError(
                f"--{key} {value} has a mean over the whole batch within, which "
                f"--train.accumulation {parts} takes apart: set it to 1"
            )


def _check_augment(augment: Augment) -> None:
    given = {
        "probability.start": augment.probability.start,
        "probability.end": augment.probability.end,
        "color": augment.color,
        "cutout": augment.cutout,
    }
    for key, value in given.items():
        if not 0 <= value <= 1:
            raise ValueError(f"--augment.{key} is {value}; it must be from 0 to 1")
    scheduled = given["probability.start"] or given["probability.end"]
    if scheduled and augment.kind != "scheduled":
        raise ValueError(
            f"--augment.probability.end is for --augment.kind scheduled, and it is {augment.kind}"
        )
    if augment.kind == "scheduled" and not scheduled:
        raise ValueError(
            "--augment.kind scheduled never augments anything at a probability of 0: set "
            "--augment.probability.end, such as 0.3, and --augment.probability.kimg"
        )
    of_ada = (augment.color, augment.cutout) != (Augment().color, Augment().cutout)
    if of_ada and augment.kind not in ("ada", "scheduled"):
        raise ValueError(
            f"--augment.color and --augment.cutout are for --augment.kind ada and scheduled, and "
            f"it is {augment.kind}"
        )


def _check_judges(recipe: Recipe) -> None:
    judges = recipe.judges
    if judges.shadow_kimg and recipe.parallel.strategy == "deepspeed":
        raise ValueError(
            f"--judges.shadow_kimg {judges.shadow_kimg} averages weights in full precision, which "
            "--parallel.strategy deepspeed keeps of trained ones only: choose fsdp or ddp"
        )
    if judges == Judges():
        return
    if recipe.task.loss == "relativistic_average":
        raise ValueError(
            "--task.loss relativistic_average compares with a mean logit, which of several judges "
            "(--judges) would be none of theirs: choose relativistic"
        )
    if recipe.task.generator == "feature_matching":
        raise ValueError(
            "--task.generator feature_matching takes the features of one discriminator, and "
            "--judges makes several: leave them out"
        )


def _check_balance(balance: Balance) -> None:
    low, high = balance.low, balance.high
    if not low < high:
        raise ValueError(f"--balance.low is {low} and --balance.high {high}: it must be below it")
    if balance.by == "accuracy" and (low < 0 or high > 1):
        raise ValueError(
            f"--balance.low {low} and --balance.high {high} bound an accuracy: from 0 to 1"
        )


def _check_weights(data: Data) -> None:
    if not data.weights:
        return
    given = " ".join(map(str, data.weights))
    if not all(math.isfinite(weight) and weight > 0 for weight in data.weights):
        raise ValueError(f"--data.weights is {given}; all of them must be positive numbers")
    sets = 1 if isinstance(data.shards, str) else len(data.shards)
    if len(data.weights) != sets:
        raise ValueError(
            f"--data.weights is {given}, but --data.shards has {sets} entries: each entry is a "
            "data set that needs one weight (a pattern such as 'x-*.tar' is one entry, in quotes)"
        )


def _check_divergence(divergence: Divergence) -> None:
    if divergence.policy not in ("stop", "rollback"):
        raise ValueError(f"--divergence.policy is {divergence.policy!r}; choose stop or rollback")
    off = ", or 0: no bound"
    ranges = {
        "accuracy": (0.5, 1.0, off),
        "diversity": (0.0, 1.0, off),
        "logits": (0.0, math.inf, off),
        "penalty": (0.0, math.inf, off),
        "learning_rate": (0.0, 1.0, ""),
    }
    for key, (above, most, or_else) in ranges.items():
        value = getattr(divergence, key)
        if not (above < value <= most or (or_else and value == 0)):
            limits = f"above {above:g}" + (f" and at most {most:g}" if most < math.inf else "")
            raise ValueError(f"--divergence.{key} is {value}; it must be {limits}{or_else}")
