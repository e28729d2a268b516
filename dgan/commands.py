"""The commands of `dgan` besides training: each function is one, its arguments are flags."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dgan import recipes
from dgan.command_checks import Given, require
from dgan.config_game import Loss


def list_recipes() -> None:
    """The recipes that come with dgan."""
    for name, text in recipes.describe().items():
        print(f"{name}\n    " + text.replace("\n", "\n    ") + "\n")


def evaluate(
    run: Given[Path],
    /,
    *,
    all_metrics: Annotated[bool, tyro.conf.arg(name="all"), tyro.conf.FlagCreatePairsOff] = False,
    metrics: tuple[str, ...] = (),
    samples: int | None = None,
    real_samples: int | None = None,
    features: str | None = None,
    shards: str | None = None,
    validation: str | None = None,
    step: int | Literal["best"] | None = None,
    out: Path | None = None,
) -> None:
    """Score a run's averaged generator: a table here, and a JSON in the run's directory.

    FID and the classes it covers; with `--all` every score that features and generator allow.

    Args:
        run: the run's directory.
        all_metrics: every metric that is possible here.
        metrics: some of fid, kid, manifold (precision, recall, density, coverage, diversity),
            classifier_score, intra_fid and, where --validation is given, parzen (log-likelihood).
        samples: how many to generate; by default as the recipe says.
        real_samples: real images that kid and manifold compare with; by default as the recipe
            says; 0: as many as are generated, or all if there are fewer.
        features: what to compare in; by default as the recipe says.
        shards: the real images, such as a test split; by default those of the training's scores.
        validation: other real images, on which parzen chooses its bandwidth.
        step: of another checkpoint than the newest, or `best`: the one with the best score.
        out: the JSON; by default `evaluation-<step>.json` in the run's directory.
    """
    from contextlib import nullcontext

    from dgan.build_evaluation import SCORED_APART
    from dgan.data.location import redact
    from dgan.evaluation import Evaluator
    from dgan.evaluation_features import find_features
    from dgan.opening import open_compared, open_images, picture_of
    from dgan.parallel.world import launch
    from dgan.trained import load_run

    for name, value, least in (("samples", samples, 2), ("real-samples", real_samples, 0)):
        if value is not None:
            require(name, value, least)
    trained = load_run(run, step)
    recipe, data = trained.recipe, trained.recipe.data
    if data.kind in SCORED_APART:
        what = "makes text" if data.kind == "text" else "translates images"
        if all_metrics or metrics or real_samples or validation:
            raise ValueError(
                f"{run} {what}: --all, --metrics, --real-samples and --validation are of images "
                "from noise; what is always measured is another, to which --features adds an FID "
                "where images are translated"
            )
        if data.kind == "text" and features:
            raise ValueError(f"{run} makes text, which is scored without --features: leave it out")
        _evaluate_kind(trained, run, samples, features, shards, out)
        return
    if data.kind == "latents":
        raise ValueError(f"{run} makes latents, and scores are of images: decode them first")
    compared = shards or recipe.evaluation.shards or data.shards
    if validation is not None and validation == compared:
        raise ValueError(f"--validation {validation} are the images that are scored: name others")
    named = features or recipe.evaluation.features
    cache = run / "classifier.safetensors"
    has_features = named != "auto" or cache.exists()
    with (
        launch(precision=recipe.train.precision) as world,
        open_compared(recipe, compared) as dataset,
        nullcontext() if validation is None else open_compared(recipe, validation) as others,
        # Never trained on what it judges: the data to compare with may be another split.
        nullcontext() if has_features else open_images(recipe, data.shards) as training,
    ):
        evaluator = Evaluator(
            dataset,
            find_features(
                named,
                training,
                seed=recipe.train.seed,
                cache=cache,
                world=world,
                picture=picture_of(recipe),
            ),
            samples=samples or recipe.evaluation.samples,
            # As in training: the score of a step is then the same number.
            batch_size=min(recipe.train.batch_size, 256),
            seed=recipe.train.seed,
            classes=data.classes,
            world=world,
            metrics=("all",) if all_metrics else metrics or recipe.evaluation.metrics,
            real_samples=(recipe.evaluation.real_samples if real_samples is None else real_samples),
            shards=redact(str(compared)),
            validation=others,
            picture=picture_of(recipe),
        )
        scores = evaluator(trained.network.to(world.device), trained.z_dim)
        if world.is_first:
            path = out or run / f"evaluation-{trained.step:09d}.json"
            _report(scores | {"step": trained.step}, path)


def _evaluate_kind(
    trained: Any,
    run: Path,
    samples: int | None,
    features: str | None,
    shards: str | None,
    out: Path | None,
) -> None:
    """Score a generator from image to image, or of text."""
    from dataclasses import replace

    from dgan.build_evaluation import evaluator_of_kind
    from dgan.parallel.world import launch

    recipe = trained.recipe
    plan = replace(recipe.evaluation, samples=samples or recipe.evaluation.samples)
    planned = replace(recipe, evaluation=plan)
    compared = shards or plan.shards or recipe.data.shards
    with launch(precision=recipe.train.precision) as world:
        score = evaluator_of_kind(planned, compared, features or plan.features, world)
        scores = score(trained.network.to(world.device), trained.z_dim)
        if world.is_first:
            path = out or run / f"evaluation-{trained.step:09d}.json"
            _report(scores | {"step": trained.step}, path)


def _report(scores: dict[str, Any], path: Path) -> None:
    """Print what was measured, and write it to `path`, whole or not at all."""
    import json

    from rich.console import Console
    from rich.table import Table

    from dgan.data.aside import write_aside
    from dgan.scores import SCORES

    table = Table("score", "value", "better", "what it is", box=None, padding=(0, 1, 0, 0))
    table.columns[0].min_width = 16
    table.columns[0].no_wrap = True
    for key in (key for key in SCORES if key in scores):
        value = f"{scores[key]:.4g}" if isinstance(scores[key], float) else str(scores[key])
        table.add_row(key, value, SCORES[key].better or "–", SCORES[key].means)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table, soft_wrap=False)
    for key, value in scores.items():
        if key not in SCORES and not isinstance(value, dict):
            console.print(f"{key:21} {value}", markup=False)
    write_aside(path, json.dumps(scores, indent=1) + "\n")
    console.print(f"{'written to':21} {path}", markup=False)


def toy(
    name: Given[Literal["ring", "grid", "swissroll", "dirac"]],
    /,
    *,
    loss: tuple[Loss, ...] = ("relativistic", "non_saturating"),
    penalty: tuple[Literal["own", "none", "r1_r2", "wgan_gp", "clip"], ...] = ("own",),
    seeds: int = 1,
    steps: int = 20_000,
    out: Path = Path("runs/toy"),
) -> None:
    """Train on points of a known distribution, and score by PacGAN's protocol.

    By default the relativistic loss comes with R1 + R2, Wasserstein with its gradient penalty, the
    others with none. A training takes about 5 minutes on one core.

    Args:
        name: `ring` of 8 Gaussians, `grid` of 25, `swissroll`; `dirac` trains nothing: it measures
            the eigenvalues of the smallest game, and compares them with the closed form.
        loss: one or more.
        penalty: each with each loss: R1 + R2, WGAN-GP, clipped weights (WGAN) or none; `own` is
            what a loss was published with.
        seeds: trainings of each, with seeds 0, 1, …
        steps: of each training.
        out: folder of the runs, pictures, animations and the table (as text and as JSON).
    """
    from dgan.toy import Method, compare, dirac

    for key, value in (("seeds", seeds), ("steps", steps)):
        require(key, value, 1)
    if name == "dirac":
        dirac(out)
    else:
        methods = [Method(each, added) for each in loss for added in penalty]
        compare(name, methods, seeds, steps, out)


def export(
    run: Given[Path], out: Given[Path], /, *, step: int | Literal["best"] | None = None
) -> None:
    """Write a run's averaged generator as safetensors, with a JSON that rebuilds it.

    Args:
        run: the run's directory.
        out: a new folder; `dgan.load_generator(out)` reads it.
        step: of another checkpoint than the newest, or `best`: the one with the best score.
    """
    import dgan
    from dgan.build_networks import network_arguments
    from dgan.export import save_generator
    from dgan.trained import load_run

    trained = load_run(run, step)
    save_generator(
        trained.network,
        out,
        network=trained.recipe.generator.network,
        arguments=network_arguments(trained.recipe, "generator"),
        spectral=trained.recipe.generator.spectral,
        facts={"step": trained.step, "recipe": trained.recipe.name, "dgan": dgan.__version__},
    )
    print(f"the generator of step {trained.step} is in {out}")


def report(run: Given[Path], /, *, out: Path | None = None) -> None:
    """Write one HTML page of a run, ended or going on: curves, samples, scores, recipe, health.

    Args:
        run: the run's directory.
        out: the page; by default `report.html` in the run's directory.
    """
    from dgan.report import write_report

    path = out or run / "report.html"
    size = write_report(run, path)
    print(f"{path} ({size / 1e6:.1f} MB, opens in any browser)")


def doctor(*, folder: Path = Path("runs"), timeout: int = 60) -> None:
    """Say what is here, whether the ranks reach one another, and what is wrong; alone or not.

    Args:
        folder: where runs are written, which all ranks must see.
        timeout: seconds to wait for another rank.
    """
    from dgan.doctor import examine

    require("timeout", timeout, 1)
    report = examine(folder, timeout)
    if report.is_first:
        print("\n".join(report.lines()), flush=True)
    if report.problems:
        raise SystemExit(1)
