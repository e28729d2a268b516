"""The typed tree of a recipe, and its form on disk (TOML). No torch here.

Only the command line, the training loop and the recipes read this module; everything below them
is handed plain values.
"""

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli_w

from dgan.schedule import Cosine, constant

FORMAT = 1
"""Version of the recipe's form on disk; raised when an old file can no longer be read as it is."""


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
    """A family (`r3gan`, `dcgan`, `mlp`) or an import path, `mypackage.models:MyNet`."""
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
    method: Literal["auto", "double", "forward", "difference"] = "auto"
    """How it is differentiated; all are exact but `difference`, see `dgan.gradient_penalty`."""
    check: bool = True
    """Before the first step, compare its gradient with a finite difference; see `check_penalty`."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """Exponential moving average of the generator's weights."""

    half_life_kimg: Cosine = field(default_factory=lambda: constant(10.0))


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the images come from and what they are."""

    shards: str
    """WebDataset tars: a path, a glob or a brace pattern such as `data/{000000..000099}.tar`."""
    resolution: int
    channels: int = 3
    classes: int = 0
    """0: unconditional. Otherwise labels are 0 … classes − 1 and both players see them."""
    flip: bool = False
    """Mirror half of the images, chosen by (seed, position in the data)."""
    workers: int = 1
    """Decoding threads of each rank; 0 decodes in the training thread."""


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
    log_every: int = 10


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How the networks are spread over ranks."""

    strategy: Literal["single", "ddp", "fsdp"] = "fsdp"
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is kept of a run, to go on from."""

    every: int = 1000
    keep: int = 3


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


MAY_CHANGE = ("run", "parallel", "checkpoint", "samples", "evaluation")
MAY_CHANGE_TOO = ("penalty.check", "train.steps", "train.log_every", "data.shards", "data.workers")
"""What a resumed run may set anew: none of it alters the weights that the recipe trains towards."""


def validate(recipe: Recipe) -> None:
    """Raise `ValueError` for values that no run can have."""
    least = {
        "train.steps": (recipe.train.steps, 1),
        "train.batch_size": (recipe.train.batch_size, 1),
        "train.accumulation": (recipe.train.accumulation, 1),
        "train.discriminator_updates": (recipe.train.discriminator_updates, 1),
        "train.generator_updates": (recipe.train.generator_updates, 1),
        "train.log_every": (recipe.train.log_every, 1),
        "train.seed": (recipe.train.seed, 0),
        "data.resolution": (recipe.data.resolution, 1),
        "data.classes": (recipe.data.classes, 0),
        "data.workers": (recipe.data.workers, 0),
        "checkpoint.every": (recipe.checkpoint.every, 1),
        "checkpoint.keep": (recipe.checkpoint.keep, 1),
        "samples.every": (recipe.samples.every, 1),
        "samples.count": (recipe.samples.count, 1),
        "evaluation.every": (recipe.evaluation.every, -1),
        "evaluation.samples": (recipe.evaluation.samples, 2),
    }
    for key, (value, minimum) in least.items():
        if value < minimum:
            raise ValueError(f"--{key} is {value}; it must be at least {minimum}")
    if recipe.data.channels not in (1, 3):
        raise ValueError(f"--data.channels is {recipe.data.channels}; it must be 1 or 3")


def switches() -> set[str]:
    """The flags, `--section.key`, of what is true or false."""
    return {
        f"--{section}.{key}"
        for section, kind in get_type_hints(Recipe).items()
        if dataclasses.is_dataclass(kind)
        for key, value_type in get_type_hints(kind).items()
        if value_type is bool
    }


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, with the version of its form."""
    return tomli_w.dumps({"format": FORMAT, **dataclasses.asdict(recipe)})


def from_toml(path: Path) -> Recipe:
    """Read a recipe that `to_toml` wrote, perhaps edited by hand.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not TOML, another format, an unknown key or a value of the wrong type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    try:
        tree = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    version = tree.pop("format", None)
    if version != FORMAT:
        raise ValueError(
            f"{path} has recipe format {version}, this dgan reads format {FORMAT}: use the dgan "
            "that wrote it, or start from a recipe of this version (`dgan recipes`)"
        )
    return _build(Recipe, tree, str(path), "")


def differences(a: Recipe, b: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ, of those a resumed run may not change."""
    flat_a, flat_b = _flatten(dataclasses.asdict(a)), _flatten(dataclasses.asdict(b))
    keys = sorted(key for key in flat_a | flat_b if flat_a.get(key) != flat_b.get(key))
    return [k for k in keys if k.split(".")[0] not in MAY_CHANGE and k not in MAY_CHANGE_TOO]


def nearest(word: str, choices: list[str]) -> str:
    """A hint that names the choice that was probably meant, or all of them."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(sorted(choices))}"


def _build(kind: Any, value: Any, path: str, key: str) -> Any:
    """Turn TOML's `value` into `kind`, or say which key of which file does not fit."""
    where = f"{path}: {key or 'the recipe'}"
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a table, not {value!r}")
        hints = get_type_hints(kind)
        for name in value:
            if name not in hints:
                raise ValueError(
                    f"{path}: unknown key {_join(key, name)!r}; {nearest(name, list(hints))}"
                )
        known = {n: _build(hints[n], v, path, _join(key, n)) for n, v in value.items()}
        required = [
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if missing := [_join(key, name) for name in required if name not in known]:
            raise ValueError(f"{path}: missing {', '.join(missing)}")
        return kind(**known)  # type: ignore[reportCallIssue]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{where} is {value!r}; choose from {', '.join(get_args(kind))}")
        return value
    if get_origin(kind) is dict and isinstance(value, dict):
        return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} is {value!r}; it must be of type {kind.__name__}")
    return value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = _join(prefix, name)
        flat |= _flatten(value, key) if isinstance(value, dict) else {key: value}
    return flat
