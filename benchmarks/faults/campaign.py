"""Break runs in every way that a cluster knows, and see that nothing is lost.

    python benchmarks/faults/campaign.py [--tries 20] [--only NAME ...] [--folder FOLDER] [--seed 0]

Trains a tiny recipe, with `train.deterministic`, by the `dgan train` command in processes of its
own: two ranks under launch/torchrun.sh (`killed`, `killed-in-save`), two started one by one as
srun does (`preempted`, `resized`, `cut-off`, `corrupt-shard`, `not-finite`), or one. Each scenario
breaks it at moments and in ways drawn from the seed, lets the launcher or a scheduler's stand-in
(the same command again) go on, and compares with the run that nothing disturbed. A fault is
survived if each step has the same sample keys and each sample came once an epoch, no checkpoint is
missing, all of them and the losses are equal bit for bit (`resized`: losses to rounding), no
process is left, and the try took no longer than its `bound`. Every wait ends: what hangs has
failed, and shows its stacks. Several faults hit one run; if its end is not right, all of them count
as not survived.

`lost steps` were done and had to be done again (by rollback: stepped back). `took` is from the
fault to the end of the next step, by the clock: the fault is noticed, what is left ends, processes
start, load, and do a step; without a restart (`in-use`, `corrupt-shard`, `not-finite`) it is until
the refusal, of the whole run, of the step that is rolled back. `start up` is the part of it that
the new process takes to begin and to import what it needs; `recovery` is the rest. Results lie in
the folder (a new one in /tmp; named, the campaign goes on where it was), and at the end beside the
other measurements, where rows of scenarios that were not asked for stay. Network namespaces and the
small disk need root, and are skipped without.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import damage
import disk
import kills
import samples
import stops
from broken import BrokenRun
from dgan.data import pack_source
from evidence import Skip, Try
from report import path_of, store

NAME = "faults-campaign"


@dataclass(frozen=True)
class Undisturbed:
    """The run that broken ones are compared with."""

    ranks: int = 2
    options: tuple[str, ...] = ()
    recipe: str = "recipe"


SINGLE = ("--parallel.strategy", "single")
TWO_RANKS = Undisturbed()
TWO_RANKS_64 = Undisturbed(2, ("--train.precision", "float64"))
POISONED = Undisturbed(recipe="poisoned")
ONE = Undisturbed(1, SINGLE)
ONE_SHORT = Undisturbed(1, (*SINGLE, "--train.steps", str(damage.STEPS)))
ONE_WIDE = Undisturbed(1, SINGLE, "wide")


@dataclass(frozen=True)
class Scenario:
    """A kind of fault."""

    what: str
    make: Callable[[BrokenRun, BrokenRun, Random, Sequence[int]], list[Try]]
    """(the run to break, the undisturbed one, what draws, a step for each try) → how each went; an
    `AssertionError` if any of them went wrong."""
    undisturbed: Undisturbed = TWO_RANKS
    at_once: int = 5
    """Tries on one run."""
    bound_s: float = 180.0
    """What takes longer has not survived."""


SCENARIOS = {
    "killed": Scenario("SIGKILL of any rank at a random step", kills.at_random_steps),
    "killed-in-save": Scenario("SIGKILL of any rank in a checkpoint", kills.in_checkpoints),
    "preempted": Scenario("SIGTERM or SIGUSR1 to any rank", stops.preempted),
    "resized": Scenario("2 → 1 → 3 ranks, by SIGKILL", stops.resized, TWO_RANKS_64),
    "cut-off": Scenario("the network between two ranks is cut", stops.cut_off),
    "damaged": Scenario("flipped, torn, missing checkpoint files", damage.damaged, ONE_SHORT, 1),
    "harmful": Scenario("a malicious pickle as checkpoint", damage.harmful, ONE_SHORT, 1),
    "full-disk": Scenario("the disk is full", disk.full_disk, ONE_WIDE),
    "in-use": Scenario("two runs in one directory", disk.in_use, ONE),
    "corrupt-shard": Scenario(
        "samples that do not decode", samples.corrupt_shards, TWO_RANKS, 1, bound_s=600.0
    ),
    "not-finite": Scenario("NaN in a batch", samples.not_finite, POISONED, bound_s=60.0),
}


class Campaign:
    """Scenarios in a folder, which remembers those that are done.

    Args:
        folder: made when needed.
        seed: of all that is drawn.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.shards = folder / "digits" / "train-*.tar"
        if not self.shards.parent.is_dir():
            aside = folder / "digits.tmp"
            aside.mkdir(parents=True, exist_ok=True)
            pack_source("digits", aside, samples_per_shard=600)
            aside.rename(self.shards.parent)

    def make(self, name: str, tries: int) -> list[Try]:
        """Try until there are so many tries; what was tried before counts."""
        scenario = SCENARIOS[name]
        results = self.folder / f"{name}.jsonl"
        while (done := len(self.tried(name))) < tries:
            count = min(scenario.at_once, tries - done)
            begin = time.monotonic()
            found = self._attempt(name, done, count)
            seconds = time.monotonic() - begin
            with results.open("a") as file:
                for outcome in found:
                    line = asdict(outcome) | {"seconds": seconds / len(found)}
                    file.write(json.dumps(line) + "\n")
            good = sum(outcome.survived for outcome in found)
            print(f"{name:16} {good} of {count} in {seconds:.0f} s", flush=True)
        return self.tried(name)

    def tried(self, name: str) -> list[Try]:
        """How the tries went so far."""
        path = self.folder / f"{name}.jsonl"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        return [Try(**{k: v for k, v in line.items() if k != "seconds"}) for line in lines]

    def seconds(self, name: str) -> float:
        """That its tries took."""
        lines = (self.folder / f"{name}.jsonl").read_text().splitlines()
        return sum(json.loads(line)["seconds"] for line in lines)

    def _attempt(self, name: str, first: int, count: int) -> list[Try]:
        scenario = SCENARIOS[name]
        number = len([*self.folder.glob(f"{name}.tries-*")])  # a campaign may have been cut off
        folder = self.folder / f"{name}.tries-{first:03d}-{number}"
        undisturbed = self.undisturbed(scenario.undisturbed)
        plan = scenario.undisturbed
        broken = BrokenRun(folder, str(self.shards), plan.options, plan.recipe)
        # No two tries at the same step, in whatever batches they are made.
        steps = Random(f"{self.seed} {name}").sample(range(2, kills.STEPS - 30), first + count)
        choose = Random(f"{self.seed} {name} {first}")
        try:
            found = scenario.make(broken, undisturbed, choose, sorted(steps[first:]))
        except Exception as error:
            broken.clear()
            if isinstance(error, Skip):
                raise
            traceback.print_exc()
            return [Try(False, note=f"{type(error).__name__}: {error}"[:4000])] * count
        assert len(found) == count
        return [in_time(outcome, scenario.bound_s) for outcome in found]

    def undisturbed(self, plan: Undisturbed) -> BrokenRun:
        """The run of `plan`, made once."""
        name = "-".join([str(plan.ranks), plan.recipe, *plan.options]).replace("--", "")
        folder = self.folder / f"undisturbed-{name}"
        is_done = (folder / "done").exists()
        if not is_done:
            shutil.rmtree(folder, ignore_errors=True)  # of a campaign that was cut off
        run = BrokenRun(folder, str(self.shards), plan.options, plan.recipe)
        if not is_done:
            job = run.single() if plan.ranks == 1 else run.ranks(plan.ranks)
            assert not any(job.end()), job.said()
            (folder / "done").touch()
        run.launches = 1
        return run


def in_time(outcome: Try, bound_s: float) -> Try:
    """The same, but not survived if it took longer."""
    if (outcome.took_s or 0.0) <= bound_s:
        return outcome
    return replace(outcome, survived=False, note=f"{outcome.note}; took longer than {bound_s} s")


def summary(name: str, tries: list[Try], seconds: float) -> dict[str, Any]:
    """What a row of the table says of the tries."""
    lost = [outcome.lost_steps for outcome in tries if outcome.lost_steps is not None]
    took = [outcome.took_s for outcome in tries if outcome.took_s is not None]
    start_up = [outcome.start_up_s for outcome in tries if outcome.start_up_s is not None]
    recovery = [outcome.recovery_s for outcome in tries if outcome.recovery_s is not None]
    return {
        "tries": len(tries),
        "survived": sum(outcome.survived for outcome in tries),
        "lost_steps_median": median(lost),
        "lost_steps_most": max(lost, default=None),
        "took_s_median": median(took),
        "took_s_most": max(took, default=None),
        "bound_s": SCENARIOS[name].bound_s,
        "start_up_s_median": median(start_up),
        "recovery_s_median": median(recovery),
        "recovery_s_most": max(recovery, default=None),
        "seconds": seconds,
        "tried": [asdict(outcome) for outcome in tries],
    }


def median(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return statistics.median(values) if values else None


def with_stored(row: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """`row`, and those that are stored of other scenarios, in the scenarios' order."""
    stored = json.loads(path.read_text())["rows"] if path.exists() else []
    by_name = {found["scenario"]: found for found in [*stored, row]}
    return [by_name[name] for name in SCENARIOS if name in by_name]


COLUMNS = {
    "what": "{}",
    "tries": "{}",
    "survived": "{}",
    "lost_steps_median": "{:.0f}",
    "lost_steps_most": "{}",
    "took_s_median": "{:.1f}",
    "took_s_most": "{:.1f}",
    "bound_s": "{:.0f}",
    "start_up_s_median": "{:.1f}",
    "recovery_s_median": "{:.1f}",
    "recovery_s_most": "{:.1f}",
    "seconds": "{:.0f}",
}


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    print(f"| {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |")
    print(f"|{'---|' * len(COLUMNS)}")
    for row in rows:
        if "skipped" in row:
            print(f"| {row['what']} | skipped: {row['skipped']} |" + " |" * (len(COLUMNS) - 2))
            continue
        cells = ["" if row.get(k) is None else f.format(row[k]) for k, f in COLUMNS.items()]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Break runs, and see that nothing is lost.")
    parser.add_argument("--tries", type=int, default=20, help="of each scenario")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=[*SCENARIOS])
    parser.add_argument("--folder", type=Path, help="for the runs and results; may be gone on with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="dgan-faults-"))).resolve()
    print(f"in {folder}", flush=True)
    campaign, failed = Campaign(folder, options.seed), False
    notes = (__doc__ or "").partition("\n\n")[2] + f"\nSeed {options.seed}."
    path = path_of(NAME, options.out)
    for name in options.only:
        row: dict[str, Any] = {"scenario": name, "what": SCENARIOS[name].what}
        try:
            tries = campaign.make(name, options.tries)
            row |= summary(name, tries, campaign.seconds(name))
            failed |= row["survived"] < row["tries"]
        except Skip as reason:
            row["skipped"] = str(reason)
        # Each at once: the campaign takes hours, and may be cut off.
        store(NAME, with_stored(row, path), notes=notes, out=options.out)
    show(json.loads(path.read_text())["rows"])
    print("survived: no sample and no checkpoint lost, no process left, nothing hung; see `notes`")
    print(f"stored in {path}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
