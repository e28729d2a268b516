"""Seconds, peak memory and collectives of a discriminator step, by method of the penalty.

    python benchmarks/penalties/cost.py [--rounds 5] [--batch 8] [--networks …] [--out FOLDER]

A step is dgan's: the relativistic loss and R1 + R2 on a batch of real and one of generated images
a rank, forward and backward, no optimizer. "+ recompute" checkpoints the blocks, "+ keep" keeps
weights gathered between the passes (`keep_unsharded`). All methods of a
layout share one process group and take turns in each round, so that a slow minute of the machine
falls on all of them; seconds are medians over rounds, of the slowest rank. Differentiating twice
needs what others do not: attention by PyTorch's math kernel and, under FSDP2, weights that stay
gathered. The step's whole gradient is compared with that of double.

Memory is the highest sum of live allocations in a step above what was there before it. On a CPU it
adds up what the profiler saw of the allocator: that includes temporaries inside operators and
FSDP2's resized storages, which a dispatch mode does not see, and no allocator's cache, which the
resident set does. On a GPU it is `max_memory_allocated`. It covers activations, gradients and,
under FSDP2, gathered weights.

Collectives are counted in a step after the first, and up to the end of the first differentiation
(pass one): that pass has no parameter gradients, so nothing to reduce.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from dgan.objectives.losses import LOSSES
from dgan.objectives.penalties import gradient_penalty
from dgan.parallel import recompute, reshard, shard
from dgan.parallel.world import World, launch

sys.path.insert(0, str(Path(__file__).parents[1]))
from penalties.networks import NETWORKS, build, images, perturb
from report import store

METHODS = (
    *("none", "double", "forward", "forward + keep", "difference"),
    *("none + recompute", "forward + recompute"),
)
LAYOUTS = {"single": 1, "fsdp2": 2}
GAMMA = 0.1
WARMUP = 2


class Case:
    """One method's own copy of the network, and its step."""

    def __init__(self, name: str, method: str, layout: str, batch: Tensor, world: World) -> None:
        self.method, self.checkpointed = method.split()[0], "recompute" in method
        self.keep = "keep" in method
        self.double_sharded = self.method == "double" and layout == "fsdp2"
        self.batch = batch
        self.network: nn.Module = perturb(build(name)).to(world.device)
        if self.checkpointed:
            recompute(self.network)
        if layout == "fsdp2":
            shard(self.network, world.mesh, keep_for_double_backward=self.double_sharded)

    def forward(self) -> Tensor:
        """The loss."""
        penalty: Tensor | float = 0.0
        if self.method == "none":
            logits = self.network(self.batch)
        else:
            output = gradient_penalty(
                self.network, self.batch, method=self.method, keep_unsharded=self.keep
            )
            logits, penalty = output.logits, 2 * GAMMA * output.loss
        return LOSSES["relativistic"].discriminator(*logits.chunk(2)) + penalty

    def step(self) -> None:
        """Forward, loss, backward; leaves the gradients."""
        with sdpa_kernel(SDPBackend.MATH) if self.method == "double" else nullcontext():
            self.forward().backward()
        if self.double_sharded:
            reshard(self.network)

    def clear(self) -> None:
        self.network.zero_grad(set_to_none=True)

    def gradient(self) -> Tensor:
        """All gradients in one vector; under FSDP2 this rank's shards."""
        return torch.cat([local(p.grad).flatten() for p in self.network.parameters()])


def local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(case: Case, world: World) -> float:
    """One step, of the slowest rank."""
    case.clear()
    world.barrier()
    synchronize(world)
    begin = time.perf_counter()
    case.step()
    synchronize(world)
    return max(world.gather(time.perf_counter() - begin))


def peak_of(case: Case, world: World) -> float:
    """MiB of a step above what was there before, of the rank with most."""
    case.clear()
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.step()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = profiled_peak(case.step)
    return max(world.gather(peak / 2**20))


def profiled_peak(step: Callable[[], None]) -> int:
    """The highest running sum of bytes that the CPU's allocator gave and took back."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as run:
        step()
    events = run.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    alive = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        alive += change
        peak = max(peak, alive)
    return peak


COLLECTIVES = {"allgather": "all_gather", "reduce_scatter": "reduce_scatter"}
"""Part of the operator's name, and what it is called here."""


class CountCollectives(TorchDispatchMode):
    """What `torch.distributed` is asked for, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self.counts.update(kind for key, kind in COLLECTIVES.items() if key in func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def first_pass_of(counter: CountCollectives) -> Iterator[Counter[str]]:
    """The counts when the gradient in the input is there."""
    first: Counter[str] = Counter()
    grad = torch.autograd.grad

    def noting(*args: Any, **kwargs: Any) -> Any:
        result = grad(*args, **kwargs)
        if not first:
            first.update(counter.counts)
        return result

    with patch("torch.autograd.grad", noting):
        yield first


def collectives_of(case: Case) -> dict[str, int]:
    case.clear()
    with CountCollectives() as counter, first_pass_of(counter) as first:
        case.step()
    whole = counter.counts
    return {
        f"{when}_{kind}": counts[kind]
        for when, counts in (("first_pass", first), ("step", whole))
        for kind in COLLECTIVES.values()
    }


def measure(name: str, layout: str, rounds: int, batch: int) -> None:
    """All methods of one layout, on every rank; the first prints what they took."""
    with launch(precision="float32") as world:
        both = images(2 * batch, world.device, seed=world.rank)
        cases = {method: Case(name, method, layout, both, world) for method in METHODS}
        for case in cases.values():
            for _ in range(WARMUP):
                case.clear()
                case.step()
        collectives = {method: collectives_of(case) for method, case in cases.items()}
        gradients = {method: case.gradient() for method, case in cases.items()}
        peaks = {method: peak_of(case, world) for method, case in cases.items()}
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for _ in range(rounds):
            for method, case in cases.items():
                seconds[method].append(seconds_of(case, world))
        errors = {method: distance(gradients[method], gradients["double"]) for method in METHODS}
        if world.is_first:
            rows = [
                {
                    "network": name,
                    "layout": layout,
                    "ranks": world.size,
                    "method": method,
                    "seconds": statistics.median(seconds[method]),
                    "of_double": statistics.median(seconds[method])
                    / statistics.median(seconds["double"]),
                    "peak_mib": peaks[method],
                    "peak_of_double": peaks[method] / peaks["double"],
                    "gradient_from_double": None if "none" in method else errors[method],
                    **collectives[method],
                    "rounds": seconds[method],
                }
                for method in METHODS
            ]
            print(json.dumps(rows))


def distance(gradient: Tensor, reference: Tensor) -> float:
    return ((gradient - reference).norm() / reference.norm()).item()


def run(name: str, layout: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One layout in processes of its own."""
    ranks = LAYOUTS[layout]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    arguments = ["--case", name, "--layout", layout, "--rounds", str(options.rounds)]
    # As many threads in all as there are cores, whatever the number of ranks.
    threads = max(1, (os.cpu_count() or 1) // ranks)
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *arguments, "--batch", str(options.batch)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name}, {layout} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | layout | method | s / step | of double | peak MiB | of double "
        "| gradient from double's | pass one: gather, reduce-scatter | step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = row["gradient_from_double"]
        counts = [
            f"{row[f'{when}_all_gather']}, {row[f'{when}_reduce_scatter']}"
            for when in ("first_pass", "step")
        ]
        if "none" in row["method"]:
            counts[0] = "–"
        if row["layout"] == "single":
            counts = ["–", "–"]
        lines.append(
            f"| {row['network']} | {row['layout']} ×{row['ranks']} | {row['method']} "
            f"| {row['seconds']:.3f} | {row['of_double']:.2f} "
            f"| {row['peak_mib']:.1f} | {row['peak_of_double']:.2f} "
            f"| {'–' if error is None else f'{error:.1e}'} | {counts[0]} | {counts[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What each method of the penalty costs.")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--layout", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each method")
    parser.add_argument("--batch", type=int, default=8, help="real images a rank")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS[::3])
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    if options.case:
        measure(options.case, options.layout, options.rounds, options.batch)
        return
    gpus = torch.cuda.device_count()
    layouts = [name for name, ranks in LAYOUTS.items() if not gpus or ranks <= gpus]
    rows = [
        row for name in options.networks for layout in layouts for row in run(name, layout, options)
    ]
    print(table(rows))
    notes = (__doc__ or "").partition("\n\n")[2]
    print(f"stored in {store('penalties-cost', rows, notes=notes, out=options.out)}")


if __name__ == "__main__":
    main()
