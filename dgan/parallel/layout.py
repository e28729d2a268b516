"""How a run is spread over its ranks: the plain values that a recipe hands down."""

from dataclasses import dataclass, field
from typing import Any

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dgan.parallel.world import World

STRATEGIES = ("single", "ddp", "fsdp", "deepspeed")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One strategy with its options.

    Attributes:
        strategy: one of `STRATEGIES`.
        activation_checkpointing: compute blocks again in the backward pass.
        compile: compile blocks; not of deepspeed.
        reshard_after_forward: of FSDP2; False keeps weights gathered until the backward pass, a
            number keeps them spread over so many ranks.
        copies: of FSDP2; so many copies of the network, each sharded over its part of the ranks.
        offload: of FSDP2; weights, gradients and optimizer on the CPU.
        deepspeed: DeepSpeed's configuration, as `deepspeed_configuration` makes it.
    """

    strategy: str
    activation_checkpointing: bool = False
    compile: bool = False
    reshard_after_forward: bool | int = True
    copies: int = 1
    offload: bool = False
    deepspeed: dict[str, Any] = field(default_factory=dict)

    def check(self, world: World) -> None:
        """Raise `ValueError` if `world` cannot be laid out so."""
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"--parallel.strategy {self.strategy!r}: choose from {', '.join(STRATEGIES)}"
            )
        if self.strategy == "single" and world.size > 1:
            raise ValueError(
                f"--parallel.strategy single runs in one process, but {world.size} were started: "
                "choose ddp, fsdp or deepspeed"
            )
        if world.size % self.copies:
            raise ValueError(
                f"--parallel.copies {self.copies}: {world.size} ranks cannot be divided into so "
                "many equal parts"
            )
        part, within = world.size // self.copies, self.reshard_after_forward
        if not isinstance(within, bool) and (part % within or within < 2 or within == part):
            raise ValueError(
                f"--parallel.reshard_within {within} must divide the {part} ranks that share a "
                "copy, and be neither 1 nor all of them"
            )

    def mesh(self, world: World) -> DeviceMesh:
        """Over which FSDP2 shards."""
        if self.copies == 1:
            return world.mesh
        shape = (self.copies, world.size // self.copies)
        return init_device_mesh(world.device.type, shape, mesh_dim_names=("copies", "shards"))
