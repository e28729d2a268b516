"""Which rank the others wait for, told by what each wrote last."""

import os
from pathlib import Path

import pytest

from dgan.whereabouts import Place, Whereabouts


def ranks(folder: Path, *places: Place) -> list[Whereabouts]:
    """Ranks that have told where they stand."""
    made = [
        Whereabouts(folder, rank=rank, size=len(places), here=lambda p=place: p, every_s=1.0)
        for rank, place in enumerate(places)
    ]
    for whereabouts in made:
        whereabouts.tell()
    return made


def grow_old(folder: Path, rank: int, seconds: float) -> None:
    path = folder / str(rank)
    at = path.stat().st_mtime - seconds
    os.utime(path, (at, at))


def test_a_rank_that_tells_nothing_any_more_is_named(tmp_path: Path) -> None:
    first, *_ = ranks(tmp_path, Place(7, "update", 30), Place(7, "update", 30), Place(3, "x", 2))
    grow_old(tmp_path, 1, 100)
    assert first.held_up_by().startswith("Rank 1 (step 7, phase 'update', 100 s ago) no longer")


def test_a_rank_that_never_came_is_named(tmp_path: Path) -> None:
    alone = Whereabouts(tmp_path / "new", rank=0, size=2, here=Place, every_s=1.0)
    assert alone.held_up_by().startswith("Rank 1 (never) no longer")


def test_one_that_is_behind_is_named_by_whoever_looks(tmp_path: Path) -> None:
    places = Place(7, "update", 31), Place(7, "reading data", 30), Place(7, "update", 31)
    expected = "Rank 1 (step 7, phase 'reading data') is behind the others, which wait for it"
    assert [rank.held_up_by() for rank in ranks(tmp_path, *places)] == [expected] * 3


def test_of_ranks_at_one_place_none_is_named(tmp_path: Path) -> None:
    first, _ = ranks(tmp_path, Place(7, "update", 30), Place(7, "update", 30))
    assert first.held_up_by().startswith("All ranks stand at the same place")


def test_of_many_some_are_named(tmp_path: Path) -> None:
    first, *_ = ranks(tmp_path, Place(1, "update", 2), *[Place(0, "start", 1)] * 20)
    said = first.held_up_by()
    assert "rank 8 (step 0, phase 'start'), 12 more is behind" in said
    assert "rank 9" not in said


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        ranks(tmp_path / "file" / "folder", Place())


def test_nothing_is_left_over(tmp_path: Path) -> None:
    both = ranks(tmp_path / "new", Place(), Place())
    for whereabouts in both:
        whereabouts.start()
    for whereabouts in both:
        whereabouts.stop()
    assert not (tmp_path / "new").exists()
