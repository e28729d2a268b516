"""The fault campaign of benchmarks/faults, in small: a few of its scenarios, and what it would see.

Each of its other scenarios takes the same path.
"""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "faults"))

import campaign
from broken import BrokenRun, Hang
from evidence import Try, attempts, history
from watched import BATCH


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> campaign.Campaign:
    return campaign.Campaign(tmp_path_factory.mktemp("campaign"), seed=1)


def test_a_scenario_is_survived_and_remembered(small: campaign.Campaign) -> None:
    tries = small.make("damaged", 1)
    assert [outcome.survived for outcome in tries] == [True], tries
    assert tries[0].lost_steps in (5, 10)
    again = campaign.Campaign(small.folder, seed=1)
    assert again.make("damaged", 1) == tries  # what is done is not done again
    row = campaign.summary("damaged", tries, again.seconds("damaged"))
    assert (row["tries"], row["survived"]) == (1, 1)
    assert 0 < row["start_up_s_median"] < row["took_s_median"] < row["bound_s"]


def test_what_takes_too_long_is_not_survived() -> None:
    assert campaign.in_time(Try(True, took_s=3.0), 3.0).survived
    late = campaign.in_time(Try(True, took_s=3.1, note="cut"), 3.0)
    assert not late.survived
    assert late.note == "cut; took longer than 3.0 s"


def test_rows_of_other_scenarios_stay(tmp_path: Path) -> None:
    path = tmp_path / "stored.json"
    assert campaign.with_stored({"scenario": "killed"}, path) == [{"scenario": "killed"}]
    stored = [{"scenario": "killed", "tries": 1}, {"scenario": "in-use", "tries": 2}]
    path.write_text(json.dumps({"rows": stored}))
    again, between = {"scenario": "killed", "tries": 3}, {"scenario": "damaged"}
    assert campaign.with_stored(again, path) == [again, stored[1]]
    assert campaign.with_stored(between, path) == [stored[0], between, stored[1]]


def test_what_is_lost_is_seen(
    small: campaign.Campaign, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The damage that is drawn does nothing: nothing is reported, and that is no survival."""
    monkeypatch.setattr("damage.DAMAGE", {"nothing": lambda path, choose: None})
    (outcome,) = small.make("damaged", 2)[1:]
    assert not outcome.survived
    assert "AssertionError" in outcome.note
    assert "AssertionError" in capsys.readouterr().err


def test_two_runs_in_one_directory(small: campaign.Campaign) -> None:
    tries = small.make("in-use", 1)
    assert [outcome.survived for outcome in tries] == [True], tries


def write(folder: Path, name: str, first: int, keys: list[str]) -> None:
    """The notes of one rank: of a step for each of `keys`, from step `first`."""
    lines = [[float(n), (first + n) * BATCH, [key]] for n, key in enumerate(keys)]
    text = "".join(json.dumps(line) + "\n" for line in [[0.2, 0.5], *lines])
    (folder / "notes" / f"{name}.jsonl").write_text(text)


def test_the_history_counts_what_was_done_again_once(tmp_path: Path) -> None:
    broken = BrokenRun(tmp_path, "shards")
    write(tmp_path, "000.000-rank0of2", 0, ["a", "b", "c", "d"])
    write(tmp_path, "000.000-rank1of2", 0, ["A", "B", "C"])
    write(tmp_path, "000.001-rank0of1", 2, ["c", "d", "e"])
    write(tmp_path, "000.002-rank1of2", 9, ["x"])  # the other rank never began
    assert history(broken) == [["a", "A"], ["b", "B"], ["c"], ["d"], ["e"]]
    assert [attempt.first for attempt in attempts(broken).values()] == [0, 2]
    write(tmp_path, "001.000-rank0of1", 6, ["g"])
    with pytest.raises(AssertionError, match="leaves out steps from 5"):
        history(broken)


def test_a_wait_has_an_end_and_shows_the_stacks(small: campaign.Campaign) -> None:
    broken = BrokenRun(small.folder / "hang", str(small.shards), campaign.SINGLE)
    job = broken.single("--train.steps", "1000000")
    broken.reach(1, job)
    with pytest.raises(Hang, match=r"(?s)never: not in 1 s.*most recent call first"):
        job.until(lambda: False, "never", limit_s=1)
    assert broken.processes() == []
