"""Who can train a discriminator with R1: replicated, sharded, checkpointed, beside a generator.

    python benchmarks/penalties/others.py [--only NAME …] [--timeout 240] [--out FOLDER]

Each case is what a user of a library would write (`other_cases.py`), on two processes of its own:
three steps of plain SGD on softplus(D(fake)) + softplus(−D(real)) + 10·R1, each followed by one of
a generator where there are two networks. R1 is taken by double backward but in the rows of dgan and
of FastGen's formula. The reference is double backward in float64 in one process on the whole batch.
All operators are smooth and twice differentiable: convolutions, group normalisation, SiLU, tanh.

`step 1` is the error of the weights' change after one step, so the relative error of the whole
gradient; `step 3` that after three: norms over all weights, relative to the reference's change. A
case is exact below 1e-9 in float64, and below 1e-4 in float32, which is DeepSpeed's. An error is
given by its class and first line; "refused" is one before the first step.

On CPUs Accelerate ignores its FSDP plugin: there the cases put it in the state that it has on GPUs,
so what runs is what runs there. Fabric's FSDPStrategy, FSDP1, needs GPUs and is not tried.
"""

import argparse
import copy
import itertools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from penalties import other_cases as by
from penalties import quality
from report import store

STEPS, RANKS, ROWS, LATENTS, WIDTH = 3, 2, 8, 8, 16
GAMMA = 10.0
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
PENALTIES = {"dgan": by.dgan_penalty, "FastGen's formula": by.noise_approximation}
PACKAGES = {"dgan": "dgan", "ZeRO": "deepspeed", "Accelerate": "accelerate", "Fabric": "lightning"}
TOGETHER = " in one prepare"
PREPARATIONS: dict[str, Callable[..., list[by.Player]]] = {
    "DDP": by.ddp,
    "DDP static_graph=True": partial(by.ddp, static_graph=True),
    "FSDP2": by.fsdp2,
    "FSDP2 reshard_after_forward=False": partial(by.fsdp2, reshard_after_forward=False),
    "FSDP2 kept gathered": partial(by.fsdp2, keep=True),
    "FSDP2 kept gathered + reshard() by hand": partial(by.fsdp2, keep=True, reshard=True),
    "ZeRO-1": partial(by.deepspeed, stage=1),
    "ZeRO-2": partial(by.deepspeed, stage=2),
    "ZeRO-3": partial(by.deepspeed, stage=3),
    **{
        f"ZeRO-{stage} called as engine": partial(by.deepspeed, stage=stage, as_engine=True)
        for stage in (1, 2, 3)
    },
    "Accelerate's DDP": partial(by.accelerate, shards=False),
    "Accelerate's FSDP2": by.accelerate,
    f"Accelerate's FSDP2{TOGETHER}": partial(by.accelerate, together=True),
    "Fabric's DDP": partial(by.fabric, shards=False),
    "Fabric's ModelParallelStrategy": by.fabric,
}
CHECKPOINTED, TWO, FROZEN, BARE = "checkpointed", "two networks", "frozen", "no penalty"
"""Blocks recomputed; a generator too; D frozen in the generator's step; without R1, to compare."""
LENT = ("Accelerate's FSDP2", "Fabric's ModelParallelStrategy")
"""Networks that another library prepared."""


def cases() -> list[str]:
    """Whose code is tried: how the networks are prepared, variants."""
    ways = ["", f", {CHECKPOINTED}", f", {TWO}"]
    zero_ways = ["", f", {CHECKPOINTED}", f", {TWO}, {FROZEN}"]
    zero = [f"ZeRO-{stage}{way}" for stage in (1, 2, 3) for way in zero_ways]
    unpenalised = f", {TWO}, {BARE}"
    ends = (" called as engine", unpenalised)
    engines = [f"ZeRO-{stage}{end}" for stage in (1, 2, 3) for end in ends]
    replicated, sharded = [f"DDP{way}" for way in ways], [f"FSDP2{way}" for way in ways]
    by_hand = [f"FSDP2 kept gathered + reshard() by hand{way}" for way in ways]
    pytorch = ["DDP static_graph=True", f"DDP static_graph=True, {BARE}", f"FSDP2{unpenalised}"]
    pytorch += ["FSDP2 reshard_after_forward=False", "FSDP2 kept gathered", *by_hand]
    fabric = [f"ModelParallelStrategy{way}" for way in (*ways, unpenalised)]
    all_at_once = [f"{whose}, {TWO}, {CHECKPOINTED}" for whose in ("FSDP2", *LENT)]
    libraries = {
        "plain PyTorch": [*replicated, *sharded, *pytorch],
        "DeepSpeed": [*zero, f"ZeRO-3, {TWO}, {FROZEN}, {BARE}", *engines],
        "Accelerate": ["DDP", *sharded, *(f"FSDP2{way}{unpenalised}" for way in ("", TOGETHER))],
        "Fabric": ["DDP", *fabric],
        "FastGen's formula": ["FSDP2"],
        "dgan": [*replicated, "DDP static_graph=True", *sharded, *zero, *all_at_once],
    }
    return [f"{library}: {name}" for library, names in libraries.items() for name in names]


class Block(nn.Module):
    """Normalise, activate, convolve, beside a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, WIDTH)
        self.convolution = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution(F.silu(self.norm(x)))


class Network(nn.Module):
    """A first layer, blocks on `[N, WIDTH, 8, 8]`, a last layer."""

    def __init__(self, first: nn.Module, last: nn.Module, depth: int = 3) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x.tanh())


def build(count: int) -> list[nn.Module]:
    """A discriminator from images `[N, 3, 8, 8]` to logits `[N]`, and a generator of images."""
    torch.manual_seed(0)
    to_logits = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * 64, 1), nn.Flatten(0))
    discriminator = Network(nn.Conv2d(3, WIDTH, 3, padding=1), to_logits)
    from_latents = nn.Sequential(nn.Linear(LATENTS, WIDTH * 64), nn.Unflatten(1, (WIDTH, 8, 8)))
    generator = Network(from_latents, nn.Conv2d(WIDTH, 3, 3, padding=1))
    return [discriminator, generator][:count]


def batch(step: int) -> list[Tensor]:
    """Real images, fake ones for a discriminator without generator, latents."""
    generator = torch.Generator().manual_seed(step)
    shapes = ((3, 8, 8), (3, 8, 8), (LATENTS,))
    return [torch.randn(ROWS, *shape, generator=generator) for shape in shapes]


def train(
    players: list[by.Player], penalty: Any, device: torch.device, ranks: int, frozen: bool = False
) -> Iterator[Tensor]:
    """All weights after each step."""
    discriminator, *generators = players
    dtype = next(discriminator.network.parameters()).dtype
    for step in range(STEPS):
        mine = (x.chunk(ranks)[by.rank() % ranks] for x in batch(step))
        real, fake, latents = (x.to(device, dtype) for x in mine)
        for generator in generators:
            with torch.no_grad():
                fake = generator.network(latents)
        discriminator.clear()
        fake_logits = discriminator.network(fake)
        logits, r1 = penalty(discriminator.network, real)
        adversarial = F.softplus(fake_logits).mean() + F.softplus(-logits).mean()
        discriminator.update(adversarial + GAMMA * r1)
        for generator in generators:
            generator.clear()
            discriminator.network.requires_grad_(not frozen)
            generator.update(F.softplus(-discriminator.network(generator.network(latents))).mean())
            discriminator.network.requires_grad_(True)
        yield torch.cat([weight.flatten() for player in players for weight in player.weights()])


def try_here(case: str) -> dict[str, Any]:
    """One case, in one of its processes."""
    library, _, rest = case.partition(": ")
    base, *variants = rest.split(", ")
    prepare = PREPARATIONS.get(f"{library}'s {base}") or PREPARATIONS[base]
    reference = by.no_penalty if BARE in variants else by.double_backward
    penalty = PENALTIES.get(library, reference)
    options = {"checkpoint": True} if CHECKPOINTED in variants else {}
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    networks = [network.to(device) for network in build(2 if TWO in variants else 1)]
    references = by.one_process([copy.deepcopy(n).double() for n in networks], device)
    start = torch.cat([weight.flatten() for one in references for weight in one.weights()])
    wanted = list(train(references, reference, device, ranks=1))
    dtype = torch.float32 if "ZeRO" in case else torch.float64
    errors: list[float] = []
    row: dict[str, Any] = {"precision": str(dtype).removeprefix("torch."), "errors": errors}
    try:
        players = prepare([network.to(dtype) for network in networks], device, **options)
        row["outcome"] = "crash"
        history = train(players, penalty, device, RANKS, FROZEN in variants)
        for expected, found in zip(wanted, history):
            errors.append(((found - expected).norm() / (expected - start).norm()).item())
        exact = all(error < TOLERANCES[dtype] for error in errors)
        row["outcome"] = "exact" if exact else "inexact"
    except Exception as error:
        traceback.print_exc()
        first_line = " ".join(str(error).strip().partition("\n")[0].split())
        row["error"] = f"{type(error).__name__}: {first_line}"[:300]
        row["outcome"] = row.get("outcome", "refused")
    return row


def run(case: str, limit: int) -> dict[str, Any]:
    """One case in processes of its own."""
    row: dict[str, Any] = {"case": case}
    try:
        row["versions"] = {name: version(name) for name in packages_of(case)}
    except PackageNotFoundError as missing:
        return {**row, "outcome": f"not installed: pip install {missing.name}"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    environment = {"OMP_NUM_THREADS": "1", "DS_BUILD_OPS": "0", **os.environ}
    if torch.cuda.device_count() < RANKS:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, *launcher, __file__, "--case", case, "--results", folder],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its processes
            process.wait()
            return {**row, "outcome": "does not end"}
        results = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
    if not results:
        return {**row, "outcome": "crash", "error": output.strip().splitlines()[-1][:300]}
    return row | max(results, key=lambda result: "error" in result)


def packages_of(case: str) -> list[str]:
    return ["torch", *(package for key, package in PACKAGES.items() if key in case)]


def try_and_leave(case: str, folder: Path) -> None:
    """What a process of a case does: nothing may keep it from ending."""
    row = try_here(case)
    (folder / f"rank{by.rank()}.json").write_text(json.dumps(row))
    sys.stdout.flush()
    os._exit("error" in row)


def approximation(draws: int = 16) -> list[dict[str, Any]]:
    """The gradient of FastGen's formula beside the exact one, on the networks of quality.py."""
    rows = []
    for network, state in itertools.product(quality.NETWORKS, quality.STATES):
        found = quality.compare(network, state, batch=16, draws=draws, device="cpu")
        (row,) = (row for row in found if row["gradient"] == f"one-draw noise, σ {by.SIGMA:g}")
        case = f"FastGen's formula: {network}, {state}, median of {draws} draws, one process"
        made = {"case": case, "versions": {"torch": version("torch")}, "outcome": "inexact"}
        rows.append(made | {"errors": [row["relative_error"]], "cosine": row["cosine"]})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| case | versions | outcome | step 1 | step 3 | error |", "|---" * 6 + "|"]
    for row in rows:
        versions = ", ".join(f"{name} {found}" for name, found in row.get("versions", {}).items())
        errors = [f"{error:.1e}" for error in row.get("errors", [])]
        first, last = (errors[:1] or ["–"])[0], (errors[STEPS - 1 :] or ["–"])[0]
        error = f"cosine {row['cosine']:.2f}" if "cosine" in row else row.get("error", "")
        lines.append(
            f"| {row['case']} | {versions} | {row['outcome']} | {first} | {last} | {error} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="R1 in other libraries, and in dgan.")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", default=[""], help="cases with one of these in them")
    parser.add_argument("--timeout", type=int, default=240, help="seconds a case may take")
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    if options.case:
        try_and_leave(options.case, options.results)
    chosen = [case for case in cases() if any(name in case for name in options.only)]
    rows = []
    for case in chosen:
        rows.append(run(case, options.timeout))
        print(f"{case}: {rows[-1]['outcome']}", file=sys.stderr)
    if any(name in "FastGen's formula" for name in options.only):
        rows += approximation()
    print(table(rows))
    if options.out or options.only == [""]:
        notes = (__doc__ or "").partition("\n\n")[2]
        print(f"stored in {store('penalties-others', rows, notes=notes, out=options.out)}")


if __name__ == "__main__":
    main()
