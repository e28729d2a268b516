"""The commands that look into a trained generator: its samples, and its latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from dgan.inside.samples import Samples
    from dgan.trained import TrainedGenerator

Given = tyro.conf.Positional
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
    from dgan.clips import save_clips
    from dgan.data.text import text_of
    from dgan.films import save_films
    from dgan.inside.samples import Samples
    from dgan.opening import picture_of
    from dgan.texts import save_text
    from dgan.trained import load_run

    _require_one_way(interpolate, neighbours, truncation, features)
    stops = 6 if interpolate else 8 if neighbours or len(truncation) > 1 else 64
    count = stops if count is None else count
    _require("count", count, 2 if interpolate else 1)
    _require("seed", seed, 0)
    for value in truncation:
        _require("truncation", value, 0)
    trained = load_run(run, step)
    _require_images(run, trained)
    if caption is not None and not trained.recipe.data.encoder:
        raise ValueError(f"--caption {caption!r}: {run} has no --data.encoder that could read it")
    if interpolate:
        _require_no_embedding(run, trained, "--interpolate")
    labels = _labels(trained, count, label)
    given = _conditions(trained, count, caption) if trained.recipe.data.embedding else labels
    samples = Samples(trained.network, trained.z_dim, count=count, seed=seed)
    value = truncation[0] if truncation else None
    kind = trained.recipe.data.kind
    if kind in ("audio", "text", "video") and (interpolate or neighbours or len(truncation) > 1):
        raise ValueError(
            f"{run} makes {kind}: --interpolate, --neighbours and several --truncation are of "
            "images"
        )
    if kind == "text":
        out = out or Path("samples.txt")
        save_text(text_of(samples.outputs(given, value), trained.recipe.data.alphabet), out)
    elif kind == "audio":
        out, waves = out or Path("samples.wav"), samples.outputs(given, value)
        if out.suffix == ".png":
            _save_samples(picture_of(trained.recipe)(waves), labels, label is None, seed, out)
        else:
            save_clips(waves, labels, out, rate=trained.recipe.data.rate, seed=seed)
    elif interpolate:
        out = _named(out, "interpolation.gif")
        _save_loop(samples, trained.recipe.data.classes, label, value, out)
    elif neighbours:
        _require_pixels(run, trained)
        out = _named(out, "neighbours.png")
        images = samples.images(given, value)
        _save_neighbours(run, trained, images, labels, neighbours, features, out)
    elif len(truncation) > 1:
        out = _named(out, "truncation.png")
        _save_sheet([(f"{value:g}", samples.images(given, value)) for value in truncation], out)
    elif kind == "video":
        out = out or Path("grid.gif")
        columns = trained.recipe.data.classes if label is None else 0
        save_films(samples.images(given, value), out, columns or round(count**0.5))
    else:
        out = out or Path("grid.png")
        _save_samples(samples.images(given, value), labels, label is None, seed, out)
    print(f"{count} samples of step {trained.step} in {out}")


def project(
    run: Given[Path],
    image: Given[Path],
    /,
    *,
    out: Path = Path("projection.png"),
    label: int | None = None,
    starts: int = 4,
    steps: int = 300,
    seed: int = 0,
    features: str | None = None,
    step: int | Literal["best"] | None = None,
) -> None:
    """Find the latent whose image comes nearest to a given one: what can the generator not make?

    Optimises z, of StyleGAN2 w, by Adam on the squared distance of pixels and of feature maps.
    Prints it, and draws a row a start: target and reconstruction, and the way there.

    Args:
        run: the run's directory.
        image: PNG, JPEG or WebP of the generator's resolution.
        out: the sheet, a PNG.
        label: its class; without it, of a conditional generator, each start's is the one that
            comes nearest at first.
        starts: the best of 32 times as many random latents.
        steps: of Adam.
        seed: of the random latents.
        features: whose maps are compared: by default the classifier that the recipe's scores have
            trained; a .safetensors of one; a TorchScript file that returns maps; or `pixels`, none.
        step: of another checkpoint than the newest, or `best`: the one with the best score.
    """
    from dgan.draws import latents
    from dgan.evaluation import to_uint8
    from dgan.inside.projection import CANDIDATES, distance_to, project
    from dgan.inside.spaces import space_of
    from dgan.inside.targets import open_maps, read_target
    from dgan.opening import open_images
    from dgan.parallel.world import launch
    from dgan.trained import load_run

    for name, value, least in (("starts", starts, 1), ("steps", steps, 1), ("seed", seed, 0)):
        _require(name, value, least)
    out = _named(out, "projection.png")
    trained = load_run(run, step)
    _require_images(run, trained)
    _require_pixels(run, trained)
    _require_no_embedding(run, trained, "a projection")
    recipe, count = trained.recipe, CANDIDATES * starts
    target = read_target(image, recipe.data.channels, recipe.data.resolution)
    labels = _labels(trained, count, label)
    with (
        launch(precision=recipe.train.precision) as world,
        open_images(recipe, recipe.data.shards) as dataset,
    ):
        maps = open_maps(
            features or recipe.evaluation.features,
            dataset,
            (recipe.data.channels, recipe.data.resolution, recipe.data.resolution),
            seed=recipe.train.seed,
            cache=run / "classifier.safetensors",
            world=world,
        )
        target = target.to(world.device, world.dtype)
        z = latents(count, trained.z_dim, seed=seed, purpose="projection")
        found = project(
            space_of(trained.network.to(world.device), trained.z_dim),
            z.to(world.device, world.dtype),
            None if labels is None else labels.to(world.device),
            distance_to(target, maps),
            starts=starts,
            steps=steps,
        )
    rows = []
    for row in range(starts):
        of_class = "" if found.labels is None else f"class {found.labels[row]}\n"
        shown = [target[None], found.images[row][None], found.progress[row]]
        pictures = [to_uint8(images) for images in shown]
        rows.append((f"{of_class}{found.after[row]:.4f}", _joined(pictures)))
    _save_sheet(rows, out, apart=2)
    print(
        f"distance {found.after[0]:.4f} (at first {found.before[0]:.4f}; mean square of pixels"
        f"{'' if maps is None else ' and of feature maps'}), step {trained.step}, in {out}"
    )


def _require(name: str, value: float, least: int) -> None:
    if value < least:
        raise ValueError(f"--{name} is {value}; it must be at least {least}")


def _require_one_way(
    interpolate: bool, neighbours: int, truncation: Sequence[float], features: str | None
) -> None:
    """Refuse what cannot be seen together in one picture."""
    _require("neighbours", neighbours, 0)
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


def _require_images(run: Path, trained: "TrainedGenerator") -> None:
    if trained.recipe.data.kind == "points":
        raise ValueError(
            f"{run} is a run on points, not on images: its pictures are in {run / 'samples'}"
        )
    if trained.recipe.data.kind in ("pairs", "unpaired"):
        raise ValueError(
            f"{run} translates images, of which {run / 'samples'} has sheets: `dgan evaluate` "
            "scores it on other shards, `dgan export` gives the network"
        )


def _require_pixels(run: Path, trained: "TrainedGenerator") -> None:
    if (kind := trained.recipe.data.kind) in ("audio", "text", "video"):
        raise ValueError(f"{run} is a run on {kind}, and what is compared here are images")
    if trained.recipe.data.kind == "latents":
        raise ValueError(
            f"{run} is a run on latents, which have no pixels to compare: decode what "
            "`dgan.load_generator` makes, and compare that"
        )


def _require_no_embedding(run: Path, trained: "TrainedGenerator", what: str) -> None:
    if trained.recipe.data.embedding:
        raise ValueError(
            f"{run} is given embeddings, and {what} is of generators that are given none"
        )


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


def _labels(trained: "TrainedGenerator", count: int, label: int | None) -> "Tensor | None":
    """Classes int64 `[count]`: `label`, or all in turn; None of an unconditional generator."""
    import torch

    classes = trained.recipe.data.classes
    if label is not None and not 0 <= label < classes:
        known = f"the generator knows 0 … {classes - 1}" if classes else "it has no classes"
        raise ValueError(f"--label is {label}; {known}")
    if not classes:
        return None
    return torch.arange(count) % classes if label is None else torch.full((count,), label)


def _named(out: Path | None, usual: str) -> Path:
    """`out`, which must be of the kind of the usual name."""
    kind = Path(usual).suffix
    if out is not None and out.suffix.lower() != kind:
        raise ValueError(f"--out is {out}; this is one {kind[1:].upper()}: name it so, as {usual}")
    return out or Path(usual)


def _save_samples(
    images: "Tensor", labels: "Tensor | None", in_turn: bool, seed: int, out: Path
) -> None:
    """One grid, of a conditional generator a row a class; or a file for each."""
    from dgan.run import save_grid

    count = len(images)
    if out.suffix != ".png":
        for index, image in enumerate(images):
            suffix = "" if labels is None else f"-class{labels[index]}"
            path = out / f"seed{seed}-{index:06d}{suffix}.png"
            save_grid(image[None], path, columns=1, enlarge=False)
    elif labels is not None and in_turn and count > (classes := int(labels.max()) + 1):
        _save_sheet([(str(label), images[labels == label]) for label in range(classes)], out)
    else:
        save_grid(images, out, columns=round(count**0.5))


def _save_sheet(rows: "Sequence[tuple[str, Tensor]]", out: Path, apart: int = 0) -> None:
    from dgan.inside.sheets import draw_sheet
    from dgan.laboratory.picture import save_picture

    save_picture(draw_sheet(rows, apart=apart), out)


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
    from dgan.inside.neighbours import nearest, open_comparison
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
        rows.append((caption, _joined([image[None], found[index]])))
    _save_sheet(rows, out, apart=1)


def _joined(parts: "Sequence[Tensor]") -> "Tensor":
    import torch

    return torch.cat([part.cpu() for part in parts])
