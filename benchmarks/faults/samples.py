"""Samples that cannot be decoded, and a batch that is not finite."""

import re
import shutil
import tarfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from random import Random

from commands import metrics
from PIL import Image

import kills
from broken import BrokenRun
from dgan.data import ShardStream
from evidence import Try, check_equal, check_whole, history, step_took_s
from watched import BATCH, EVERY

STEPS = 160
"""More than an epoch."""


def corrupt_shards(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """A few samples are overwritten for good; two ranks leave them out, alike, and count them."""
    return [_corrupt(broken, choose, number) for number in range(len(at))]


def _corrupt(broken: BrokenRun, choose: Random, number: int) -> Try:
    folder = broken.folder / str(number)
    shutil.copytree(Path(broken.shards).parent, folder / "shards")
    pattern = folder / "shards" / Path(broken.shards).name
    bad = overwrite(sorted(pattern.parent.glob(pattern.name)), choose, choose.randrange(1, 6))
    part = BrokenRun(folder, str(pattern), (*broken.options, "--train.steps", str(STEPS)))
    begin = time.monotonic()
    assert part.ranks().end() == [0, 0]
    took = time.monotonic() - begin
    # What one process is shown that reads the same data, without training.
    stream = ShardStream(str(pattern), batch_size=BATCH, resolution=8, channels=1, flip=True)
    with stream:
        expected = [list(next(stream)["__key__"]) for _ in range(STEPS)]
        skipped = stream.skipped.total()
    seen = history(part)
    assert seen == expected, "the ranks' samples are not those of one process"
    assert not bad & {key for batch in seen for key in batch}, "a damaged sample was shown"
    assert skipped >= len(bad), f"{skipped} were left out, {len(bad)} are damaged"
    counted = metrics(part.run)[-1]["data/skipped"]
    assert counted == skipped, f"{counted} were counted, {skipped} were left out"
    said = (part.run / "log.txt").read_text()
    assert all(f"skipped sample {key} of " in said for key in bad), "not all are named"
    check_whole(part, STEPS, replaced=skipped)
    return Try(True, 0, took, note=f"{len(bad)} samples damaged, left out {skipped} times")


def overwrite(shards: list[Path], choose: Random, count: int) -> set[str]:
    """Damage the images of `count` samples where they stand; their keys."""
    places = [(key, shard, *place) for shard in shards for key, *place in images(shard)]
    bad = choose.sample(places, count)
    for _, shard, offset, size in bad:
        with shard.open("r+b") as file:
            begin = choose.choice([0, size // 3])  # the magic number, or what follows the header
            file.seek(offset + begin)
            file.write(bytes(size // 3))
    return {key for key, *_ in bad}


def images(shard: Path) -> list[tuple[str, int, int]]:
    """Key, offset and size of the images in a tar."""
    with tarfile.open(shard) as tar:
        return [
            (member.name.partition(".")[0], member.offset_data, member.size)
            for member in tar
            if member.name.endswith(".png")
        ]


def not_finite(
    broken: BrokenRun, undisturbed: BrokenRun, choose: Random, at: Sequence[int]
) -> list[Try]:
    """Samples on which the discriminator is NaN: two ranks roll back alike, and go on.

    A rank is killed on the way: the rolled back run too is resumed bit for bit, which one of the
    same samples that nobody kills shows.
    """
    pattern = broken.folder / "shards" / Path(broken.shards).name
    # Before the first checkpoint there is nothing to roll back to.
    spared = {key for keys in history(undisturbed)[:EVERY] for key in keys}
    bad = whiten(Path(broken.shards), pattern.parent, choose, len(at) + 2, spared)
    calm = BrokenRun(broken.folder / "calm", str(pattern), broken.options, broken.recipe)
    assert calm.ranks().end() == [0, 0]
    broken.shards = str(pattern)
    job = broken.ranks()
    broken.reach(choose.randrange(EVERY, kills.STEPS - 30), job)
    kills.kill(job, broken, choose.randrange(2))
    job.end()
    assert broken.ranks().end() == [0, 0]
    check_whole(broken, kills.STEPS)
    check_equal(broken, calm, kills.STEPS)
    assert history(broken) == history(undisturbed), "other samples than without NaN"
    met = [n for n, keys in enumerate(history(broken), start=1) if bad & {*keys}]
    lines = metrics(broken.run)
    rung = [line["step"] for line in lines if line.get("divergence/alarm") == "nonfinite"]
    assert rung == met, f"rolled back at {rung}, the samples were met at {met}"
    assert lines[-1]["divergence/rollbacks"] == len(met)
    said = (broken.run / "log.txt").read_text()
    lost = list[int]()
    for step in met[: len(at)]:
        found = re.search(rf"step {step}: rolled back to \S+step-(\d+)", said)
        assert found, f"the rollback of step {step} is not in the log"
        lost.append(step - int(found[1]))
    assert len(lost) == len(at), f"only {len(lost)} batches were not finite"
    return [
        Try(True, steps, step_took_s(broken, step), note=f"step {step}")
        for steps, step in zip(lost, met)
    ]


def whiten(source: Path, folder: Path, choose: Random, count: int, spared: set[str]) -> set[str]:
    """Copy shards into `folder`, `count` samples of which are white; their keys."""
    folder.mkdir(parents=True)
    shards = sorted(source.parent.glob(source.name))
    keys = {key for shard in shards for key, *_ in images(shard)} - spared
    bad = {*choose.sample(sorted(keys), count)}
    white = BytesIO()
    Image.new("L", (8, 8), 255).save(white, "PNG")
    for shard in shards:
        with tarfile.open(shard) as old, tarfile.open(folder / shard.name, "w") as new:
            for member in old:
                file = old.extractfile(member)
                assert file is not None
                content = file.read()
                key, _, kind = member.name.partition(".")
                if key in bad and kind == "png":
                    content = white.getvalue()
                member.size = len(content)
                new.addfile(member, BytesIO(content))
    return bad
