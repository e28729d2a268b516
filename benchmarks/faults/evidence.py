"""What shows that a broken run came to the same end as one that nothing disturbed."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from commands import assert_same_checkpoint, checkpoint_of, metrics

from broken import BrokenRun
from dgan.checkpoint import complete
from watched import BATCH, EVERY


class Skip(Exception):
    """A scenario needs what this machine does not have; says what."""


@dataclass(frozen=True)
class Try:
    """How one fault went."""

    survived: bool
    lost_steps: int | None = None
    """Steps that were done and had to be done again; none where nothing is to go on."""
    took_s: float | None = None
    """From the fault to the end of the next step; where nothing goes on, of the whole try."""
    start_up_s: float | None = None
    """Of that, for a process to begin and to import what it needs; none where none is started."""
    note: str = ""

    @property
    def recovery_s(self) -> float | None:
        """What the fault took beyond the start of a process."""
        if self.took_s is None or self.start_up_s is None:
            return None
        return self.took_s - self.start_up_s


@dataclass(frozen=True)
class Attempt:
    """What the ranks of one attempt noted; see `watched`."""

    start_up_s: float
    """That the process of the first rank took to begin and to import what it needs."""
    given: list[float]
    """When the first rank was given each batch: from the second on, the step before was done."""
    first: int
    """Steps that were done before."""
    batches: list[list[str]]
    """The keys of each step, over all ranks."""

    def goes_on(self, fault_at: float) -> tuple[float, float]:
        """`took_s` and `start_up_s` of a try whose fault this attempt is the first to recover."""
        return self.given[1] - fault_at, self.start_up_s


def attempts(broken: BrokenRun) -> dict[str, Attempt]:
    """All attempts that were given a batch, by name, in order."""
    files: dict[str, list[Path]] = {}
    for path in sorted((broken.folder / "notes").iterdir()):
        files.setdefault(path.name.partition("-")[0], []).append(path)
    found = {name: _attempt(paths) for name, paths in files.items()}
    return {name: attempt for name, attempt in sorted(found.items()) if attempt is not None}


def _attempt(paths: list[Path]) -> Attempt | None:
    # A process that was killed may have left half a line.
    lines = [
        [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()]
        for path in sorted(paths)
    ]
    ranks = [notes[1:] for notes in lines]
    # One that is killed while it starts has taken nothing.
    if len(paths) < int(paths[0].stem.rpartition("of")[2]) or not all(ranks):
        return None
    batches = []
    for step in zip(*ranks):  # those that every rank was given
        (position,) = {position for _, position, _ in step}
        assert position == ranks[0][0][1] + len(batches) * BATCH, "positions jump"
        batches.append([key for _, _, keys in step for key in keys])
    began, ready = lines[0][0]
    given = [at for at, _, _ in ranks[0]]
    return Attempt(ready - began, given, ranks[0][0][1] // BATCH, batches)


def history(broken: BrokenRun) -> list[list[str]]:
    """The keys of each step, as far as they count: what was done again counts once."""
    steps: list[list[str]] = []
    for name, attempt in attempts(broken).items():
        assert attempt.first <= len(steps), f"{name} leaves out steps from {len(steps)}"
        steps[attempt.first :] = attempt.batches
    return steps


def wait_for_no_process(broken: BrokenRun, timeout_s: float = 10.0) -> None:
    limit = time.monotonic() + timeout_s
    while left := broken.processes():
        assert time.monotonic() < limit, f"processes {left} are left over"
        time.sleep(0.05)


def check_whole(
    broken: BrokenRun, steps: int, *, keep: int | None = None, replaced: int = 0
) -> None:
    """Every step was made, every sample seen once an epoch, every checkpoint due is there.

    Args:
        broken: the run, which has ended.
        steps: that it had to do.
        keep: of the newest checkpoints, where not all are kept.
        replaced: samples that do not decode; others come twice in their place.
    """
    wait_for_no_process(broken)
    check_samples(broken, steps, replaced)
    assert [line["step"] for line in metrics(broken.run)] == list(range(1, steps + 1))
    kept = complete(broken.run / "checkpoints")
    due = [*range(EVERY, steps + 1, EVERY)][-(keep or 0) :]
    missing = [step for step in due if checkpoint_of(broken.run, step) not in kept]
    assert not missing, f"checkpoints were lost: {missing}"
    left = [path.name for path in (broken.run / "checkpoints").glob(".tmp-*")]
    assert not left, f"left over: {left}"
    assert not (broken.run / ".lock").exists(), "the lock is left over"


def check_samples(broken: BrokenRun, steps: int, replaced: int) -> None:
    """Every sample once in each epoch, but for the last, which is cut off."""
    keys = [key for batch in history(broken)[:steps] for key in batch]
    assert len(keys) == steps * BATCH, f"{len(keys)} samples were seen, not {steps * BATCH}"
    size = _samples(broken.run)
    epochs = [keys[begin : begin + size] for begin in range(0, len(keys), size)]
    twice = sum(len(epoch) - len(set(epoch)) for epoch in epochs)
    assert twice <= replaced, f"{twice} samples came twice in an epoch"


def _samples(run: Path) -> int:
    newest = complete(run / "checkpoints")[-1]
    return int(json.loads((newest / "facts.json").read_text())["stream"]["num_samples"])


def check_equal(broken: BrokenRun, undisturbed: BrokenRun, steps: int) -> None:
    """Bit for bit: weights, moments, average of every checkpoint that both have; every loss."""
    ours, theirs = history(broken)[:steps], history(undisturbed)[:steps]
    assert ours == theirs, "other samples, or in another order"
    assert metrics(broken.run)[:steps] == metrics(undisturbed.run)[:steps], "other losses"
    both = [
        (path, undisturbed.run / "checkpoints" / path.name)
        for path in complete(broken.run / "checkpoints")
    ]
    compared = 0
    for ours_at, theirs_at in both:
        if theirs_at.is_dir():
            assert_same_checkpoint(ours_at, theirs_at)
            compared += 1
    assert compared, "no checkpoint was compared"


def check_close(broken: BrokenRun, undisturbed: BrokenRun, steps: int, *, relative: float) -> float:
    """The same samples, and losses that agree to rounding; the largest difference."""
    assert history(broken)[:steps] == history(undisturbed)[:steps], "other samples or order"
    worst = 0.0
    for ours, theirs in zip(metrics(broken.run), metrics(undisturbed.run)):
        for key, value in theirs.items():
            worst = max(worst, abs(ours[key] - value) / max(abs(value), 1e-3))
    assert worst < relative, f"losses differ by {worst:.2g}"
    return worst


def newest_step(run: Path) -> int:
    """Of the newest complete checkpoint; 0 without any."""
    found = complete(run / "checkpoints")
    return int(found[-1].name[5:]) if found else 0


def said_in_log(run: Path) -> str:
    path = run / "log.txt"
    return path.read_text() if path.exists() else ""


def step_took_s(broken: BrokenRun, step: int) -> float:
    """From the batch of `step` to the next one, in the attempt that did it last."""
    for attempt in reversed(attempts(broken).values()):
        number = step - 1 - attempt.first
        if 0 <= number < len(attempt.given) - 1:
            return attempt.given[number + 1] - attempt.given[number]
    raise AssertionError(f"step {step} was not done")
