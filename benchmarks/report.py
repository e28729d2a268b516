"""What every result is stored with: the device, the versions, the command."""

import json
import os
import platform
import re
import statistics
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def device() -> str:
    """A name for this machine that can be a folder's."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        text = cpuinfo.read_text() if cpuinfo.exists() else ""
        found = re.search(r"model name\s*:\s*(.+)", text)
        name = f"cpu {found[1] if found else platform.processor()} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "")).strip("-")


def environment() -> dict[str, Any]:
    """Device, versions and command."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "triton", "deepspeed"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"device": device(), "versions": versions, "command": " ".join(sys.orig_argv)}


def path_of(name: str, out: Path | None = None) -> Path:
    """Where `store` puts it."""
    return (out or RESULTS / device()) / f"{name}.json"


def median_row(rounds: list[dict[str, Any]], per_round: str) -> dict[str, Any]:
    """The median of each number over some rounds, and all rounds' values of `per_round`."""
    medians = {
        key: round(statistics.median(row[key] for row in rounds), 3)
        for key, value in rounds[0].items()
        if isinstance(value, int | float)
    }
    return {**rounds[0], **medians, f"{per_round}_rounds": [row[per_round] for row in rounds]}


def store(name: str, rows: list[dict[str, Any]], notes: str = "", out: Path | None = None) -> Path:
    """Write `rows` as `<out or results/<device>>/<name>.json`."""
    path = path_of(name, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**environment(), "notes": notes, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
