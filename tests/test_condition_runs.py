"""Runs on images with embeddings or captions: in parts as in one, scores, sheets, commands."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captions import EMBEDDED, SIZE, caption, captioned, encode
from commands import assert_same_checkpoint, checkpoint_of, dgan, metrics
from PIL import Image
from tiny import tiny

from dgan.config import Evaluation, Recipe
from dgan.data import ShardDataset
from dgan.draws import Draws, generator, latents
from dgan.export import load_generator
from dgan.metrics import ClassifierFeatures, FeatureStatistics, frechet_distance
from dgan.train import train
from dgan.trained import load_run
from dgan.validation import validate
from dgan.visible import to_uint8

ENCODER = "captions:encode"
N = 24


def recipe(shards: str, run: Path, **changes: Any) -> Recipe:
    plan: dict[str, Any] = {
        **EMBEDDED,
        "data__encoder": ENCODER,
        "evaluation": Evaluation(every=4, samples=14),
        "train__deterministic": True,
        **changes,
    }
    return tiny(shards, str(run), **plan)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return captioned(tmp_path_factory.mktemp("captions") / "train.tar", N)


@pytest.fixture(scope="module")
def run(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 steps on captions that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(shards, folder, train__steps=7))
    return folder


def test_a_run_in_two_parts_is_the_run_in_one(shards: str, run: Path, tmp_path: Path) -> None:
    for steps in (3, 7):
        train(recipe(shards, tmp_path / "run", train__steps=steps))
    assert_same_checkpoint(checkpoint_of(tmp_path / "run", 7), checkpoint_of(run, 7))
    assert metrics(tmp_path / "run")[-1] == metrics(run)[-1]


def test_stored_embeddings_train_as_the_encoded_ones(
    shards: str, run: Path, tmp_path: Path
) -> None:
    train(recipe(shards, tmp_path / "run", train__steps=7, data__encoder=""))
    found, wanted = (load_run(r).network.state_dict() for r in (tmp_path / "run", run))
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    lines = metrics(run)
    assert 0 < lines[-2]["discriminator/matched"] <= 1


def described(samples: Any) -> torch.Tensor:
    return encode([caption(int(i) % N) for i in samples]).detach()


def test_scores_give_the_embeddings_of_random_samples(shards: str, run: Path) -> None:
    trained, dataset = load_run(run), ShardDataset(shards)
    features = ClassifierFeatures.load(run / "classifier.safetensors")
    real, made = FeatureStatistics(), FeatureStatistics()
    real.update(features(torch.stack([dataset[i]["image"] for i in range(N)])))
    for index in range(2):  # batches of 8, of which 14 samples are taken
        place = {"purpose": "evaluation", "step": index, "rows": range(8)}
        z = Draws(seed=0, device=torch.device("cpu"), **place).normal(6)
        drawn = generator(0, "evaluation conditions", index).integers(N, size=8)
        images = to_uint8(trained.network(z, described(drawn)))
        made.update(features(images[: 14 - 8 * index]))
    scores = [line for line in metrics(run) if "fid" in line]
    assert [line["step"] for line in scores] == [0, 4, 7]
    assert scores[-1]["fid"] == pytest.approx(frechet_distance(real, made), rel=1e-4)


def cells(path: Path, count: int) -> np.ndarray:
    """The first row of a sheet of images of 8×8, `[count, 8, 8]`."""
    sheet = np.asarray(Image.open(path))[..., 0]
    scale = sheet.shape[1] // (9 * count)
    return np.stack(
        [sheet[: 8 * scale : scale, 9 * i * scale :][:, : 8 * scale : scale] for i in range(count)]
    )


def test_sheets_are_in_the_order_of_the_real_images(shards: str, run: Path) -> None:
    trained, dataset = load_run(run), ShardDataset(shards)
    z = Draws(seed=0, purpose="grid", step=0, rows=range(4), device=torch.device("cpu")).normal(6)
    made = to_uint8(trained.network(z, described(range(4))))
    reals = cells(run / "samples" / "reals.png", 2)
    assert (reals == torch.stack([dataset[i]["image"][0] for i in range(2)]).numpy()).all()
    shown = cells(run / "samples" / "step-000000007.png", 2)
    assert np.abs(shown.astype(int) - made[:2, 0].numpy()).max() <= 1


def test_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, z = load_run(run), latents(4, 6, seed=2, purpose="sample")
    words = "a white square"
    asked = {(): described(range(4)), ("--caption", words): encode([words]).detach().expand(4, -1)}
    for options, given in asked.items():
        out = tmp_path / "grid.png"
        assert (
            dgan(capsys, "sample", run, *options, "--count", 4, "--seed", 2, "--out", out).code == 0
        )
        expected = to_uint8(trained.network(z, given))[:2, 0].numpy()
        assert np.abs(cells(out, 2).astype(int) - expected).max() <= 1
    assert "given embeddings" in dgan(capsys, "sample", run, "--interpolate").error()
    assert "given embeddings" in dgan(capsys, "project", run, tmp_path / "grid.png").error()
    assert "it has no classes" in dgan(capsys, "sample", run, "--label", 1).error()
    near = tmp_path / "near.png"
    assert dgan(capsys, "sample", run, "--neighbours", 1, "--out", near).code == 0
    outcome = dgan(capsys, "evaluate", run, "--out", tmp_path / "scores.json")
    assert f"{metrics(run)[-1]['fid']:.4g}" in outcome.out
    assert dgan(capsys, "export", run, tmp_path / "exported").code == 0
    again = load_generator(tmp_path / "exported")
    assert torch.equal(again(z, described(range(4))), trained.network(z, described(range(4))))
    assert dgan(capsys, "report", run).code == 0
    assert f"embeddings of {ENCODER}" in (run / "report.html").read_text()


@pytest.mark.parametrize("family", ["stylegan2", "sngan", "biggan", "transformer", "mlp", "dcgan"])
def test_every_family_takes_embeddings(shards: str, family: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"evaluation": Evaluation(every=-1), "train__steps": 1}
    plan = tiny(shards, str(tmp_path / "run"), family, **EMBEDDED | changes)
    train(plan)
    network = load_run(tmp_path / "run").network
    z, given = latents(2, 6, seed=0, purpose="sample"), described(range(2))
    if family != "sngan":  # whose scales and shifts of a class begin with 0
        assert not torch.equal(network(z, given), network(z, given.flip(0)))


def test_a_caption_that_is_missing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = captioned(tmp_path / "x.tar", 8, [(5, "txt", None)])
    with pytest.raises(ValueError, match=r"sample '0005' of .*x\.tar has no caption, <key>\.txt"):
        train(recipe(shards, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__embedding": 0}, r"--data\.encoder captions:encode makes vectors of a size that"),
        ({"data__embedding": -1}, r"--data\.embedding is -1; it must be at least 0"),
        ({"data__encoder": "encode"}, r"--data\.encoder 'encode' is no import path"),
        ({"data__classes": 3}, r"takes the place of labels, and --data\.classes is 3"),
        (
            {"data__kind": "latents", "evaluation__every": -1},
            r"--data\.embedding 3 is for --data\.kind images, not latents",
        ),
        ({"generator__options": {"norm": "virtual"}}, r"--generator\.options\.norm virtual has"),
        ({"task__mismatch": 1.0}, r"--task\.mismatch is 1\.0; it is a share"),
        (
            {"data__embedding": 0, "data__encoder": ""},
            r"--task\.mismatch 0\.5 exchanges labels or embeddings, and there are none",
        ),
        ({"task__name": "tiny:Mine"}, r"--task\.mismatch means nothing to --task\.name tiny:Mine"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    plan = {**EMBEDDED, "data__encoder": ENCODER}
    validate(tiny("x.tar", "", **plan))
    with pytest.raises(ValueError, match=message):
        validate(tiny("x.tar", "", **plan | change))


def test_batches_that_cannot_be_paired_are_refused(shards: str, tmp_path: Path) -> None:
    plan = recipe(shards, tmp_path / "run", train__batch_size=6, train__accumulation=2)
    message = r"6 \(over all ranks\) cannot .* 1 ranks × 2 micro-batches of pairs \(--task\.mismat"
    with pytest.raises(ValueError, match=message):
        train(plan)
    assert re.search("multiple of 4", _message(plan))


def _message(plan: Recipe) -> str:
    with pytest.raises(ValueError, match="multiple") as caught:
        train(plan)
    return str(caught.value)


def test_vectors_of_another_size_are_refused(shards: str, tmp_path: Path) -> None:
    plan = recipe(shards, tmp_path / "run", data__embedding=SIZE + 1, data__encoder="")
    with pytest.raises(
        ValueError, match=r"train\.tar: sample '0000' holds float32 \[3\], but a vector of 4"
    ):
        train(plan)
