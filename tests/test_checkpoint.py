"""A checkpoint is what was given to it, and is whole or not there at all."""

import itertools
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import stored
from ranks import CONTEXT, run_ranks
from torch import Tensor

from dgan.checkpoint import Checkpoints, best, complete, latest, load
from dgan.parallel.world import World, launch


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with launch(precision="float32") as world:
        yield world


def tensors(value: float, size: int = 1000) -> dict[str, Tensor]:
    return {f"part{i}": torch.full((size,), value + i) for i in range(4)}


def test_what_changes_after_save_is_not_written(world: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3, world=world)
    state = {f"part{i}": torch.randn(1 << 20) for i in range(4)}  # 16 MiB: writing takes a while
    expected = {name: tensor.clone() for name, tensor in state.items()}
    checkpoints.save(5, state, {"note": "five"})
    for tensor in state.values():
        tensor.fill_(0.0)  # as the next update would
    checkpoints.wait()
    written = stored(tmp_path / "step-000000005")
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor), name


def test_a_checkpoint_appears_when_it_is_complete(world: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3, world=world)
    assert checkpoints.latest() is None
    checkpoints.save(1, tensors(1.0, size=1 << 20), {})
    names, limit = set[str](), time.monotonic() + 30
    while checkpoints.latest() is None and time.monotonic() < limit:
        names |= {path.name for path in tmp_path.iterdir()}
        time.sleep(0.001)
    # Published in the background, before anybody asks.
    assert checkpoints.latest() == tmp_path / "step-000000001"
    assert any(name.startswith(".tmp-") for name in names)
    checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert all(
        torch.equal(t, stored(tmp_path / "step-000000001")[name])
        for name, t in tensors(1.0, size=1 << 20).items()
    )


def test_the_newest_are_kept_and_leftovers_are_not(world: World, tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-000000007").mkdir()
    (tmp_path / ".tmp-step-000000007" / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / "step-000000099").mkdir()  # without its facts it is no checkpoint
    checkpoints = Checkpoints(tmp_path, keep=2, world=world)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000099"]
    for step in (8, 9, 10, 11):
        checkpoints.save(step, tensors(step), {"square": step**2})
    checkpoints.wait()
    assert [path.name for path in complete(tmp_path)] == ["step-000000010", "step-000000011"]
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == "step-000000099"
    target = tensors(0.0)
    facts = load(tmp_path / "step-000000010", target, distributed=True)
    assert facts == {"step": 10, "square": 100}
    assert all(torch.equal(target[name], tensor) for name, tensor in tensors(10).items())


def test_the_best_are_kept_beside_the_newest(world: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=2, world=world)
    fids = {1: 9.0, 2: 5.0, 3: None, 4: 4.0, 5: math.nan, 6: 7.0, 7: None}
    for step, fid in fids.items():
        scores = {} if fid is None else {"fid": fid, "features_digest": "some"}
        checkpoints.save(step, tensors(step), {"scores": scores})
    checkpoints.wait()
    assert [path.name for path in complete(tmp_path)] == [f"step-{n:09d}" for n in (2, 4, 7)]
    assert [path.name[-1] for path in best(complete(tmp_path), 9)] == ["4", "2"]
    assert checkpoints.latest() == tmp_path / "step-000000007"
    # What is scored in other features is not comparable; the newest's count.
    checkpoints.save(8, tensors(8), {"scores": {"fid": 99.0, "features_digest": "others"}})
    checkpoints.wait()
    assert [path.name[-1] for path in best(complete(tmp_path), 9)] == ["8"]
    assert best([], 1) == []


def fails_while_it_saves(directory: Path) -> None:
    with launch(precision="float32") as world, Checkpoints(directory, keep=1, world=world) as kept:
        kept.save(1, tensors(1.0, size=1 << 20), {})
        raise ArithmeticError("as a loss that is not finite")


def test_a_run_that_fails_finishes_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="as a loss that is not finite"):
        run_ranks(2, fails_while_it_saves, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name == "step-000000001"
    assert torch.equal(stored(path)["part3"], torch.full((1 << 20,), 4.0))


def test_what_another_run_took_over_is_not_written_to(world: World, tmp_path: Path) -> None:
    def confirm() -> None:
        raise OSError("process 7 took it over")

    checkpoints = Checkpoints(tmp_path, keep=1, world=world, confirm=confirm)
    checkpoints.save(1, tensors(1.0), {})
    with pytest.raises(OSError, match="process 7 took it over"):
        checkpoints.wait()
    assert list(tmp_path.iterdir()) == []


def test_other_networks_do_not_fit(world: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, world=world)
    checkpoints.save(1, tensors(1.0), {})
    checkpoints.wait()
    path = tmp_path / "step-000000001"
    with pytest.raises(ValueError, match=r"part0 is \(1000,\), the recipe's network has \(5,\)"):
        load(path, tensors(0.0, size=5), distributed=False)
    with pytest.raises(ValueError, match="holds no 'other'"):
        load(path, {"other": torch.zeros(3)}, distributed=False)


def test_a_save_that_fails_names_what_is_intact(world: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, world=world)
    checkpoints.save(1, tensors(1.0), {})
    checkpoints.wait()
    in_the_way = tmp_path / "step-000000002"
    in_the_way.write_text("a file where a folder must be")
    checkpoints.save(2, tensors(2.0), {})
    with pytest.raises(OSError, match=r"step 2 could not be .* step-000000001 is intact"):
        checkpoints.wait()
    in_the_way.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    checkpoints.save(3, tensors(3.0), {})
    checkpoints.wait()
    assert checkpoints.latest() == tmp_path / "step-000000003"


def save_for_ever(directory: Path) -> None:
    torch.set_num_threads(1)
    with launch(precision="float32") as world:
        checkpoints = Checkpoints(directory, keep=2, world=world)
        last = latest(directory)
        first = 1 + (int(last.name[5:]) if last else 0)
        for step in itertools.count(first):
            checkpoints.save(step, tensors(step, size=1 << 21), {})  # 32 MiB
            checkpoints.wait()


def test_killed_at_any_moment_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    """SIGKILL while it saves, six times in the same folder."""
    half_written = newest = 0
    for attempt in range(6):
        process = CONTEXT.Process(target=save_for_ever, args=(tmp_path,))
        process.start()
        limit = time.monotonic() + 60
        # Between the first files of a save and what follows its publication.
        while not any(tmp_path.glob(f".tmp-*-step-{newest + 2:09d}/*.distcp")):
            assert process.is_alive()
            assert time.monotonic() < limit
            time.sleep(0.001)
        time.sleep(0.012 * attempt)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        half_written += any(tmp_path.glob(".tmp-*"))
        for path in complete(tmp_path):
            step = json.loads((path / "facts.json").read_text())["step"]
            assert path.name == f"step-{step:09d}"
            for name, tensor in stored(path).items():
                assert torch.equal(tensor, tensors(step, size=1 << 21)[name]), (path, name)
        newest = int(complete(tmp_path)[-1].name[5:])
    assert half_written, "no kill fell into a save: the test proved nothing"
