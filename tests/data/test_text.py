"""Text as one-hot vectors: where its parts are from, and what is refused."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from texts import shard

from dgan.data import ShardStream, pack_source
from dgan.data.text import TextDataset, text_of

LONG, EXACT = "abcabcaabbcc", "cabbage"[:3] + "abba"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return shard(tmp_path / "a.tar", {"0.txt": LONG.encode(), "1.txt": EXACT.encode()})


def test_each_character_is_one_of_its_channels(path: Path) -> None:
    dataset = TextDataset(path, alphabet="abc", resolution=7, crop="centre")
    (batch,) = dataset.batches(2)
    images = batch["image"]
    assert images.dtype == torch.float32
    assert (dataset.channels, dataset.resolution) == (3, 7)
    for row, text in zip(images, (LONG[2:9], EXACT)):
        wanted = np.array([[float(letter == other) for letter in text] for other in "abc"])
        assert (row.numpy() == wanted).all()
    assert text_of(images, "abc") == [LONG[2:9], EXACT]


def test_windows_are_from_anywhere_and_the_same_again(path: Path) -> None:
    def seen(rank: int, size: int) -> list[str]:
        dataset = TextDataset(path, alphabet="abc", resolution=7, crop="window")
        with ShardStream(
            dataset, batch_size=4, seed=3, rank=rank, world_size=size, workers=0
        ) as stream:
            return [text for _ in range(30) for text in text_of(next(stream)["image"], "abc")]

    alone = seen(0, 1)
    assert {text for text in alone if text != EXACT} == {LONG[i : i + 7] for i in range(6)}
    halves = [seen(rank, 2) for rank in (0, 1)]
    assert [alone[i : i + 2] for i in range(0, 120, 4)] == [
        halves[0][i : i + 2] for i in range(0, 60, 2)
    ]


@pytest.mark.parametrize(
    ("member", "options", "problem"),
    [
        (
            {"k.txt": b"ab"},
            {},
            r"bad\.tar: sample 'k' has 2 characters, but 3 are wanted: leave it out",
        ),
        ({"k.txt": b"abca"}, {}, r"'k' has 4 characters, but 3 .*crop 'centre' or 'window'"),
        ({"k.txt": b"abx"}, {}, r"'k' has the character 'x', which is not in the alphabet 'abc'"),
        ({"k.json": b"{}"}, {}, r"k' of .*bad\.tar has no \.txt: `dgan data pack`"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, member: dict[str, bytes], options: dict[str, str], problem: str
) -> None:
    path = shard(tmp_path / "bad.tar", member)
    with pytest.raises(ValueError, match=problem):
        TextDataset(path, alphabet="abc", resolution=3, **options)


def test_a_text_file_is_packed_line_by_line(tmp_path: Path) -> None:
    source = tmp_path / "lines.txt"
    source.write_text("one\n\n  zwölf \nthree", encoding="utf-8")
    pack_source(str(source), tmp_path / "packed")
    (tar,) = (tmp_path / "packed").glob("*.tar")
    with tarfile.open(tar) as members:
        found = {m.name: (members.extractfile(m) or io.BytesIO()).read().decode() for m in members}
    assert found == {"00000000.txt": "one", "00000001.txt": "zwölf", "00000002.txt": "three"}
    source.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"lines\.txt, line 2 is not UTF-8"):
        pack_source(str(source), tmp_path / "other")
    with pytest.raises(ValueError, match="text without pictures"):
        pack_source(str(source), tmp_path / "other", resolution=8)
