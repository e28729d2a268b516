"""Two nodes as two network namespaces: their link is cut while they train."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import (
    Outcome,
    assert_same_checkpoint,
    checkpoint_of,
    end,
    metrics,
    steps_kept,
    wait_until,
    write_recipe,
)
from launched import alive, children, launched
from namespaces import Nodes, Unavailable

pytestmark = pytest.mark.cluster

STEPS = 200
PLAN = {
    "train__steps": STEPS,
    "checkpoint__every": 10,
    "checkpoint__keep": 100,
    "train__deterministic": True,
}


def train(nodes: Nodes, recipe: Path) -> list[subprocess.Popen[str]]:
    """The same line on both; what a node's name would tell, its address does."""
    return [
        launched(
            "torchrun.sh",
            "train",
            recipe,
            *("--run.stall_minutes", 0.1),
            within=nodes.within(index),
            NODES="2",
            RANKS="1",
            RESTARTS="0",
            MASTER_ADDR=nodes.addresses[0],
            PET_LOCAL_ADDR=nodes.addresses[index],
            PET_RDZV_CONF=f"is_host={1 - index}",
            GLOO_SOCKET_IFNAME=card,
        )
        for index, card in enumerate(nodes.cards)
    ]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    try:
        made = Nodes()
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield made
    made.remove()


def outcome_of(node: subprocess.Popen[str]) -> Outcome:
    """A launcher that waits for what is out of its reach is ended, as a scheduler would."""
    try:
        node.wait(20)
    except subprocess.TimeoutExpired:
        node.kill()
    return end(node)


def test_a_cut_link_ends_both_ranks_and_the_run_goes_on(
    nodes: Nodes, digits: str, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, "run", digits, **PLAN), tmp_path / "run"
    both = train(nodes, recipe)
    wait_until(lambda: checkpoint_of(run, 20).exists(), both[0])
    ranks = [worker for node in both for worker in children(node.pid)]
    assert len(ranks) >= 2
    nodes.link(1, "down")
    limit = time.monotonic() + 60
    while any(map(alive, ranks)):
        assert time.monotonic() < limit, "a rank waits for one that it cannot reach"
        time.sleep(0.1)
    outcomes = [outcome_of(node) for node in both]
    for rank, outcome in enumerate(outcomes):
        assert outcome.code != 0
        assert re.search(rf"dgan: error: rank {rank}, step \d+, phase '[a-z ]+'", outcome.err)
    assert steps_kept(run)[-1] < STEPS

    nodes.link(1, "up")
    both = train(nodes, recipe)
    outcomes = [end(node) for node in both]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert len(re.findall(r"going on from \S+step-\d+", outcomes[0].out + outcomes[1].out)) == 1

    whole = write_recipe(tmp_path, "whole", digits, **PLAN)
    assert end(launched("torchrun.sh", "train", whole)).code == 0
    assert_same_checkpoint(checkpoint_of(run, STEPS), checkpoint_of(tmp_path / "whole", STEPS))
    assert metrics(run) == metrics(tmp_path / "whole")
