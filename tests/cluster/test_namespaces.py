"""Two nodes as two network namespaces: their link is cut while they train."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
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

pytestmark = pytest.mark.cluster

STEPS = 200
PLAN = {
    "train__steps": STEPS,
    "checkpoint__every": 10,
    "checkpoint__keep": 100,
    "train__deterministic": True,
}


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Nodes:
    """Two namespaces, joined by a pair of virtual network cards."""

    def __init__(self) -> None:
        self.names = [f"dgan{os.getpid()}n{node}" for node in (1, 2)]
        self.cards = [f"dg{os.getpid()}v{node}" for node in (1, 2)]

    def add(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.cards[0], "type", "veth", "peer", "name", self.cards[1])
        for index, (name, card) in enumerate(zip(self.names, self.cards)):
            ip("link", "set", card, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{index + 1}/24", "dev", card)
            ip("-n", name, "link", "set", "lo", "up")
            self.link(index, "up")

    def remove(self) -> None:
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                for process in ip("netns", "pids", name).split():
                    os.kill(int(process), signal.SIGKILL)
                ip("netns", "del", name)

    def link(self, index: int, state: str) -> None:
        """The cable, pulled or put back."""
        ip("-n", self.names[index], "link", "set", self.cards[index], state)

    def train(self, recipe: Path) -> list[subprocess.Popen[str]]:
        """The same line on both; what a node's name would tell, its address does."""
        return [
            launched(
                "torchrun.sh",
                "train",
                recipe,
                *("--run.stall_minutes", 0.1),
                within=("ip", "netns", "exec", name),
                NODES="2",
                RANKS="1",
                RESTARTS="0",
                MASTER_ADDR="10.77.0.1",
                PET_LOCAL_ADDR=f"10.77.0.{index + 1}",
                PET_RDZV_CONF=f"is_host={1 - index}",
                GLOO_SOCKET_IFNAME=card,
            )
            for index, (name, card) in enumerate(zip(self.names, self.cards))
        ]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if shutil.which("ip") is None:
        pytest.skip("`ip` (iproute2) is not installed")
    made = Nodes()
    try:
        made.add()
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"network namespaces need root: {error.stderr.strip()}")
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
    both = nodes.train(recipe)
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
    both = nodes.train(recipe)
    outcomes = [end(node) for node in both]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert len(re.findall(r"going on from \S+step-\d+", outcomes[0].out + outcomes[1].out)) == 1

    whole = write_recipe(tmp_path, "whole", digits, **PLAN)
    assert end(launched("torchrun.sh", "train", whole)).code == 0
    assert_same_checkpoint(checkpoint_of(run, STEPS), checkpoint_of(tmp_path / "whole", STEPS))
    assert metrics(run) == metrics(tmp_path / "whole")
