"""What ranks skip is counted together, stops them together, and is remembered."""

import os
from pathlib import Path

import pytest
from commands import checkpoint_of, dgan, facts, metrics, write_recipe
from ranks import run_ranks

from dgan.data import ShardDataset, ShardStream, pack_source
from dgan.parallel.world import launch
from dgan.skips import Skips

SAMPLES, BATCH = 400, 8


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """Digits of which every twentieth is overwritten: 20 of 400."""
    (shard,) = pack_source("digits", tmp_path / "shards", limit=SAMPLES).shards
    with ShardDataset(shard) as dataset:
        images = [dataset.table.read(i, "image") for i in range(0, SAMPLES, 20)]
    data = shard.read_bytes()
    for image in images:
        data = data.replace(image, os.urandom(len(image)))
    shard.write_bytes(data)
    return str(shard)


def skip(shard: str, max_skipped: float, steps: int) -> tuple[int, int, dict[str, float], str]:
    """Until it stops: steps, what this rank skipped, the metrics, and why it stopped."""
    with launch() as world:
        place = {"rank": world.rank, "world_size": world.size}
        with ShardStream(shard, batch_size=BATCH, max_skipped=1.0, **place) as stream:
            skips, reason = Skips(stream, world, max_skipped, say=lambda line: None), ""
            try:
                for _ in range(steps):
                    next(stream)
                    skips.collect()
            except ValueError as error:
                reason = str(error)
            step = stream.position // BATCH
            return step, stream.skipped.total(), skips.metrics(), reason


def test_ranks_stop_in_the_same_step_for_what_none_of_them_would_stop(damaged: str) -> None:
    ranks = run_ranks(2, skip, damaged, 0.03, 2 * SAMPLES // BATCH)
    steps, own, counts, reasons = zip(*ranks)
    assert steps[0] == steps[1] < SAMPLES // BATCH
    assert sum(own) == 13
    assert max(own) <= 12
    assert counts[0] == counts[1] == {"data/skipped": 13, "data/skipped/corrupt": 13}
    assert reasons[0] == reasons[1]
    assert "13 samples do not decode" in reasons[0]
    assert "more than the 12 allowed (max_skipped), such as '" in reasons[0]
    for step, _, _, why in run_ranks(2, skip, damaged, 0.1, 2 * SAMPLES // BATCH):
        assert (step, why) == (2 * SAMPLES // BATCH, "")


def test_a_recipe_sets_the_limit(
    damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epoch = {"train__steps": SAMPLES // 16, "train__log_every": 1}
    recipe = write_recipe(tmp_path, "strict", damaged, **epoch, data__max_skipped=0.03)
    message = dgan(capsys, "train", recipe).error()
    assert "more than the 12 allowed (max_skipped)" in message
    assert dgan(capsys, "train", recipe, "--data.max_skipped", 0.1).code == 0
    message = dgan(capsys, "train", recipe, "--data.max_skipped", 2).error()
    assert "--data.max_skipped is 2.0; it is a fraction" in message


def test_a_resumed_run_goes_on_counting(
    damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Logged at its end only: what was skipped since is in the checkpoint all the same.
    options = {"data__max_skipped": 0.1, "train__log_every": 1000, "checkpoint__every": 1000}
    half, most = SAMPLES // 32, SAMPLES // 16 - 1  # within an epoch
    recipe = write_recipe(tmp_path, "run", damaged, train__steps=half, **options)
    assert dgan(capsys, "train", recipe).code == 0
    first = metrics(tmp_path / "run")[-1]["data/skipped"]
    state = facts(checkpoint_of(tmp_path / "run", half))
    assert state["skipped"] == {"reasons": {"corrupt": first}, "before": 0}
    message = dgan(capsys, "train", recipe, "--train.steps", most, "--data.max_skipped", 0).error()
    assert "samples do not decode where 384 were shown, more than the 10 allowed" in message
    assert dgan(capsys, "train", recipe, "--train.steps", most).code == 0
    last = metrics(tmp_path / "run")[-1]
    assert last["data/skipped"] == last["data/skipped/corrupt"]
    assert 0 < last["data/skipped"] - first <= 10 < last["data/skipped"]
