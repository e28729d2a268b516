"""Contact sheets: which samples, where, and what is written beneath them."""

import numpy as np
import pytest
from PIL import Image
from shard_helpers import numbered, png, write_tar

from dgan.data import pack_source
from dgan.data.contact_sheet import contact_sheet, save_sheet


def colours(count):
    return [
        member
        for i in range(count)
        for member in (
            (f"{i}.png", png(np.full((4, 4, 3), [i * 20, 255, 0]))),
            (f"{i}.cls", b"%d" % i),
        )
    ]


def shown(sheet, count):
    """Which of the colours above are on the sheet, in order of place."""
    pixels = np.asarray(sheet).reshape(-1, 3)
    found = pixels[(pixels[:, 1] == 255) & (pixels[:, 2] == 0)][:, 0]
    return sorted({int(value) // 20 for value in found} & set(range(count)))


def test_the_seed_chooses(tmp_path):
    shard = write_tar(tmp_path / "x.tar", colours(10))
    sheets = [contact_sheet([shard], count=4, seed=seed) for seed in (0, 0, 1)]
    assert len(shown(sheets[0], 10)) == 4
    assert sheets[0].tobytes() == sheets[1].tobytes()
    assert shown(sheets[0], 10) != shown(sheets[2], 10)
    assert shown(contact_sheet([shard], count=99), 10) == list(range(10))


def test_columns_and_captions(tmp_path):
    shard = write_tar(tmp_path / "x.tar", colours(6))
    wide, tall = contact_sheet([shard], columns=6), contact_sheet([shard], columns=1)
    cell = 64 + 4
    assert wide.size == (6 * cell + 4, cell + 13 + 4)
    assert tall.size == (cell + 4, 6 * (cell + 13) + 4)
    caption = np.asarray(wide.convert("L"))[4 + 64 + 1 : 4 + 64 + 13]
    assert all((caption[:, 4 + i * cell : 4 + (i + 1) * cell] < 100).any() for i in range(6))
    for wrong in ({"count": 0}, {"columns": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            contact_sheet([shard], **wrong)


def test_class_names_come_from_the_journal(tmp_path):
    for name in ("ape", "bee"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.png").write_bytes(numbered(1))
    named = contact_sheet(pack_source(tmp_path / "in", tmp_path / "out").shards)
    (tmp_path / "out" / "train.pack.json").unlink()
    assert named.tobytes() != contact_sheet([tmp_path / "out" / "train-000000.tar"]).tobytes()


def test_pairs_and_damage_are_shown(tmp_path):
    red, blue = png(np.full((40, 40, 3), [255, 0, 0])), png(np.full((40, 40, 3), [0, 0, 255]))
    pair = write_tar(tmp_path / "pair.tar", [("k.a.png", red), ("k.b.png", blue)])
    sheet = np.asarray(contact_sheet([pair]))
    assert sheet[4 + 20, 4 + 20].tolist() == [255, 0, 0]
    assert sheet[4 + 20, 4 + 60].tolist() == [0, 0, 255]
    bad = write_tar(tmp_path / "bad.tar", [("a.png", numbered(1)), ("b.png", b"broken")])
    assert (np.asarray(contact_sheet([bad])) == (200, 60, 60)).all(axis=-1).sum() >= 64 * 64
    text = write_tar(tmp_path / "text.tar", [("a.txt", b"-")])
    with pytest.raises(ValueError, match="no image"):
        contact_sheet([text])


def test_it_is_saved_whole_or_not_at_all(tmp_path):
    sheet = Image.new("RGB", (8, 8))
    save_sheet(sheet, tmp_path / "new" / "x.png")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.png"]
    with pytest.raises(ValueError, match=r"x\.jpg"):
        save_sheet(sheet, tmp_path / "x.jpg")
