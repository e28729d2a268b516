"""How networks are spread over processes; the training loop does not change with it."""

from dgan.parallel.fsdp import reshard, shard
from dgan.parallel.recompute import recompute

__all__ = ["recompute", "reshard", "shard"]
