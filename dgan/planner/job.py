"""The job that is planned: so many GPUs, such a batch."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe's pace on a cluster.

    Attributes:
        nodes, gpus_per_node: at least one.
        batch_size: real samples of an update, over all ranks.
        accumulation: micro-batches of an update.
        discriminator_updates, generator_updates: of a step.
        penalty_every: steps from one penalty to the next.
        bfloat16: whether networks compute in bfloat16; else in float32.
        penalty_method: as the recipe has it.
        bucket: elements of DeepSpeed's reduction bucket.

    Raises:
        ValueError: sizes that cannot be; the batch cannot be divided over the ranks.
    """

    nodes: int
    gpus_per_node: int
    batch_size: int
    accumulation: int = 1
    discriminator_updates: int = 1
    generator_updates: int = 1
    penalty_every: int = 1
    bfloat16: bool = True
    penalty_method: str = "auto"
    bucket: int = 500_000_000

    def __post_init__(self) -> None:
        for key in ("nodes", "gpus_per_node"):
            if getattr(self, key) < 1:
                flag = f"--{key.replace('_', '-')}"
                raise ValueError(f"{flag} is {getattr(self, key)}; it must be at least 1")
        parts = self.ranks * self.accumulation
        if self.batch_size % parts:
            below = self.batch_size - self.batch_size % parts
            fitting = f"{below} or {below + parts}" if below else f"{parts}"
            others = ""
            if self.batch_size % self.accumulation == 0:
                ranks = divisors(self.batch_size // self.accumulation)[-8:]
                others = f"; or take {', '.join(map(str, ranks))} ranks"
            raise ValueError(
                f"--train.batch_size {self.batch_size} cannot be divided over {self.ranks} ranks "
                f"with --train.accumulation {self.accumulation}: {fitting} can{others}"
            )

    @property
    def ranks(self) -> int:
        """GPUs, one a process."""
        return self.nodes * self.gpus_per_node

    @property
    def rows(self) -> int:
        """Real samples of a rank's micro-batch."""
        return self.batch_size // (self.ranks * self.accumulation)

    @property
    def compute_bytes(self) -> int:
        """Of a number as networks compute with it."""
        return 2 if self.bfloat16 else 4

    def of(self, nodes: int, gpus_per_node: int | None = None) -> "Job | None":
        """The same batch on another cluster; None if it cannot be divided."""
        try:
            return replace(self, nodes=nodes, gpus_per_node=gpus_per_node or self.gpus_per_node)
        except ValueError:
            return None


def divisors(number: int) -> list[int]:
    """Of a number, in order."""
    return [n for n in range(1, number + 1) if number % n == 0]
