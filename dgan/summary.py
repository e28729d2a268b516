"""What a person reads when a run ends."""

import os
import shutil
import sys
from pathlib import Path

from dgan.checkpoint import Checkpoints
from dgan.run import Run

SCORES = {
    "fid": ("FID", "{:.2f}"),
    "coverage": ("classes covered", "{:.0%}"),
    "l1": ("L1 to the targets", "{:.4f}"),
    "js_4": ("divergence of 4-grams", "{:.4f}"),
    "cycle": ("L1 there and back", "{:.4f}"),
}
"""What a run is summed up by, and how it is written."""


def summarise(run: Run, checkpoints: Checkpoints, step: int, stopped_by: str | None) -> None:
    """The table that ends a run, and how to go on."""
    newest = checkpoints.latest()
    rows = {}
    for key, (name, form) in SCORES.items():
        if history := run.history(key):
            (first, before), (last, after) = history[0], history[-1]
            rows[name] = (
                f"{form.format(before)} at step {first} → {form.format(after)} at step {last}"
            )
    if features := run.history("features"):
        rows["FID's features"] = str(features[-1][1])
    if speeds := [value for _, value in run.history("images_per_second")]:
        rows["images per second"] = f"{sorted(speeds)[len(speeds) // 2]:.0f}"
    if grids := sorted((run.directory / "samples").glob("step-*.png")):
        rows["samples"] = str(grids[-1])
    if newest is not None:
        rows["checkpoint"] = str(newest)
    # DeepSpeed's launcher, unlike torchrun, sets only the second.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 0)))
    command = (
        f"{program('torchrun')} --nproc-per-node {ranks} -m dgan" if ranks else program("dgan")
    )
    rows["go on"] = f"{command} train {run.directory}"
    if step >= run.total:
        rows["go on"] += f" --train.steps {2 * step}"
    rows["curves"] = f"{program('tensorboard')} --logdir {run.directory}"
    title = (
        f"{run.directory}: stopped by {stopped_by}, saved"
        if stopped_by
        else f"{run.directory}: done"
    )
    run.table(f"{title} at step {step} of {run.total}", rows)


def program(name: str) -> str:
    """How a person starts a program of this Python environment from here."""
    beside = Path(sys.executable).parent / name
    on_path = shutil.which(name)
    is_active = on_path is not None and Path(on_path).parent == beside.parent
    if is_active or not beside.exists():
        return name
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)
