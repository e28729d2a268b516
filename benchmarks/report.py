"""What every result is stored with: the device, the versions, the command."""

import json
import os
import platform
import re
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


def store(name: str, rows: list[dict[str, Any]], notes: str = "", out: Path | None = None) -> Path:
    """Write `rows` as `<out or results/<device>>/<name>.json`."""
    path = path_of(name, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**environment(), "notes": notes, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
