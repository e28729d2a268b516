"""What recipes take from publications: sizes, schedules; and that each of them trains."""

import io
import json
import math
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import LENGTH, RATE, clips
from commands import dgan
from films import films
from pairs import pairs
from PIL import Image
from texts import ALPHABET, texts
from tiny import OPTIONS

from dgan.build_networks import build_network, network_arguments
from dgan.config import Checkpoint, Player, Recipe, Run
from dgan.networks import FAMILIES, Role
from dgan.recipes import RECIPES
from dgan.schedule import Averaging
from dgan.train import train
from dgan.validation import validate

ROLES: tuple[Role, Role] = ("generator", "discriminator")

COUNTS: dict[str, tuple[float, float | None, float]] = {
    # Million parameters as published, and how far off ours may be.
    "cifar10-r3gan": (20.7, None, 0.005),  # 0.2 % more: the published number has no classes
    "ffhq64-r3gan": (22.4, None, 0.002),
    "ffhq256-r3gan": (23.06, 23.01, 0.0005),
    "imagenet32-r3gan": (82.8, None, 0.002),  # 0.1 % more, likewise
    "imagenet64-r3gan": (103.0, None, 0.006),  # 103.4 without classes
    "imagenet128-biggan": (70.433988, 87.982370, 0.0),
    "imagenet256-transformer": (675.0, None, 0.001),  # DiT-XL/2
}


def counts(recipe: Recipe) -> list[int]:
    """Parameters of either network, of which no memory is made."""
    found = []
    with torch.device("meta"):
        for role in ROLES:
            cls = FAMILIES[getattr(recipe, role).network][role]
            network = cls(**network_arguments(recipe, role))
            found.append(sum(p.numel() for p in network.parameters()))
    return found


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_are_those_published(name: str) -> None:
    *published, tolerance = COUNTS[name]
    for found, expected in zip(counts(RECIPES[name]()), published):
        if expected is not None:
            assert found / 1e6 == pytest.approx(expected, rel=tolerance or 1e-12)


def r3gan_generator(widths: list[int], groups: list[int], latent: int, classes: int) -> int:
    """As the authors' code has it, layer by layer: two blocks a stage, twice as wide inside."""
    total = widths[0] * 16 + (latent + (latent if classes else 0)) * widths[0] + classes * latent
    for w, g in zip(widths, groups):
        total += 2 * (w * 2 * w + 2 * w * (2 * w // g) * 9 + 2 * w * w + 2 * 2 * w)
    total += sum(a * b for a, b in pairwise(widths) if a != b)
    return total + widths[-1] * 3


def mapping(inputs: int, layers: int) -> int:
    return (inputs + 1) * 512 + (layers - 1) * 513 * 512


def test_sizes_are_those_of_the_authors_code() -> None:
    narrow = [768] * 4, [96] * 4
    wide = [1536] * 5, [96] * 5
    ffhq = [768] * 4 + [384, 192, 96], [96] * 4 + [48, 24, 12]
    generators = {
        "cifar10-r3gan": r3gan_generator(*narrow, 64, 10),
        "ffhq256-r3gan": r3gan_generator(*ffhq, 64, 0),
        "imagenet64-r3gan": r3gan_generator(*wide, 64, 1000),
    }
    for name, expected in generators.items():
        assert counts(RECIPES[name]())[0] == expected

    # StyleGAN2-ADA at 32×32, all of 512 channels: a style, a filter, a bias, a noise each.
    styled, to_image = 513 * 512 + 512 * 512 * 9 + 512 + 1, 513 * 512 + 512 * 3 + 3
    synthesis = 512 * 16 + 7 * styled + 4 * to_image
    stages = 3 * 512 + 512 + 6 * (512 * 512 * 9 + 512)
    last = 513 * 512 * 9 + 512 + 512 * 16 * 512 + 512
    plain, conditional = (RECIPES[f"cifar10-stylegan2{end}"]() for end in ("", "-conditional"))
    assert counts(plain) == [synthesis + mapping(512, 2), stages + last + 513]
    # Labels enter without the 512 biases that each of the authors' embeddings has.
    assert counts(conditional) == [
        synthesis + 10 * 512 + mapping(1024, 2),
        stages + last + 513 * 512 + 10 * 512 + mapping(512, 8),
    ]

    # DCGAN by the numbers of PyTorch's example, of half the width, and its 3, or 64 + 1, biases.
    halved: Any = {"widths": (512, 256, 128, 64)}
    recipe = RECIPES["lsun64-dcgan"]()
    recipe = replace(
        recipe,
        generator=replace(recipe.generator, options={"z_dim": 100, **halved}),
        discriminator=replace(recipe.discriminator, options=halved),
    )
    assert counts(recipe) == [3_576_704 + 3, 2_765_568 + 65]

    def convolution(inputs: int, outputs: int, size: int = 3) -> int:
        return inputs * outputs * size**2 + outputs

    # WGAN-GP: blocks of 128 channels that double the resolution, then that halve it or keep it.
    up = 2 * convolution(128, 128) + convolution(128, 128, 1) + 4 * 128
    generator = 129 * 2048 + 3 * up + 2 * 128 + convolution(128, 3)
    first = convolution(3, 128) + convolution(128, 128) + convolution(3, 128, 1)
    critic = first + 6 * convolution(128, 128) + convolution(128, 128, 1) + 129
    assert counts(RECIPES["cifar10-wgan-gp"]()) == [generator, critic]
    # Of SNGAN, see tests/networks/test_residual.py.
    assert counts(RECIPES["cifar10-sngan"]())[1] == critic
    assert counts(RECIPES["10b"]())[1] > 10e9


@pytest.mark.parametrize(
    ("name", "batch_size", "gamma", "half_life", "augmented", "million"),
    [
        ("cifar10-r3gan", 512, 0.05, 5000, 0.55, 20),
        ("ffhq64-r3gan", 256, 2, 500, 0.3, 20),
        ("ffhq256-r3gan", 256, 150, 500, 0.3, 20),
        ("imagenet32-r3gan", 4096, 0.5, 50_000, 0.5, 200),
        ("imagenet64-r3gan", 4096, 1, 50_000, 0.4, 200),
    ],
)
def test_r3gan_schedules(
    name: str, batch_size: int, gamma: float, half_life: float, augmented: float, million: int
) -> None:
    recipe = RECIPES[name]()
    assert recipe.train.batch_size == batch_size
    assert recipe.data.flip
    assert (recipe.augment.color, recipe.augment.cutout) == (0.5, 1.0)
    ends = {
        recipe.generator.learning_rate: (2e-4, 5e-5),
        recipe.discriminator.learning_rate: (2e-4, 5e-5),
        recipe.generator.beta2: (0.9, 0.99),
        recipe.discriminator.beta2: (0.9, 0.99),
        recipe.penalty.gamma: (gamma, gamma / 10),
        recipe.average.half_life_kimg: (0, half_life),
        recipe.augment.probability: (0, augmented),
    }
    for schedule, (start, end) in ends.items():
        found = [schedule.at(million * 1_000_000 * part // 4) for part in (0, 1, 2, 4, 5)]
        quarter = end + (start - end) * (1 + math.sqrt(0.5)) / 2
        assert found == pytest.approx([start, quarter, (start + end) / 2, end, end])


def test_biggan_averages_over_ten_thousand_steps() -> None:
    recipe = RECIPES["imagenet128-biggan"]()
    averaging = Averaging(half_life_kimg=recipe.average.half_life_kimg)
    images = recipe.train.batch_size * recipe.train.discriminator_updates
    assert averaging.decay(10_000_000, images) == pytest.approx(0.9999, rel=1e-12)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A shard of 20 latents `[4, 8, 8]` with labels."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("latents") / "train-000000.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(20):
            file = io.BytesIO()
            np.save(file, rng.normal(size=(4, 8, 8)).astype(np.float16))
            for name, data in ((f"{i}.npy", file.getvalue()), (f"{i}.cls", str(i % 10).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


NARROW: dict[str, dict[str, Any]] = {
    **OPTIONS,
    "characters": {"width": 8, "depth": 2},
    "patch": {"width": 2, "receptive_field": 16},
    "resnet": {"width": 2, "residual_blocks": 1},
    "unet": {"width": 2},
    "video": {"widths": (8, 6)},
    "waveform": {"widths": (8, 6)},
    "waveform-judges": {"widths": (8, 6)},
}
SMALL_IMAGES = {"resolution": 8}
SMALL: dict[str, Callable[[Any], Any]] = {
    "embedding_dim": lambda _: 5,
    "group_size": lambda size: min(size, 4),
    "mapping_layers": lambda layers: min(layers, 2),
    "smallest": lambda _: 4,
    "w_dim": lambda _: 7,
    "z_dim": lambda _: 6,
}


def narrow(player: Player, attention: int) -> Player:
    """For images of 8×8, with every choice that is no size; `attention`: the one that there is."""
    kept = {name: SMALL.get(name, lambda x: x)(value) for name, value in player.options.items()}
    if "attention" in kept:
        kept["attention"] = attention
    return replace(player, options={**kept, **NARROW[player.network]})


def small(recipe: Recipe, shards: str, directory: Path) -> Recipe:
    """Two steps of 8 samples of 8×8, through narrow networks; from image to image of 16×16."""
    sizes: dict[str, Any] = SMALL_IMAGES
    if recipe.data.resize:
        sizes = {"resolution": 16, "resize": 18}
    if recipe.data.kind == "audio":
        sizes = {"resolution": LENGTH, "rate": RATE}
    if recipe.data.kind == "text":
        sizes = {"resolution": 8, "alphabet": ALPHABET, "channels": len(ALPHABET)}
    classes = min(recipe.data.classes, 10)
    data = replace(recipe.data, shards=shards, classes=classes, **sizes)
    return replace(
        recipe,
        data=data,
        generator=narrow(recipe.generator, attention=8),
        discriminator=narrow(recipe.discriminator, attention=4),
        train=replace(recipe.train, steps=2, batch_size=8, log_every=1),
        checkpoint=Checkpoint(every=2),
        samples=replace(recipe.samples, count=4),
        evaluation=replace(recipe.evaluation, every=-1),
        run=Run(dir=str(directory)),
    )


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_trains(name: str, digits: str, latents: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]()
    validate(recipe)
    shards = {"latents": latents}.get(recipe.data.kind, digits)
    if recipe.data.kind in ("pairs", "unpaired"):
        shards = str(pairs(tmp_path / "train-000000.tar", 9, size=20, channels=3))
        evaluation = replace(recipe.evaluation, shards="")
        recipe = replace(recipe, evaluation=evaluation)
    if recipe.data.kind == "text":
        shards = str(texts(tmp_path / "texts.tar", 9))
    if recipe.data.kind == "audio":
        shards = str(clips(tmp_path / "clips.tar", 20))
    if recipe.data.kind == "video":
        shards = films(tmp_path / "films.tar", 20, frames=16, channels=3)
    train(small(recipe, shards, tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "generator/loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
        assert all(line[f"{role}/gradient_norm"] > 0 for role in ROLES)
    assert (tmp_path / "run/samples/step-000000002.png").exists()


def test_latents_are_shown_but_not_scored(
    latents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, grid = tmp_path / "run", tmp_path / "grid.png"
    train(small(RECIPES["imagenet256-transformer"](), latents, run))
    assert dgan(capsys, "sample", run, "--count", 10, "--out", grid).code == 0
    assert Image.open(grid).mode == "RGB"
    assert "makes latents, and scores are of images" in dgan(capsys, "evaluate", run).error()


MISFITS: list[tuple[str, str, dict[str, Any], str]] = [
    ("cifar10-r3gan", "data", {"resolution": 64}, "resolution 64 needs 5 widths"),
    ("cifar10-stylegan2", "data", {"resolution": 24}, "cannot make resolution 24: it takes 4, 8"),
    ("cifar10-sngan", "data", {"resolution": 16}, "resolution 16 needs 3 widths"),
    ("lsun64-dcgan", "data", {"resolution": 128}, "resolution 128 needs 6 widths"),
    ("cifar10-r3gan", "generator", {"z_dim": 0}, "network r3gan: z_dim is 0; sizes are whole"),
    ("cifar10-sngan", "generator", {"widths": (8, 4, 0, 4)}, "widths is 8 4 0 4; sizes are whole"),
    ("cifar10-sngan", "generator", {"widths": (8, 4.5, 4, 4)}, "widths is 8 4.5 4 4; sizes are"),
    (
        "cifar10-r3gan",
        "generator",
        {"groups": (96, 96, 5, 96)},
        "groups 5 does not divide the 1536",
    ),
    ("imagenet128-biggan", "generator", {"attention": 24}, "attention 24: BigGANGenerator has"),
    ("imagenet128-biggan", "generator", {"z_dim": 5}, "z_dim 5 cannot be cut into 6 parts"),
    ("imagenet256-transformer", "generator", {"patch": 3}, "patch 3 does not divide resolution 32"),
]


@pytest.mark.parametrize(("name", "section", "changes", "message"), MISFITS)
def test_sizes_that_do_not_fit_are_named(
    name: str, section: str, changes: dict[str, Any], message: str
) -> None:
    part = getattr(RECIPES[name](), section)
    changed = (
        replace(part, **changes)
        if section == "data"
        else replace(part, options=part.options | changes)
    )
    recipe = replace(RECIPES[name](), **{section: changed})
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_network(recipe, "generator")
