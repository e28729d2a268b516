"""What a run runs on: versions, devices, ranks."""

import importlib.metadata
import os
import platform
import socket
from typing import Any

import torch

import dgan
from dgan.parallel.world import World

PACKAGES = ("torch", "triton", "deepspeed", "numpy", "webdataset")
"""What dgan stands on."""


def environment(world: World) -> dict[str, Any]:
    """JSON for the record of a run; every rank calls this, and gets the same."""
    found = world.gather(device_of(world))
    names = [name for _, name, _ in found]
    return {
        "dgan": dgan.__version__,
        "python": platform.python_version(),
        **{package: version for package in PACKAGES if (version := version_of(package))},
        "cuda": torch.version.cuda if world.device.type == "cuda" else None,
        "system": platform.platform(),
        "ranks": world.size,
        "nodes": len({host for host, _, _ in found}),
        "devices": {name: names.count(name) for name in dict.fromkeys(names)},
        "threads": torch.get_num_threads(),
        "dtype": str(world.compute_dtype).removeprefix("torch."),
    }


def version_of(package: str) -> str | None:
    """The version that is installed; None if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_of(world: World) -> tuple[str, str, str]:
    """The host, the device in words, and what tells it from others of the host (GPUs alone)."""
    if world.device.type == "cuda":
        properties = torch.cuda.get_device_properties(world.device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        return socket.gethostname(), name, str(getattr(properties, "uuid", world.device))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return socket.gethostname(), f"CPU, {cores} cores", ""
