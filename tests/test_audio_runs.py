"""Runs on audio: in parts as in one, their scores, sheets and sounds, the commands, bad input."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import AUDIO, JUDGES, LENGTH, RATE, clips, tone, wav, write_clips
from commands import assert_same_checkpoint, checkpoint_of, dgan, metrics
from PIL import Image
from tiny import tiny

from dgan.clips import PAUSE_S, save_wav
from dgan.config import Evaluation, Recipe
from dgan.data.waveforms import AudioDataset
from dgan.draws import Draws, generator, latents
from dgan.export import load_generator
from dgan.metrics import ClassifierFeatures, FeatureStatistics, frechet_distance
from dgan.metrics.spectrogram import Spectrogram
from dgan.train import train
from dgan.trained import load_run
from dgan.validation import validate

pytest.importorskip("soundfile", reason="the extra `audio` is not installed")

CLIPS = 24


def recipe(shards: Path, run: Path, **changes: Any) -> Recipe:
    plan: dict[str, Any] = {
        **AUDIO,
        "evaluation": Evaluation(every=4, samples=30),
        "train__deterministic": True,
        **changes,
    }
    return tiny(str(shards), str(run), **plan)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips(tmp_path_factory.mktemp("clips") / "train.tar", CLIPS)


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(shards, folder, train__steps=7))
    return folder


def test_a_run_in_two_parts_is_the_run_in_one(shards: Path, run: Path, tmp_path: Path) -> None:
    for steps in (3, 7):
        train(recipe(shards, tmp_path / "run", train__steps=steps))
    assert_same_checkpoint(checkpoint_of(tmp_path / "run", 7), checkpoint_of(run, 7))
    assert metrics(tmp_path / "run")[-1] == metrics(run)[-1]
    for name in ("reals", "step-000000007"):
        for suffix in (".png", ".wav"):
            file = Path("samples", name + suffix)
            assert (tmp_path / "run" / file).read_bytes() == (run / file).read_bytes()


def test_scores_are_of_spectrograms(shards: Path, run: Path) -> None:
    trained = load_run(run)
    dataset = AudioDataset(
        shards, channels=1, resolution=LENGTH, rate=RATE, peak=0.9, crop="window"
    )
    features = ClassifierFeatures.load(run / "classifier.safetensors")
    show = Spectrogram(rate=RATE, resolution=LENGTH)
    real, made = FeatureStatistics(), FeatureStatistics()
    real.update(features(show(torch.stack([dataset[i]["image"] for i in range(CLIPS)]))))
    right = 0
    for index in range(4):  # batches of 8, of which 30 samples are taken
        place = {"purpose": "evaluation", "step": index, "rows": range(8)}
        z = Draws(seed=0, device=torch.device("cpu"), **place).normal(6)
        drawn = generator(0, "evaluation labels", index).integers(CLIPS, size=8)
        labels = torch.from_numpy(drawn % 3)
        found = features(show(trained.network(z, labels)[: 30 - 8 * index]))
        made.update(found)
        right += int((features.recognise(found).argmax(1) == labels[: len(found)]).sum())
    scores = [line for line in metrics(run) if "fid" in line]
    assert [line["step"] for line in scores] == [0, 4, 7]
    assert scores[-1]["fid"] == pytest.approx(frechet_distance(real, made), rel=1e-4)
    assert scores[-1]["agreement"] == pytest.approx(right / 30)
    assert scores[-1]["features"] == features.name
    assert scores[-1]["crop"] == f"the middle {LENGTH} samples"


def read_wav(path: Path) -> np.ndarray:
    """`[channels, frames]` of a WAV of 16 bits at `RATE`."""
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getsampwidth()) == (RATE, 2)
        data = file.readframes(file.getnframes())
        return np.frombuffer(data, "<i2").reshape(-1, file.getnchannels()).T


def test_what_is_shown_is_heard(run: Path) -> None:
    trained = load_run(run)
    z = Draws(
        seed=0, purpose="grid", step=0, rows=range(6), device=torch.device("cpu")
    ).normal(6)  # fmt: skip
    waves = trained.network(z, torch.arange(6) // 2)
    heard = read_wav(run / "samples" / "step-000000007.wav")
    pause = round(PAUSE_S * RATE)
    each = heard.reshape(6, LENGTH + pause)
    assert not each[:, LENGTH:].any()
    expected = (waves[:, 0] * 32767).round().short().numpy()
    assert np.abs(each[:, :LENGTH].astype(int) - expected).max() <= 1
    sheet = np.asarray(Image.open(run / "samples" / "step-000000007.png"))
    scale = sheet.shape[1] // (2 * 66)
    picture = Spectrogram(rate=RATE, resolution=LENGTH)(waves)[3, 0].numpy()
    seen = sheet[66 * scale :, 66 * scale :, 0][: 64 * scale : scale, : 64 * scale : scale]
    assert np.abs(seen.astype(int) - picture).max() <= 1


def test_channels_of_a_wav(tmp_path: Path) -> None:
    waves = torch.tensor([[[0.5, -2.0], [0.0, 1.0]], [[0.25, 0.0], [-0.5, 0.0]]])
    save_wav(waves, tmp_path / "x.wav", RATE)
    found, pause = read_wav(tmp_path / "x.wav"), [0] * 100
    assert found[0].tolist() == [16384, -32767, *pause, 8192, 0, *pause]
    assert found[1].tolist() == [0, 32767, *pause, -16384, 0, *pause]


def test_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dgan(capsys, "evaluate", run, "--out", tmp_path / "scores.json").code == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["fid"] == pytest.approx(metrics(run)[-1]["fid"], rel=1e-6)
    trained = load_run(run)
    waves = trained.network(latents(4, 6, seed=2, purpose="sample"), torch.tensor([0, 1, 2, 0]))
    expected = (waves[:, 0] * 32767).round().short().numpy()
    options = ("--count", 4, "--seed", 2, "--out")
    for out, files in (("all.wav", ["all.wav"]), ("each", None), ("all.png", ["all.png"])):
        assert dgan(capsys, "sample", run, *options, tmp_path / out).code == 0
        assert files is None or (tmp_path / files[0]).is_file()
    together = read_wav(tmp_path / "all.wav").reshape(4, -1)[:, :LENGTH]
    assert np.abs(together.astype(int) - expected).max() <= 1
    names = sorted(path.name for path in (tmp_path / "each").iterdir())
    assert names[3] == "seed2-000003-class0.wav"
    alone = read_wav(tmp_path / "each" / names[3])[0, :LENGTH]
    assert np.abs(alone.astype(int) - expected[3]).max() <= 1
    for option in (("--interpolate",), ("--neighbours", 1), ("--truncation", 0.5, 1.0)):
        assert "makes audio" in dgan(capsys, "sample", run, *option).error()
    assert "run on audio" in dgan(capsys, "project", run, tmp_path / "all.png").error()
    assert dgan(capsys, "export", run, tmp_path / "exported").code == 0
    again = load_generator(tmp_path / "exported")
    assert torch.equal(again(torch.ones(1, 6), torch.tensor([1])), trained.network(
        torch.ones(1, 6), torch.tensor([1])
    ))  # fmt: skip
    assert dgan(capsys, "report", run).code == 0
    assert f"{LENGTH} samples at {RATE} Hz" in (run / "report.html").read_text()


def test_judges_train_too(shards: Path, tmp_path: Path) -> None:
    plan = {**JUDGES, "evaluation": Evaluation(every=-1), "data__classes": 0}
    train(recipe(shards, tmp_path / "run", train__steps=2, **plan))
    assert metrics(tmp_path / "run")[-1]["discriminator/penalty"] > 0


OTHERS: dict[str, tuple[bytes, str]] = {
    "rate": (wav(tone(1), rate=800), "has 800 samples a second, but the rate is to be 1000"),
    "channels": (wav(np.stack([tone(1)] * 2, 1)), "has 2 channels, but 1 are wanted"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_clips_end_a_run_by_key_and_shard(case: str, tmp_path: Path) -> None:
    other, message = OTHERS[case]
    shard = write_clips(tmp_path / "x.tar", [wav(tone(i)) for i in range(11)] + [other])
    plan = recipe(shard, tmp_path / "run", train__batch_size=12, evaluation__every=-1)
    with pytest.raises(ValueError, match=rf"sample '0011' of .*x\.tar {message}"):
        train(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__flip": True}, r"--data\.flip True means nothing to --data\.kind audio"),
        ({"augment__kind": "diff"}, r"--augment\.kind \S+ means nothing"),
        ({"regularizers__bcr": 1.0}, r"--regularizers\.bcr \S+ means nothing"),
        ({"judges__scales": 2}, r"--judges\.scales \S+ means nothing"),
        ({"data__crop": "random"}, r"--data\.crop random resizes images"),
        ({"data__rate": 0}, r"--data\.rate is 0; --data\.kind audio needs the samples a second"),
        ({"data__channels": 0}, r"--data\.channels is 0; it must be at least 1"),
        ({"data__peak": 1.5}, r"--data\.peak is 1\.5; it must be from 0"),
        ({"data__kind": "latents"}, r"--data\.rate 1000 is for --data\.kind audio, not latents"),
        ({"task__name": "paired"}, r"--task\.name paired is for --data\.kind pairs, not audio"),
    ],
)
def test_what_audio_does_not_know_is_refused(change: dict[str, Any], message: str) -> None:
    plan = {**AUDIO, "evaluation__every": -1, "data__crop": "none"}
    validate(tiny("x.tar", "", **plan))
    with pytest.raises(ValueError, match=message):
        validate(tiny("x.tar", "", **plan | change))


def test_networks_that_do_not_fit_are_named(shards: Path, tmp_path: Path) -> None:
    plan = recipe(shards, tmp_path / "run", data__resolution=100, evaluation__every=-1)
    with pytest.raises(ValueError, match=r"resolution 100 is no whole multiple of 4\^2 = 16"):
        train(plan)
    images = recipe(shards, tmp_path / "run", discriminator__network="dcgan",
                    discriminator__options={"widths": (4,) * 6}, evaluation__every=-1)  # fmt: skip
    with pytest.raises(ValueError, match=r"dcgan cannot judge samples \(1, 256\)"):
        train(images)
