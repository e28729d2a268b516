"""The commands of `dgan` besides training: each function is one, its arguments are flags."""

from pathlib import Path
from typing import Literal

import tyro

from dgan import recipes

Given = tyro.conf.Positional


def list_recipes() -> None:
    """The recipes that come with dgan."""
    for name, text in recipes.describe().items():
        print(f"{name}\n    " + text.replace("\n", "\n    ") + "\n")


def sample(
    run: Given[Path],
    /,
    *,
    count: int = 64,
    out: Path = Path("grid.png"),
    seed: int = 0,
    label: int | None = None,
    truncation: float = 0.0,
    step: int | Literal["best"] | None = None,
) -> None:
    """Draw samples from a run's averaged generator.

    Args:
        run: the run's directory.
        count: how many.
        out: a PNG for one grid; anything else is a folder for one PNG a sample.
        seed: of the latents; sample i of a seed is the same whatever the count.
        label: one class for all; without it, a conditional generator's classes take turns.
        truncation: redraw latent components beyond ± this; 0 leaves them.
        step: of another checkpoint than the newest, or `best`: the one with the lowest FID.
    """
    import torch

    from dgan.draws import truncated_normal
    from dgan.evaluation import to_uint8
    from dgan.export import synthesise
    from dgan.run import save_grid
    from dgan.trained import load_run

    for name, value, least in (
        ("count", count, 1),
        ("seed", seed, 0),
        ("truncation", truncation, 0),
    ):
        if value < least:
            raise ValueError(f"--{name} is {value}; it must be at least {least}")
    trained = load_run(run, step)
    classes = trained.recipe.data.classes
    if label is not None and not 0 <= label < classes:
        known = f"the generator knows 0 … {classes - 1}" if classes else "it has no classes"
        raise ValueError(f"--label is {label}; {known}")
    labels = (
        torch.full((count,), label) if label is not None else torch.arange(count) % (classes or 1)
    )
    latents = truncated_normal(
        count, trained.z_dim, seed=seed, purpose="sample", truncation=truncation
    )
    images = to_uint8(synthesise(trained.network, latents, labels if classes else None))
    if out.suffix == ".png":
        save_grid(images, out, columns=classes if classes and label is None else round(count**0.5))
    else:
        for index, image in enumerate(images):
            suffix = f"-class{labels[index]}" if classes else ""
            save_grid(
                image[None], out / f"seed{seed}-{index:06d}{suffix}.png", columns=1, enlarge=False
            )
    print(f"{count} samples of step {trained.step} in {out}")


def evaluate(
    run: Given[Path],
    /,
    *,
    samples: int | None = None,
    features: str | None = None,
    shards: str | None = None,
    step: int | Literal["best"] | None = None,
) -> None:
    """Score a run's averaged generator: FID, and the classes it covers.

    Args:
        run: the run's directory.
        samples: how many to generate; by default as the recipe says.
        features: what to compare in; by default as the recipe says.
        shards: the real images; by default those it was trained on.
        step: of another checkpoint than the newest, or `best`: the one with the lowest FID.
    """
    import json

    from dgan.data import ShardDataset
    from dgan.data.location import redact
    from dgan.evaluation import Evaluator, find_features
    from dgan.parallel.world import launch
    from dgan.trained import load_run

    if samples is not None and samples < 2:
        raise ValueError(f"--samples is {samples}; it must be at least 2")
    trained = load_run(run, step)
    recipe, data = trained.recipe, trained.recipe.data
    with (
        launch(precision=recipe.train.precision) as world,
        ShardDataset(
            shards or data.shards, resolution=data.resolution, channels=data.channels
        ) as dataset,
    ):
        found = find_features(
            features or recipe.evaluation.features,
            dataset,
            seed=recipe.train.seed,
            cache=run / "classifier.safetensors",
            world=world,
        )
        evaluator = Evaluator(
            dataset,
            found,
            samples=samples or recipe.evaluation.samples,
            # As in training: the score of a step is then the same number.
            batch_size=min(recipe.train.batch_size, 256),
            seed=recipe.train.seed,
            classes=data.classes,
            world=world,
        )
        scores = evaluator(trained.network.to(world.device), trained.z_dim)
        if world.is_first:
            scores |= {"step": trained.step, "shards": redact(str(shards or data.shards))}
            for key, value in scores.items():
                print(f"{key:16} {value:.4g}" if isinstance(value, float) else f"{key:16} {value}")
            (run / f"evaluation-{trained.step:09d}.json").write_text(
                json.dumps(scores, indent=1) + "\n"
            )


def export(
    run: Given[Path], out: Given[Path], /, *, step: int | Literal["best"] | None = None
) -> None:
    """Write a run's averaged generator as safetensors, with a JSON that rebuilds it.

    Args:
        run: the run's directory.
        out: a new folder; `dgan.load_generator(out)` reads it.
        step: of another checkpoint than the newest, or `best`: the one with the lowest FID.
    """
    import dgan
    from dgan.build import network_arguments
    from dgan.export import save_generator
    from dgan.trained import load_run

    trained = load_run(run, step)
    save_generator(
        trained.network,
        out,
        network=trained.recipe.generator.network,
        arguments=network_arguments(trained.recipe, "generator"),
        facts={"step": trained.step, "recipe": trained.recipe.name, "dgan": dgan.__version__},
    )
    print(f"the generator of step {trained.step} is in {out}")


def doctor(*, folder: Path = Path("runs"), timeout: int = 60) -> None:
    """Say what is here, whether the ranks reach one another, and what is wrong; alone or not.

    Args:
        folder: where runs are written, which all ranks must see.
        timeout: seconds to wait for another rank.
    """
    from dgan.doctor import examine

    if timeout < 1:
        raise ValueError(f"--timeout is {timeout}; it must be at least 1")
    report = examine(folder, timeout)
    if report.is_first:
        print("\n".join(report.lines()), flush=True)
    if report.problems:
        raise SystemExit(1)
