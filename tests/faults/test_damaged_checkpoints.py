"""Files of a checkpoint that changed on the disk, or were made to do harm."""

import io
import itertools
import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from commands import (
    assert_same_checkpoint,
    checkpoint_of,
    dgan,
    metrics,
    steps_kept,
    stored,
    write_recipe,
)
from ranks import run_ranks
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from torch.distributed.tensor import DTensor, Shard

from dgan.checkpoint import Checkpoints, DamagedCheckpoint, load
from dgan.parallel.storage import DIGESTS, digest_of
from dgan.parallel.world import launch

Capture = pytest.CaptureFixture[str]
SIZE = 500


def save(directory: Path, *steps: int) -> Path:
    """Checkpoints of these steps, each full of its step; the last one."""
    with launch(precision="float32") as world:
        checkpoints = Checkpoints(directory, keep=9, world=world)
        for step in steps:
            checkpoints.save(step, {"a": torch.full((SIZE,), float(step))}, {"note": "x" * 50})
        checkpoints.wait()
    return directory / f"step-{steps[-1]:09d}"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("good"), 1)


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


FILES = (".metadata", "__0_0.distcp", "facts.json", "digests.json")
DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit": lambda path: flip(path, path.stat().st_size // 2),
    "cut off": cut,
    "empty": lambda path: os.truncate(path, 0),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_each_file_is_checked(name: str, kind: str, good: Path, tmp_path: Path) -> None:
    assert {path.name for path in good.iterdir()} == {*FILES}
    path = tmp_path / "step-000000001"
    shutil.copytree(good, path)
    DAMAGE[kind](path / name)
    with pytest.raises(DamagedCheckpoint) as caught:
        load(path, {"a": torch.zeros(SIZE)}, distributed=False)
    assert str(path) in str(caught.value)
    # A bit of the digests shows as damage of the file that it is the digest of.
    assert name in str(caught.value) or (name, kind) == ("digests.json", "a bit"), caught.value


def test_no_single_bit_goes_unnoticed(good: Path, tmp_path: Path) -> None:
    """Three hundred of them; in JSON, a changed blank is the same content and may pass."""
    path = tmp_path / "step-000000001"
    choose = random.Random(0)
    for _ in range(300):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(good, path)
        name = choose.choice(FILES)
        at, bit = choose.randrange((path / name).stat().st_size), choose.randrange(8)
        flip(path / name, at, bit)
        target = {"a": torch.zeros(SIZE)}
        try:
            load(path, target, distributed=False)
        except DamagedCheckpoint:
            continue
        assert name == DIGESTS, (name, at, bit)
        assert json.loads((path / name).read_text()) == json.loads((good / name).read_text())
        assert torch.equal(target["a"], torch.ones(SIZE))


def test_a_checkpoint_without_digests_is_read(good: Path, tmp_path: Path) -> None:
    """As dgan wrote them before there were digests."""
    path = tmp_path / "step-000000001"
    shutil.copytree(good, path)
    (path / DIGESTS).unlink()
    facts = json.loads((path / "facts.json").read_text())
    del facts["format"]
    (path / "facts.json").write_text(json.dumps(facts))
    target = {"a": torch.zeros(SIZE)}
    assert load(path, target, distributed=False) == {"step": 1, "note": "x" * 50}
    assert torch.equal(target["a"], torch.ones(SIZE))
    cut(path / "__0_0.distcp")
    with pytest.raises(DamagedCheckpoint, match=r"step-000000001 cannot be read"):
        load(path, target, distributed=False)


def damaged_on_two_ranks(directory: Path) -> tuple[list[str], float, str]:
    """Each rank checks a part of the files; all of them hear what any of them found."""
    with launch(precision="float32") as world:
        checkpoints = Checkpoints(directory, keep=9, world=world)
        for step in (1, 2, 3):
            mine = torch.full((4,), float(step))
            tensors = {"a": DTensor.from_local(mine, world.mesh, [Shard(0)])}
            checkpoints.save(step, tensors, {})
            checkpoints.wait()
        if world.is_first:
            flip(directory / "step-000000002" / "__0_0.distcp", 700)
            cut(directory / "step-000000003" / "__1_0.distcp")
        world.barrier()
        said = list[str]()
        target = {"a": DTensor.from_local(torch.zeros(4), world.mesh, [Shard(0)])}
        found = checkpoints.restore(target, said.append)
        assert found is not None
        return said, target["a"].full_tensor().mean().item(), found[0].name


def test_all_ranks_go_back_alike(tmp_path: Path) -> None:
    first, second = run_ranks(2, damaged_on_two_ranks, tmp_path)
    assert first == second
    said, mean, name = first
    assert (mean, name) == (1.0, "step-000000001")
    assert re.search(r"step-000000003 is damaged: __1_0\.distcp has \d+ bytes, \d+ were", said[0])
    assert re.search(r"step-000000002 is damaged: __0_0\.distcp is damaged: its SHA-256", said[1])
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-000000001", "damaged-step-000000002", "damaged-step-000000003",
    }  # fmt: skip


def test_a_run_goes_on_from_the_checkpoint_before(
    digits: str, tmp_path: Path, capsys: Capture
) -> None:
    plan = {"train__deterministic": True, "checkpoint__keep": 3}
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert dgan(capsys, "train", write_recipe(tmp_path, "whole", digits, **plan)).code == 0
    recipe = write_recipe(tmp_path, "run", digits, **plan)
    assert dgan(capsys, "train", recipe).code == 0
    flip(checkpoint_of(run, 4) / "__0_0.distcp", 2000)
    with pytest.warns(UserWarning, match=r"__0_0\.distcp is damaged.*; going back"):
        sampled = dgan(capsys, "sample", run, "--count", 1, "--out", tmp_path / "x.png")
    assert "1 samples of step 2" in sampled.out
    assert steps_kept(run) == [2, 4]  # looking at a run changes nothing
    asked_for = dgan(capsys, "sample", run, "--step", 4, "--out", tmp_path / "x.png")
    assert "__0_0.distcp is damaged" in asked_for.error()

    again = dgan(capsys, "train", recipe)
    assert again.code == 0, again
    assert re.search(r"warning: .*step-000000004 is damaged: __0_0\.distcp", again.out)
    assert f"going on from {checkpoint_of(run, 2)}" in again.out
    assert "__0_0.distcp" in (run / "log.txt").read_text()
    assert (run / "checkpoints" / "damaged-step-000000004").is_dir()
    assert_same_checkpoint(checkpoint_of(run, 4), checkpoint_of(whole, 4))
    assert metrics(run) == metrics(whole)


def test_a_recipe_that_changed_on_the_disk_is_damage(
    digits: str, tmp_path: Path, capsys: Capture
) -> None:
    """And no word of another recipe: one step back, the run goes on."""
    recipe = write_recipe(tmp_path, "run", digits)
    assert dgan(capsys, "train", recipe).code == 0
    path = checkpoint_of(tmp_path / "run", 4) / "facts.json"
    assert '"train.batch_size": 16' in path.read_text()
    path.write_text(path.read_text().replace('"train.batch_size": 16', '"train.batch_size": 17'))
    again = dgan(capsys, "train", recipe)
    assert again.code == 0, again
    assert f"going on from {checkpoint_of(tmp_path / 'run', 2)}" in again.out


def test_without_a_good_checkpoint_nothing_is_begun(
    digits: str, tmp_path: Path, capsys: Capture
) -> None:
    recipe = write_recipe(tmp_path, "run", digits)
    assert dgan(capsys, "train", recipe).code == 0
    run = tmp_path / "run"
    cut(checkpoint_of(run, 2) / ".metadata")
    (checkpoint_of(run, 4) / "facts.json").unlink()
    before = (run / "metrics.jsonl").read_bytes()
    message = dgan(capsys, "train", recipe).error()
    pattern = r"no checkpoint in .* facts\.json is missing; .* \.metadata has \d+ bytes.*start anew"
    assert re.search(pattern, message), message
    assert steps_kept(run) == [2, 4]
    assert (run / "metrics.jsonl").read_bytes() == before


class Harm:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def harmful_metadata(path: Path, canary: Path) -> None:
    (path / ".metadata").write_bytes(pickle.dumps(Harm(canary)))


def harm_inside_the_metadata(path: Path, canary: Path) -> None:
    metadata = dcp.FileSystemReader(path).read_metadata()
    metadata.planner_data = Harm(canary)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def write_item(path: Path, content: bytes, *, is_tensor: bool) -> None:
    """Let the one item of the checkpoint be `content`."""
    metadata = dcp.FileSystemReader(path).read_metadata()
    ((index, place),) = metadata.storage_data.items()
    place.offset, place.length = 0, len(content)
    (path / "__0_0.distcp").write_bytes(content)
    if not is_tensor:
        metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
        metadata.storage_data = {MetadataIndex(index.fqn): place}
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def harmful_tensor(path: Path, canary: Path) -> None:
    stream = io.BytesIO()
    torch.save(Harm(canary), stream)
    write_item(path, stream.getvalue(), is_tensor=True)


def harmful_object(path: Path, canary: Path) -> None:
    """PyTorch's own loader unpickles items that are said to be no tensors."""
    stream = io.BytesIO()
    torch.save(Harm(canary), stream)
    write_item(path, stream.getvalue(), is_tensor=False)


def file_outside(path: Path, canary: Path) -> None:
    metadata = dcp.FileSystemReader(path).read_metadata()
    (place,) = metadata.storage_data.values()
    place.relative_path = f"../{path.name}/__0_0.distcp"
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


HARM: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "metadata": (harmful_metadata, r"asks for \w+\.mkdir, which no checkpoint needs"),
    "part of the metadata": (harm_inside_the_metadata, r"asks for \w+\.mkdir"),
    "tensor": (harmful_tensor, r"cannot be read: it holds more than tensors"),
    "object": (harmful_object, r"a is no tensor"),
    "path": (file_outside, r"outside of it"),
}


@pytest.mark.parametrize("with_digests", [True, False])
@pytest.mark.parametrize("kind", HARM)
def test_nothing_in_a_checkpoint_is_executed(
    kind: str, with_digests: bool, good: Path, tmp_path: Path
) -> None:
    path, canary = tmp_path / "step-000000001", tmp_path / "canary"
    shutil.copytree(good, path)
    prepare, message = HARM[kind]
    prepare(path, canary)
    if with_digests:  # whoever can write the files can write their digests too
        names = [p.name for p in path.iterdir() if p.name != DIGESTS]
        digests = {name: digest_of(path / name) for name in names}
        (path / DIGESTS).write_text(json.dumps(digests))
    else:
        (path / DIGESTS).unlink()
        (path / "facts.json").write_text('{"step": 1}')
    # Of that kind, so that a run goes back to the one before.
    with pytest.raises(DamagedCheckpoint, match=message):
        load(path, {"a": torch.zeros(SIZE)}, distributed=False)
    assert not canary.exists()
    if kind in ("metadata", "part of the metadata", "object"):
        # The attack works where nobody defends; PyTorch defends against the one by tensors.
        with suppress(CheckpointException):
            dcp.load({"a": torch.zeros(SIZE)}, checkpoint_id=path, no_dist=True)
        assert canary.exists()


def test_metadata_of_every_form_is_read(tmp_path: Path) -> None:
    """Scalars, empty tensors, all dtypes that networks have: none is refused by mistake."""
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
    shapes = [(), (0,), (3,), (2, 0), (2, 3, 4, 5)]
    tensors = {
        f"{dtype}{shape}": torch.randn(shape).mul(50).to(dtype)
        for dtype, shape in itertools.product(dtypes, shapes)
    } | {
        "flag": torch.tensor(True),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    with launch(precision="float32") as world:
        checkpoints = Checkpoints(tmp_path, keep=1, world=world)
        checkpoints.save(1, tensors, {})
        checkpoints.wait()
    found = stored(tmp_path / "step-000000001")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
