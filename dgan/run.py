"""A run's directory and what a person sees of it: log, metrics, progress, sample grids."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from dgan.data.aside import write_aside, written_aside

GAP_COLOUR = (70, 70, 90)
"""Between the pictures of a grid: neither black nor white, which images of digits are full of."""


class StopSignal:
    """Remembers the signal that asked the run to end, 0 if none did; the loop asks at a step's end.

    Schedulers send SIGTERM when they evict, SIGUSR1 or SIGUSR2 (Slurm's --signal) when time is up.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number


class Run:
    """Everything that one writer writes; on ranks other than the first it writes nothing.

    Args:
        directory: of the run.
        writes: whether this rank is the one.
        total: steps of the whole run.
        images_per_step: over all ranks.
        wandb: project of Weights & Biases that gets the curves too; empty for none.
    """

    def __init__(
        self, directory: Path, *, writes: bool, total: int, images_per_step: int, wandb: str = ""
    ) -> None:
        self.directory = directory
        self.writes = writes
        self.total = total
        self.images_per_step = images_per_step
        self.wandb = wandb
        self.console = Console(quiet=not writes, highlight=False, soft_wrap=True)
        self.images_per_second = 0.0
        self._board: SummaryWriter | None = None
        self._progress: Progress | None = None
        self._mark = (time.perf_counter(), 0)
        if writes:
            (directory / "samples").mkdir(parents=True, exist_ok=True)

    def open(self, step: int) -> None:
        """Begin to record at `step`: what was recorded after it comes again, so it is dropped."""
        if not self.writes:
            return
        kept = [record for record in metrics_of(self.directory) if record["step"] <= step]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_aside(self.directory / "metrics.jsonl", lines)
        if self.wandb:
            _start_wandb(self.wandb, self.directory)
        self._board = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step + 1)

    def began(self, step: int, environment: dict[str, Any]) -> None:
        """A line of `environment.jsonl`: the run started, or went on, from `step`."""
        if not self.writes:
            return
        facts = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "step": step, **environment}
        with (self.directory / "environment.jsonl").open("a") as lines:
            lines.write(json.dumps(facts) + "\n")

    def steps(self, start: int) -> Iterator[int]:
        """The steps to do, 1-based; a bar on a terminal, nothing elsewhere."""
        self._mark = (time.perf_counter(), start)
        if not self.console.is_terminal or not self.writes:
            yield from range(start + 1, self.total + 1)
            return
        columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.description}"), console=self.console) as progress:
            self._progress = progress
            task = progress.add_task("", total=self.total, completed=start)
            for step in range(start + 1, self.total + 1):
                yield step
                progress.update(task, completed=step)
        self._progress = None

    def say(self, line: str) -> None:
        """One line for the person who watches and for `log.txt`."""
        if not self.writes:
            return
        self.console.print(line, markup=False)
        self._log(line)

    def record(self, step: int, values: dict[str, Any]) -> None:
        """A line of `metrics.jsonl`, and TensorBoard's curves of what is a number."""
        if not self.writes or self._board is None:
            return
        kimg = step * self.images_per_step / 1000
        with (self.directory / "metrics.jsonl").open("a") as lines:
            lines.write(json.dumps({"step": step, "kimg": kimg, **values}) + "\n")
        for key, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(key, value, step)
        self._board.flush()

    def status(self, step: int, values: dict[str, Any]) -> None:
        """Record the training's values and show the most telling of them."""
        now = time.perf_counter()
        before, step_before = self._mark
        self._mark = (now, step)
        speed = (step - step_before) * self.images_per_step / max(now - before, 1e-9)
        self.images_per_second = speed
        seconds_left = (self.total - step) * self.images_per_step / speed
        self.record(step, {**values, "images_per_second": speed})
        short = "  ".join(f"{key} {value:.4g}" for key, value in values.items() if _telling(key))
        kimg = step * self.images_per_step / 1000
        numbers = f"kimg {kimg:.1f}  {speed:.0f} images/s  {short}"
        line = f"step {step}/{self.total}  {numbers}  left {_duration(seconds_left)}"
        if self._progress is None:
            self.say(line)
        else:
            self._progress.update(self._progress.task_ids[0], description=numbers)
            self._log(line)

    def grid(
        self,
        name: str,
        images: Tensor,
        columns: int,
        more: Callable[[Path], object] = lambda path: None,
    ) -> Path:
        """Save uint8 images `[N, C, H, W]` under `samples/`, and show them in TensorBoard.

        `more` is given the path of the PNG, and writes what belongs beside it.
        """
        path = self.directory / "samples" / f"{name}.png"
        if self.writes:
            picture = save_grid(images, path, columns)
            more(path)
            if self._board is not None:
                step = int(name[5:]) if name.startswith("step-") else 0
                self._board.add_image("samples", picture, step, dataformats="HWC")
        return path

    def table(self, title: str, rows: dict[str, str]) -> None:
        """Two columns for a person, at the end of something."""
        width = max(map(len, rows))
        lines = [title, *(f"  {key:{width}}  {value}" for key, value in rows.items())]
        # No frame and no folding: commands and paths are there to be copied.
        self.console.print("\n".join(lines), markup=False)

    def history(self, key: str) -> list[tuple[int, float]]:
        """The (step, value) pairs that were recorded under `key`."""
        return [
            (record["step"], record[key]) for record in metrics_of(self.directory) if key in record
        ]

    def _log(self, line: str) -> None:
        if self.writes:
            with (self.directory / "log.txt").open("a") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()


def metrics_of(directory: Path) -> list[dict[str, Any]]:
    """What a run has recorded, one entry a time."""
    return lines_of(directory / "metrics.jsonl")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none if there is no such file."""
    text = path.read_text() if path.exists() else ""
    # A process that was killed may have left half a line: what ends in a newline is whole.
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


def save_grid(images: Tensor, path: Path, columns: int, *, enlarge: bool = True) -> np.ndarray:
    """Write uint8 images `[N, C, H, W]` as one PNG, row by row.

    `enlarge` repeats the pixels of small pictures, so that a person can see them.

    Returns:
        The picture, `[height, width, 3]`.
    """
    sheet = arranged(images, columns, enlarge=enlarge)
    with written_aside(path) as file:
        Image.fromarray(sheet).save(file, format="PNG")
    return sheet


def arranged(images: Tensor, columns: int, *, enlarge: bool = True) -> np.ndarray:
    """uint8 images `[N, C, H, W]` row by row: a picture `[height, width, 3]`; see `save_grid`."""
    pixels = images.cpu().numpy().transpose(0, 2, 3, 1)
    count, height, width, channels = pixels.shape
    rows = math.ceil(count / columns)
    gap = 0 if count == 1 else 1 if width < 32 else 2
    cells = np.full((rows * columns, height + gap, width + gap, 3), GAP_COLOUR, np.uint8)
    cells[:, :height, :width] = 0
    cells[:count, :height, :width] = pixels if channels == 3 else pixels.repeat(3, axis=3)
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (height + gap), columns * (width + gap), 3)
    scale = max(1, 720 // max(sheet.shape[:2])) if enlarge else 1
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def _start_wandb(project: str, directory: Path) -> None:
    """Mirror TensorBoard's curves to Weights & Biases; a resumed run goes on with its curves."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("--run.wandb needs the extra: pip install 'dgan[wandb]'") from None
    identity = sha256(str(directory.resolve()).encode()).hexdigest()[:16]
    wandb.init(
        project=project,
        name=directory.name,
        id=identity,
        resume="allow",
        dir=directory,
        sync_tensorboard=True,
    )


def _telling(key: str) -> bool:
    return key.endswith(("/loss", "/penalty", "data/skipped"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
