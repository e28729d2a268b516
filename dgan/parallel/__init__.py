"""How networks are spread over processes; the training loop does not change with it."""

from dgan.parallel.fsdp import shard

__all__ = ["shard"]
