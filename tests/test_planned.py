"""`dgan plan`: what it says, of networks so small that it can be added up by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from captions import EMBEDDED
from clips import AUDIO
from commands import dgan
from films import FILM
from pairs import PAIRED, UNPAIRED
from texts import TEXT
from tiny import tiny

from dgan.build_networks import build_network
from dgan.config import Recipe
from dgan.networks import Role
from dgan.planned import plan
from dgan.planner import Footprint, Plan, hardware, merged
from dgan.schedule import constant

POINTS: dict[str, Any] = {
    "generator__network": "points", "generator__options": {"widths": (8,)},
    "discriminator__network": "points", "discriminator__options": {"widths": (8, 8)},
    "data__kind": "points", "data__classes": 0, "data__flip": False,
}  # fmt: skip
WIDTH, DEPTH, PATCH = 8, 2, 4
TOKENS = (8 // PATCH) ** 2


def recipe(**changes: Any) -> Recipe:
    return tiny("", "", "transformer", train__batch_size=576, **changes)


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(recipe(penalty__every=4), nodes=8, gpus_per_node=8, gpu="h100")


@pytest.fixture(scope="module")
def unpenalised() -> Plan:
    """On GPUs that are too small for anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hardware.GPUS, "small", replace(hardware.GPUS["h100"], memory=2**31))
        without = recipe(penalty__gamma=constant(0.0))
        return plan(without, nodes=8, gpus_per_node=8, gpu="small")


def kept(plan: Plan) -> dict[str, Footprint]:
    return {
        row.footprint.strategy: row.footprint
        for row in plan.rows
        if not row.footprint.checkpointing
    }


def shapes(role: Any) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in build_network(recipe(), role).parameters()]


def count(role: Any, shards: int = 1) -> int:
    return sum(math.ceil(shape[0] / shards) * math.prod(shape[1:]) for shape in shapes(role))


def test_parameters_and_flops_are_those_of_the_formulas(planned: Plan) -> None:
    for role in ("generator", "discriminator"):
        assert planned.parameters[role] == count(role)
    # Multiplications and additions: qkv, output and MLP are 12 w² a token, attention 2 T w.
    block = 2 * TOKENS * (12 * WIDTH**2 + 2 * TOKENS * WIDTH)
    patches = 2 * TOKENS * PATCH**2 * WIDTH
    assert planned.forward_flops["discriminator"] == DEPTH * block + patches + 2 * WIDTH


def test_what_is_held_of_weights_is_that_of_the_formulas(planned: Plan) -> None:
    whole, found = count("generator") + count("discriminator"), kept(planned)
    copies, sharded = found["ddp"].memory, found["fsdp"].memory
    assert copies["weights"] == copies["buckets"] == 4 * whole
    # Adam's two moments, and the scalar in which it counts its steps for each parameter.
    scalars = 4 * (len(shapes("generator")) + len(shapes("discriminator")))
    assert copies["optimizer"] == 8 * whole + scalars
    assert copies["average"] == 4 * count("generator")
    assert sharded["weights"] == pytest.approx(
        4 * (count("generator", 64) + count("discriminator", 64))
    )
    assert found["deepspeed 3"].memory["optimizer"] == pytest.approx(8 * whole / 64)


def test_what_is_sent_is_that_of_the_formulas(planned: Plan) -> None:
    found, whole = kept(planned), count("generator") + count("discriminator")
    padded = {role: 64 * count(role, 64) for role in ("generator", "discriminator")}
    sent = {
        name: {(each.collective, each.ranks): each for each in merged(footprint.traffic)}
        for name, footprint in found.items()
    }
    gradients = sent["ddp"]["all_reduce", 64]
    metrics = sent["fsdp"]["all_reduce", 64].whole
    assert gradients.whole - metrics == 4 * whole
    assert gradients.sent == pytest.approx(2 * 63 / 64 * gradients.whole)
    reduced = sent["fsdp"]["reduce_scatter", 64]
    assert reduced.whole == pytest.approx(4 * sum(padded.values()))
    # In bfloat16, each pass gathers all. The generator makes samples once and learns once: 1 + 2.
    # The discriminator judges both halves and learns, 2; with a penalty, in a step of four, it
    # is differentiated before, 2 more. It judges what the generator learns from, 2, and, for a
    # relativistic loss, real samples, 1.
    passes = {"generator": 3, "discriminator": 2 + 2 / 4 + 3}
    gathered = 2 * sum(passes[role] * size for role, size in padded.items())
    # Of what is filled up to 64 rows, a mean over both networks is taken.
    assert sent["fsdp"]["all_gather", 64].whole == pytest.approx(gathered, rel=0.05)
    copies = sent["fsdp, 8 copies"]
    assert copies["all_gather", 8].across is False
    assert copies["all_reduce", 8].whole == pytest.approx(
        4 * (count("generator", 8) + count("discriminator", 8))
    )


def test_a_penalty_costs_memory_and_flops(planned: Plan, unpenalised: Plan) -> None:
    without, lazy = kept(unpenalised), kept(planned)
    for strategy in ("ddp", "fsdp", "deepspeed 2"):
        assert (lazy[strategy].penalty or 0) > 0 == without[strategy].penalty
        assert lazy[strategy].peak > without[strategy].peak
        assert lazy[strategy].flops > without[strategy].flops


def test_more_samples_on_a_gpu_are_as_if_they_had_been_rehearsed(planned: Plan) -> None:
    # Nine samples on each of 64 were: here all are on one.
    on_one = plan(recipe(penalty__every=4), nodes=1, gpus_per_node=1, gpu="h100")
    rows = [row.footprint for row in planned.rows if row.footprint.strategy == "single"]
    assert [row.footprint.strategy for row in on_one.rows] == ["single", "single"]
    assert on_one.best is not None
    for scaled, row in zip(rows, on_one.rows, strict=True):
        assert scaled.peak == pytest.approx(row.footprint.peak, rel=0.02)
        assert scaled.flops == pytest.approx(row.footprint.flops, rel=0.02)


def test_recomputed_blocks_need_less_memory_and_more_flops(planned: Plan) -> None:
    found = {(r.footprint.strategy, r.footprint.checkpointing): r.footprint for r in planned.rows}
    assert found["fsdp", True].memory["activations"] < found["fsdp", False].memory["activations"]
    assert found["fsdp", True].flops > found["fsdp", False].flops


def test_the_cheapest_that_fits_is_marked(planned: Plan) -> None:
    assert planned.best is not None
    assert planned.rows[planned.best].fits
    best = planned.rows[planned.best]
    fastest = min(sum(row.seconds) for row in planned.rows if row.footprint.ranks == 64)
    assert best.footprint.ranks == 64
    assert sum(best.seconds) <= 1.03 * fastest
    assert [nodes for nodes, _ in planned.scaling] == [1, 2, 4, 8]  # 576 is no multiple of 128
    assert planned.warnings == sorted(planned.warnings, key=len, reverse=True)


def test_that_nothing_fits_is_said_first(unpenalised: Plan) -> None:
    assert unpenalised.best is None
    assert unpenalised.scaling == []
    assert not any(row.fits for row in unpenalised.rows)
    assert "nothing fits" in unpenalised.warnings[0]


def test_the_command_prints_tables_and_writes_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "plans" / "plan.json"
    outcome = dgan(
        capsys, "plan", "digits", "--nodes", 1, "--gpus-per-node=2", "--gpu", "l40s",
        "--json", path, "--train.batch_size", 32,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "generator      66,864 parameters" in outcome.out
    assert "32 samples an update, 16 on each GPU" in outcome.out
    for word in (
        "ddp",
        "fsdp",
        "deepspeed 2",
        "single",
        "recomputed",
        "→",
        "all_gather",
        "assumed:",
    ):
        assert word in outcome.out, word
    written = json.loads(path.read_text())
    (best,) = (each for each in written["strategies"] if each["cheapest_that_fits"])
    assert best["fits"]
    assert written["rows_per_rank"] == 16


@pytest.mark.parametrize(
    "changes",
    [PAIRED, UNPAIRED, AUDIO, TEXT, FILM, EMBEDDED, POINTS],
    ids=["pairs", "unpaired", "audio", "text", "video", "captions", "points"],
)
def test_any_task_and_kind_of_data_is_planned(changes: dict[str, Any]) -> None:
    changed = tiny("ring", "", **changes)
    found = plan(changed, nodes=1, gpus_per_node=2, gpu="h100")
    roles: tuple[Role, Role] = ("generator", "discriminator")
    for role in roles:
        sizes = [p.numel() for p in build_network(changed, role).parameters()]
        assert found.parameters[role] == sum(sizes)
        assert found.forward_flops[role] >= 2 * max(sizes)  # each weight meets a sample
    sent = {
        name: {each.collective: each.whole for each in merged(footprint.traffic)}
        for name, footprint in kept(found).items()
    }
    gradients = sent["ddp"]["all_reduce"] - sent["fsdp"]["all_reduce"]
    assert gradients == 4 * sum(found.parameters.values())
    taken = changed.penalty.gamma.start > 0
    assert (kept(found)["ddp"].penalty != 0) == taken


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gpu", "h1000"), ("--gpu 'h1000'", "did you mean 'h100'", "l40s")),
        (("--nodes", "0"), ("--nodes is 0", "at least 1")),
        (("--nodes", "two"), ("--nodes is 'two'", "whole number")),
        (("--nodes", "3"), ("--train.batch_size 64", "24 ranks", "48 or 72", "1, 2, 4, 8, 16")),
        (("--nodes", "16"), ("--train.batch_size 64", "128 can")),
        (("--train.accumulation", "3"), ("--train.accumulation 3: 48 or 72 can\n",)),
        (("--json",), ("--json needs a value",)),
        (("--train.precision", "float64"), ("--train.precision float64",)),
    ],
)
def test_what_cannot_be_planned_is_named(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    message = dgan(capsys, "plan", "digits", *arguments).error() + "\n"
    for word in words:
        assert word in message
