"""`dgan sample`: what a trained generator makes, and ways of looking into it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dgan.command_checks import (
    NO_PICTURES,
    Given,
    labels_of,
    named,
    require,
    require_images,
    require_no_embedding,
    require_pixels,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dgan.inside.samples import Samples
    from dgan.trained import TrainedGenerator

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]

TILES = 25
"""Classes at most that have a tile in a loop."""
FRAME_S = 0.06
"""How long a frame of it is seen."""


def sample(
    run: Given[Path],
    /,
    *,
    count: int | None = None,
    out: Path | None = None,
    seed: int = 0,
    label: int | None = None,
    caption: str | None = None,
    truncation: tuple[float, ...] = (),
    interpolate: Switch = False,
    neighbours: int = 0,
    features: str | None = None,
    step: int | Literal["best"] | None = None,
) -> None:
    """Draw samples from a run's averaged generator: a grid, or one way of looking inside.

    Args:
        run: the run's directory.
        count: how many: by default 64, in a row of a sheet 8; or latents of a loop, by default 6.
        out: a PNG for one grid (by default grid.png; of a conditional generator a row a class); a
            GIF for a loop; anything else is a folder for one PNG a sample. Of audio a WAV of all
            samples (by default samples.wav), a PNG of spectrograms, or a folder for a WAV each. Of
            text a file of lines (by default samples.txt), of clips a GIF, or the PNG of a sheet.
        seed: of the latents; sample i of a seed is the same whatever the count.
        label: one class for all; without it, a conditional generator's classes take turns, and in a
            loop each has a tile.
        caption: one for all, of a generator that is given captions; without it, and of one that
            is given stored embeddings, those of the first training images.
        truncation: 0 is the middle of the latents. StyleGAN2: w comes nearer to its mean (that of
            the class), 1 is all of it. Others: z is normal, but never beyond ± this. Several
            values make a sheet, a row a value.
        interpolate: a GIF of a loop through --count latents: along great circles of z, StyleGAN2
            along straight lines of w.
        neighbours: a sheet of each sample beside so many of the nearest training images.
        features: what is near: by default as the recipe's scores have it; `pixels`; or as for
            `dgan evaluate`.
        step: of another checkpoint than the newest, or `best`: the one with the best score.
    """
    from dgan.inside.samples import Samples
    from dgan.inside.sheets import save_sheet
    from dgan.trained import load_run

    way = _way_asked(interpolate, neighbours, truncation, features)
    count = (6 if interpolate else 8 if way else 64) if count is None else count
    require("count", count, 2 if interpolate else 1)
    require("seed", seed, 0)
    for value in truncation:
        require("truncation", value, 0)
    trained = load_run(run, step)
    _require_way(run, trained, way, interpolate, neighbours, caption)
    labels = labels_of(trained, count, label)
    given = _conditions(trained, count, caption) if trained.recipe.data.embedding else labels
    samples = Samples(trained.network, trained.z_dim, count=count, seed=seed)
    value = truncation[0] if truncation else None
    if interpolate:
        out = named(out, "interpolation.gif")
        _save_loop(samples, trained.recipe.data.classes, label, value, out)
    elif neighbours:
        out = named(out, "neighbours.png")
        images = samples.images(given, value)
        _save_neighbours(run, trained, images, labels, neighbours, features, out)
    elif len(truncation) > 1:
        out = named(out, "truncation.png")
        save_sheet([(f"{value:g}", samples.images(given, value)) for value in truncation], out)
    else:
        out = _save(trained, samples, given, value, labels, label is None, out)
    print(f"{count} samples of step {trained.step} in {out}")


def _way_asked(
    interpolate: bool, neighbours: int, truncation: Sequence[float], features: str | None
) -> str:
    """The flag of a picture of its own, or none; refuses what cannot be seen together in one."""
    require("neighbours", neighbours, 0)
    ways = {
        "--interpolate": interpolate,
        "--neighbours": neighbours > 0,
        f"--truncation {' '.join(f'{value:g}' for value in truncation)}": len(truncation) > 1,
    }
    asked = [way for way, wanted in ways.items() if wanted]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} are pictures of their own: ask for one at a time")
    if features is not None and not neighbours:
        raise ValueError("--features says what --neighbours K compares, which is not asked for")
    return "".join(asked)


def _require_way(
    run: Path,
    trained: "TrainedGenerator",
    way: str,
    interpolate: bool,
    neighbours: int,
    caption: str | None,
) -> None:
    """Refuse what this generator cannot be asked for."""
    require_images(run, trained)
    if caption is not None and not trained.recipe.data.encoder:
        raise ValueError(f"--caption {caption!r}: {run} has no --data.encoder that could read it")
    if interpolate:
        require_no_embedding(run, trained, "--interpolate")
    kind = trained.recipe.data.kind
    if way and kind in NO_PICTURES:
        raise ValueError(
            f"{run} makes {kind}: --interpolate, --neighbours and several --truncation are of "
            "images"
        )
    if neighbours:
        require_pixels(run, trained)


def _conditions(trained: "TrainedGenerator", count: int, caption: str | None) -> "Tensor":
    """Vectors `[count, D]`: of one caption, or of the first training images."""
    from dgan.data.conditions import ConditionedDataset, encoded, import_encoder
    from dgan.opening import open_images

    data = trained.recipe.data
    dtype = next(trained.network.parameters()).dtype
    if caption is not None:
        found = encoded(import_encoder(data.encoder), [caption], data.embedding, data.encoder)
        return found.to("cpu", dtype).expand(count, -1)
    with open_images(trained.recipe, data.shards) as dataset:
        assert isinstance(dataset, ConditionedDataset)
        found = dataset.conditions([i % len(dataset) for i in range(count)])
    return found.to("cpu", dtype)


def _save(
    trained: "TrainedGenerator",
    samples: "Samples",
    given: "Tensor | None",
    truncation: float | None,
    labels: "Tensor | None",
    in_turn: bool,
    out: Path | None,
) -> Path:
    """All samples at once, as their kind is looked at; where they are."""
    from dgan.clips import save_clips
    from dgan.data.text import text_of
    from dgan.films import save_films
    from dgan.opening import picture_of
    from dgan.texts import save_text

    data = trained.recipe.data
    if data.kind == "text":
        out = out or Path("samples.txt")
        save_text(text_of(samples.outputs(given, truncation), data.alphabet), out)
    elif data.kind == "audio":
        out, waves = out or Path("samples.wav"), samples.outputs(given, truncation)
        if out.suffix == ".png":
            pictures = picture_of(trained.recipe)(waves)
            _save_images(pictures, labels, in_turn, samples.seed, out)
        else:
            save_clips(waves, labels, out, rate=data.rate, seed=samples.seed)
    elif data.kind == "video":
        out, films = out or Path("grid.gif"), samples.images(given, truncation)
        save_films(films, out, (data.classes if in_turn else 0) or round(len(films) ** 0.5))
    else:
        out = out or Path("grid.png")
        _save_images(samples.images(given, truncation), labels, in_turn, samples.seed, out)
    return out


def _save_images(
    images: "Tensor", labels: "Tensor | None", in_turn: bool, seed: int, out: Path
) -> None:
    """One grid, of a conditional generator a row a class; or a file for each."""
    from dgan.inside.sheets import save_sheet
    from dgan.run import save_grid

    count = len(images)
    if out.suffix != ".png":
        for index, image in enumerate(images):
            suffix = "" if labels is None else f"-class{labels[index]}"
            path = out / f"seed{seed}-{index:06d}{suffix}.png"
            save_grid(image[None], path, columns=1, enlarge=False)
    elif labels is not None and in_turn and count > (classes := int(labels.max()) + 1):
        save_sheet([(str(label), images[labels == label]) for label in range(classes)], out)
    else:
        save_grid(images, out, columns=round(count**0.5))


def _save_loop(
    samples: "Samples", classes: int, label: int | None, truncation: float | None, out: Path
) -> None:
    from dgan.inside.sheets import tiled
    from dgan.laboratory.picture import save_animation

    shown = [label] if label is not None or not classes else list(range(min(classes, TILES)))
    frames = [tiled(frame) for frame in samples.loop(shown, truncation)]
    save_animation(frames, out, seconds=FRAME_S * len(frames), rest=0)


def _save_neighbours(
    run: Path,
    trained: "TrainedGenerator",
    images: "Tensor",
    labels: "Tensor | None",
    k: int,
    features: str | None,
    out: Path,
) -> None:
    """Each sample, and the `k` training images that are nearest to it."""
    import torch

    from dgan.inside.neighbours import nearest, open_comparison
    from dgan.inside.sheets import save_sheet
    from dgan.opening import open_images
    from dgan.parallel.world import launch

    recipe = trained.recipe
    with (
        launch(precision=recipe.train.precision) as world,
        open_images(recipe, recipe.data.shards) as dataset,
    ):
        if k > len(dataset):
            raise ValueError(f"--neighbours is {k}, but there are {len(dataset)} training images")
        compare = open_comparison(
            features or recipe.evaluation.features,
            dataset,
            seed=recipe.train.seed,
            cache=run / "classifier.safetensors",
            world=world,
        )
        batches = (batch["image"] for batch in dataset.batches(256, skip_corrupt=True))
        distances, found = nearest(images, batches, compare, k)
    rows = []
    for index, image in enumerate(images):
        of_class = "" if labels is None else f"class {labels[index]}\n"
        caption = f"{of_class}{distances[index, 0]:.3g}"
        rows.append((caption, torch.cat([image[None].cpu(), found[index].cpu()])))
    save_sheet(rows, out, apart=1)
