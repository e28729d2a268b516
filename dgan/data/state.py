"""What a stream's state holds, and which streams can go on from it."""

from __future__ import annotations

from typing import Any

from .dataset import ShardDataset
from .mixture import Mixture, Parts
from .order import Order

VERSION = 2  # 1: other windows of the order, and no mixtures


def state_of(dataset: ShardDataset, order: Order | Mixture, position: int) -> dict[str, Any]:
    """All that tells what comes after `position`; a few hundred bytes as JSON, always."""
    return {
        "version": VERSION,
        "seed": order.seed,
        "position": position,
        "num_samples": len(dataset),
        "fingerprint": dataset.table.fingerprint,
        "parts": Parts.of(order.parts),
    }


def check_state(state: dict[str, Any], dataset: ShardDataset, order: Order | Mixture) -> None:
    """Checks that `dataset` in `order`, but for its seed, can go on from `state`.

    Raises:
        ValueError: if the state is of other data or other weights, or of a version that is not
            known.
    """
    if state.get("version") != VERSION:
        raise ValueError(
            f"the stream's state has version {state.get('version')!r}, and {VERSION} is known: "
            "samples now come in another order. Go on with the dgan that wrote it, or start a new "
            "run"
        )
    table = dataset.table
    if state["fingerprint"] != table.fingerprint:
        raise ValueError(
            f"the state was taken on other shards: {state['num_samples']} samples, fingerprint "
            f"{state['fingerprint']}; {table} has {len(dataset)} samples, fingerprint "
            f"{table.fingerprint}. Open the same shards, or start a new run"
        )
    stored, here = state["parts"], Parts.of(order.parts)
    # Once, all of them were stored: a kilobyte of 40.
    taken = Parts(*stored) if isinstance(stored[0], str) else Parts.of(stored)
    if taken != here:
        raise ValueError(
            f"the state was taken on {taken.words}, and this is {here.words}: take the same "
            "`weights` and entries of `shards`, or start a new run"
        )
