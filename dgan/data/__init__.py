"""Data: shards are packed, indexed and streamed; nothing here knows of distributed training."""

from .dataset import ShardDataset
from .packing import pack_source
from .shards import expand
from .stream import ShardStream

__all__ = ["ShardDataset", "ShardStream", "expand", "pack_source"]
