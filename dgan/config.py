"""The typed tree of a recipe. No torch here.

Only the command line, the training loop and the recipes read this module; everything below them
is handed plain values.
"""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from dgan.config_game import (
    Augment,
    Balance,
    Judges,
    Penalty,
    Regularizers,
    Task,
    Translation,
)
from dgan.schedule import Cosine, constant


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
    spectral: bool = False
    """Divide every weight by its spectral norm; some families do so by themselves."""
    orthogonal: float = 0.0
    """Weight of orthogonal regularisation: filters of a layer at right angles."""
    historical: float = 0.0
    """Weight of historical averaging: the squared distance to the mean of all past weights."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """Moving average of the generator's weights."""

    half_life_kimg: Cosine = field(default_factory=lambda: constant(10.0))
    ramp: float = 0.0
    """Above 0: the half-life is at most so many times the images seen so far."""
    width: float = 0.0
    """Above 0: a power function average of this width, relative to the run so far, instead."""


Kind = Literal[
    "images", "stacked", "latents", "video", "audio", "text", "points", "pairs", "unpaired"
]
"""Of data."""
TRANSLATED = ("pairs", "unpaired")
"""Kinds whose generators take images."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the images come from and what they are."""

    shards: str | tuple[str, ...]
    """WebDataset tars: a path, a glob or a brace pattern such as `data/{000000..000099}.tar`, also
    of `https://`, `s3://` and `gs://` addresses; or several of these. Commands (`pipe:`) are
    never run."""
    kind: Kind = "images"
    """`stacked`: three grey images become the channels of one, such as Stacked MNIST. `latents`:
    the `.npy` of each sample, floating `[channels, resolution, resolution]`. `audio`: the `.wav` or
    `.flac` of each, `resolution` samples of each of its `channels`. `text`: the
    `.txt` of each, `resolution` characters of the `alphabet`, whose number is `channels`. `points`:
    of the toy that `shards` names, `ring`, `grid` or `swissroll`. `pairs`: images `a` and `b` of
    each sample, cropped and mirrored alike. `unpaired`: images of two entries of `shards`, or the
    halves of one of pairs, each half shuffled by itself. `video`: `frames` of each clip, which is a
    strip of square frames side by side, or an `.npy`, uint8 `[frames, channels, height, width]`;
    frames are resized to `resolution`."""
    source: Literal["a", "b"] = "a"
    """pairs: which of them the generator is given, to make the other."""
    resolution: int = 1
    channels: int = 3
    frames: int = 0
    """video: frames of a clip that are shown, from a place that is drawn by (seed, position);
    evaluation takes places that are evenly spread."""
    frame_stride: int = 1
    """video: the distance from one of them to the next."""
    classes: int = 0
    """0: unconditional. Otherwise labels are 0 … classes − 1 and both players see them."""
    embedding: int = 0
    """images: above 0, both players are given a vector of this size in the place of a label: the
    `.npy` beside each image, or of its caption what `encoder` makes."""
    encoder: str = ""
    """The import path of a frozen encoder, `mypackage.encoders:encode`: a list of the captions, the
    `.txt` beside images, → their embeddings `[N, embedding]`. Called once a batch, no gradients."""
    weights: tuple[float, ...] = ()
    """Of each entry of `shards`, which are then data sets that are mixed in this proportion; none:
    all of them are one data set. Scores compare with all samples of all of them, whatever these."""
    flip: bool = False
    """Mirror half of the images, chosen by (seed, position in the data)."""
    crop: Literal["none", "centre", "random", "window"] = "none"
    """Of images of another size: the largest square, from the centre or anywhere, resized to
    `resolution`; or a window of just that many pixels. Drawn by (seed, position) like `flip`;
    evaluation takes the centre. `none` refuses them. Audio: `centre` or `window` cuts longer clips,
    and puts shorter ones into silence; of text they take a part."""
    resize: int = 0
    """Above 0, of crop `random`: the shorter side is first resized to this many pixels, and
    `resolution` of them are cut from anywhere (pix2pix: 286 for 256); evaluation cuts nothing."""
    alphabet: str = ""
    """text: all characters, each once."""
    rate: int = 0
    """audio: samples a second; a clip of another rate is an error."""
    peak: float = 0.0
    """audio: above 0, each clip is scaled so that its largest magnitude is this."""
    workers: int = 1
    """Decoding threads of each rank; 0 decodes in the training thread."""
    cache: str = ""
    """Folder for what comes over the network. Empty: `$DGAN_CACHE`, else in the user's cache."""
    cache_gigabytes: float = 50.0
    """How large that folder may grow; 0 keeps nothing and asks the server for each sample."""
    max_skipped: float = 0.01
    """The run stops once more than this fraction of an epoch's samples (but at least 10) had to be
    skipped in one, by all ranks together: they do not decode, or cannot be read."""


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
    """On one rank `ddp` and `fsdp` (unless it offloads) are `single`."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile each block by `torch.compile`. Penalties stay exact: where they are differentiated
    twice, or a tangent is carried along, blocks run as they are written."""
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
    """And of those with the best score, where `evaluation.every` meets `every`; GANs may get worse
    again. `--step best` of `dgan sample`, `evaluate` and `export` takes the best that is kept."""
    best: str = "fid"
    """The score that says which is best: one that `evaluation.metrics` gives, such as `kid` or
    `recall`. Whether lower or higher is better is known (`dgan.scores.SCORES`)."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """What is a sign that the training fails, and what is done then.

    A loss or gradient that is not finite is a sign at once. The others are statistics in the
    metrics of every step that stay beyond a bound for `patience` steps in a row; 0: no bound.
    """

    policy: Literal["stop", "rollback"] = "stop"
    """`stop`: an error. `rollback`: weights, moments and the average are again those of the newest
    checkpoint from before the first sign, and the run goes on with other latents and with the data
    that comes next, so that it does not meet the same batch again before the next epoch. The
    count of steps goes on too, and with it the schedules."""
    patience: int = 0
    """Steps in a row; 0: a fifth of `train.steps`, but from 100 to 1000."""
    accuracy: float = 0.999
    """`discriminator/accuracy` of this or more, or of 1 minus this or less."""
    diversity: float = 0.01
    """`discriminator/diversity` of this or less: all generated images look alike."""
    logits: float = 1e4
    """`discriminator/real_logits` or `fake_logits` of this magnitude or more."""
    penalty: float = 1e8
    """`discriminator/r1` or `r2`, mean squared gradients, of this or more."""
    learning_rate: float = 1.0
    """Each rollback multiplies both players' learning rates by this."""
    at_most: int = 3
    """So many rollbacks of a run; the next sign stops it."""


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
    metrics: tuple[str, ...] = ("fid",)
    """`fid` (and the classes, where the features know any), `kid`, `manifold` (precision, recall,
    density, coverage, diversity), `classifier_score`, `intra_fid`; `all`: those that are possible.
    `fid` always comes."""
    shards: str | tuple[str, ...] = ""
    """What is compared with, such as a validation split; empty: the shards that are trained on."""
    real_samples: int = 0
    """Real images that `kid` and `manifold` compare with; 0: as many as `samples`, or all if there
    are fewer. The other metrics take all."""
    features: str = "auto"
    """`auto` (a classifier trained on the labels of `data.shards`), a TorchScript file, or
    `inception:WEIGHTS` (torch-fidelity's, from a file)."""


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
    task: Task = field(default_factory=Task)
    translation: Translation = field(default_factory=Translation)
    penalty: Penalty = field(default_factory=Penalty)
    regularizers: Regularizers = field(default_factory=Regularizers)
    augment: Augment = field(default_factory=Augment)
    judges: Judges = field(default_factory=Judges)
    balance: Balance = field(default_factory=Balance)
    average: Average = Average()
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    divergence: Divergence = Divergence()
    samples: Samples = Samples()
    evaluation: Evaluation = Evaluation()
    run: Run = Run()

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return Path(self.run.dir or f"runs/{self.name}")


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
