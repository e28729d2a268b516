"""The typed tree of a recipe. No torch here.

Only the command line, the training loop and the recipes read this module; everything below them
is handed plain values.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from dgan.schedule import Cosine, constant


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a batch means to the players."""

    name: str = "synthesis"
    """`synthesis` (images from noise, with or without a class)."""
    loss: Literal["non_saturating", "hinge", "relativistic"] = "relativistic"


@dataclass(frozen=True, kw_only=True)
class Player:
    """A network and how it is optimised (Adam)."""

    network: str
    """A family (`dgan.networks.FAMILIES`) or an import path, `mypackage.models:MyNet`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network's constructor."""
    learning_rate: Cosine = field(default_factory=lambda: constant(2e-4))
    beta1: float = 0.0
    beta2: Cosine = field(default_factory=lambda: constant(0.99))
    epsilon: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """γ/2 · (‖∇D(real)‖² + ‖∇D(fake)‖²); γ = 0 leaves it out."""

    gamma: Cosine = field(default_factory=lambda: constant(1.0))
    every: int = 1
    """Steps between penalties, each then so many times as strong (lazy regularisation)."""
    method: Literal["auto", "double", "forward", "difference"] = "auto"
    """How it is differentiated; all are exact but `difference`, see `dgan.gradient_penalty`."""
    keep_unsharded: bool = False
    """fsdp: keep weights gathered between the passes of `forward`: fewer gathers, more memory."""
    check: bool = True
    """Before the first step, compare its gradient with a finite difference; see `check_penalty`."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """Exponential moving average of the generator's weights."""

    half_life_kimg: Cosine = field(default_factory=lambda: constant(10.0))


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the images come from and what they are."""

    shards: str | tuple[str, ...]
    """WebDataset tars: a path, a glob or a brace pattern such as `data/{000000..000099}.tar`, also
    of `https://` and `s3://` addresses; or several of these."""
    resolution: int
    channels: int = 3
    classes: int = 0
    """0: unconditional. Otherwise labels are 0 … classes − 1 and both players see them."""
    weights: tuple[float, ...] = ()
    """Of each entry of `shards`, which are then data sets that are mixed in this proportion; none:
    all of them are one data set. Scores compare with all samples of all of them, whatever these."""
    flip: bool = False
    """Mirror half of the images, chosen by (seed, position in the data)."""
    crop: Literal["none", "centre", "random", "window"] = "none"
    """Of images of another size: the largest square, from the centre or anywhere, resized to
    `resolution`; or a window of just that many pixels. Drawn by (seed, position) like `flip`;
    evaluation takes the centre. `none` refuses them."""
    workers: int = 1
    """Decoding threads of each rank; 0 decodes in the training thread."""
    cache: str = ""
    """Folder for what comes over the network. Empty: `$DGAN_CACHE`, else in the user's cache."""
    cache_gigabytes: float = 50.0
    """How large that folder may grow; 0 keeps nothing and asks the server for each sample."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """The length and shape of the run."""

    steps: int
    batch_size: int
    """Images of one update over all ranks together."""
    accumulation: int = 1
    """Micro-batches an update is computed in; the result is that of one batch."""
    discriminator_updates: int = 1
    generator_updates: int = 1
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """`auto`: bfloat16 autocast where the device has it, float32 elsewhere."""
    deterministic: bool = False
    """Only kernels that repeat bit for bit; some operations become slower."""
    kernels: bool = True
    """Fused kernels on a GPU; False computes the same in plain PyTorch, for comparison."""
    log_every: int = 10


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How the networks are spread over ranks."""

    strategy: Literal["single", "ddp", "fsdp", "deepspeed"] = "fsdp"
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""
    offload: bool = False
    """fsdp, deepspeed: keep the optimizer (with fsdp and ZeRO-3 also weights) on the CPU."""
    reshard_after_forward: bool = True
    """fsdp: free a block's gathered weights between its forward and its backward pass."""
    reshard_within: int = 0
    """fsdp: keep them spread over so many ranks of a node instead of over all; 0: all."""
    copies: int = 1
    """fsdp: copies of the networks, each sharded over its part of the ranks (HSDP)."""
    zero_stage: Literal[1, 2, 3] = 3
    """deepspeed: 1 spreads the optimizer's state over ranks, 2 gradients too, 3 weights too."""
    deepspeed_config: str = ""
    """deepspeed: a JSON file merged over the configuration that `dgan deepspeed` prints."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is kept of a run, to go on from."""

    every: int = 1000
    keep: int = 3
    """How many of the newest are kept."""
    keep_best: int = 1
    """And of those with the lowest FID, where `evaluation.every` meets `every`; GANs may get worse
    again. `--step best` of `dgan sample`, `evaluate` and `export` takes the best that is kept."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Grids of samples from latents that stay the same through the run."""

    every: int = 500
    count: int = 64


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of the averaged generator while it trains."""

    every: int = 0
    """Steps between evaluations; 0 evaluates at the first and the last step only, −1 never."""
    samples: int = 10_000
    features: str = "auto"
    """`auto` (a classifier trained on the shards' labels), a TorchScript file,
    or `inception:WEIGHTS` (torch-fidelity's, from a file)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where the run writes."""

    dir: str = ""
    """Empty: `runs/<name>`. A directory that holds a run of the same recipe is resumed."""
    fresh: bool = False
    """Start anew; refuses a directory that already holds a run."""
    wandb: str = ""
    """Project of Weights & Biases that gets the curves too (extra `wandb`)."""
    stall_minutes: float = 30.0
    """A rank on which nothing moves for so long says where it stands and ends; 0: it waits."""
    start_minutes: float = 60.0
    """The same until the first step is done, where data is indexed and kernels are compiled."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run depends on."""

    name: str
    data: Data
    generator: Player
    discriminator: Player
    train: Train
    task: Task = Task()
    penalty: Penalty = Penalty()
    average: Average = Average()
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    samples: Samples = Samples()
    evaluation: Evaluation = Evaluation()
    run: Run = Run()

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return Path(self.run.dir or f"runs/{self.name}")


def validate(recipe: Recipe) -> None:
    """Raise `ValueError` for values that no run can have."""
    least = {
        "train.steps": (recipe.train.steps, 1),
        "train.batch_size": (recipe.train.batch_size, 1),
        "train.accumulation": (recipe.train.accumulation, 1),
        "train.discriminator_updates": (recipe.train.discriminator_updates, 1),
        "train.generator_updates": (recipe.train.generator_updates, 1),
        "train.log_every": (recipe.train.log_every, 1),
        "penalty.every": (recipe.penalty.every, 1),
        "train.seed": (recipe.train.seed, 0),
        "data.resolution": (recipe.data.resolution, 1),
        "data.classes": (recipe.data.classes, 0),
        "data.workers": (recipe.data.workers, 0),
        "data.cache_gigabytes": (recipe.data.cache_gigabytes, 0),
        "parallel.copies": (recipe.parallel.copies, 1),
        "parallel.reshard_within": (recipe.parallel.reshard_within, 0),
        "checkpoint.every": (recipe.checkpoint.every, 1),
        "checkpoint.keep": (recipe.checkpoint.keep, 1),
        "checkpoint.keep_best": (recipe.checkpoint.keep_best, 0),
        "samples.every": (recipe.samples.every, 1),
        "samples.count": (recipe.samples.count, 1),
        "evaluation.every": (recipe.evaluation.every, -1),
        "evaluation.samples": (recipe.evaluation.samples, 2),
        "run.stall_minutes": (recipe.run.stall_minutes, 0),
        "run.start_minutes": (recipe.run.start_minutes, 0),
    }
    for key, (value, minimum) in least.items():
        if value < minimum:
            raise ValueError(f"--{key} is {value}; it must be at least {minimum}")
    _check_parallel(recipe.parallel)
    _check_weights(recipe.data)
    if recipe.data.channels not in (1, 3):
        raise ValueError(f"--data.channels is {recipe.data.channels}; it must be 1 or 3")


OF_STRATEGY = {
    "offload": ("fsdp", "deepspeed"),
    "reshard_after_forward": ("fsdp",),
    "reshard_within": ("fsdp",),
    "copies": ("fsdp",),
    "zero_stage": ("deepspeed",),
    "deepspeed_config": ("deepspeed",),
}
"""Which strategies an option of `Parallel` is for; the others would ignore it."""


def _check_parallel(parallel: Parallel) -> None:
    for key, strategies in OF_STRATEGY.items():
        value = getattr(parallel, key)
        if value != getattr(Parallel(), key) and parallel.strategy not in strategies:
            raise ValueError(
                f"--parallel.{key} {value} means nothing under --parallel.strategy "
                f"{parallel.strategy}: it is for {' and '.join(strategies)}"
            )


def _check_weights(data: Data) -> None:
    if not data.weights:
        return
    given = " ".join(map(str, data.weights))
    if not all(math.isfinite(weight) and weight > 0 for weight in data.weights):
        raise ValueError(f"--data.weights is {given}; all of them must be positive numbers")
    sets = 1 if isinstance(data.shards, str) else len(data.shards)
    if len(data.weights) != sets:
        raise ValueError(
            f"--data.weights is {given}, but --data.shards has {sets} entries: each entry is a "
            "data set that needs one weight (a pattern such as 'x-*.tar' is one entry, in quotes)"
        )


def switches() -> set[str]:
    """The flags, `--section.key`, of what is true or false."""
    return {
        f"--{section}.{key}"
        for section, kind in get_type_hints(Recipe).items()
        if dataclasses.is_dataclass(kind)
        for key, value_type in get_type_hints(kind).items()
        if value_type is bool
    }


def nearest(word: str, choices: list[str]) -> str:
    """A hint that names the choice that was probably meant, or all of them."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(sorted(choices))}"
