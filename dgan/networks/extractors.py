"""Frozen networks whose feature maps a discriminator judges by.

Built by a function named by its import path, or read from a file: TorchScript, or the small
classifier that dgan trains on the shards' labels (`dgan.metrics.train_classifier(...).save(path)`;
every run that evaluates leaves one as `classifier.safetensors` in its directory).
"""

import copy
import difflib
import importlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

CLASSIFIER = "dgan.classifier/1"
"""The format of `dgan.metrics.classifier`, of which the file says so itself."""

GROUPS = 8
"""Of that classifier's group norms."""

Shape = tuple[int, int, int]


class Extractor:
    """Feature maps of a frozen network at named stages.

    No `nn.Module`, so that what holds it shows nothing of it: its weights are in no optimizer, no
    sharding, no checkpoint and no average, and `train`, `to` and `to_empty` pass it by. It is
    always in evaluation mode, and follows its input: each device and dtype gets one copy.

    Args:
        network: takes images in [−1, 1]; what wants other statistics has them in its first layer.
            Taken over: frozen, moved to the CPU and to float32.
        stages: names of submodules whose outputs are taken (of the last call, if there are
            several); or, if it returns a dict, of its entries, or, if it returns a list or tuple,
            of positions in it. Empty: all that it returns.
        shape: C, H and W of the images.

    Attributes:
        shape: of the images.
        shapes: C, H and W of each stage's map, in the order of `stages`.

    Raises:
        ValueError: it does not take such images, or has no such stages, or they are no maps.
    """

    def __init__(self, network: nn.Module, stages: Sequence[str], shape: Shape) -> None:
        self.name = type(network).__name__
        self.shape, self.stages = shape, tuple(stages)
        network = network.eval().to("cpu", torch.float32)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        self._original = network
        self._copies = {(torch.device("cpu"), torch.float32): network}
        # Nothing inside of TorchScript calls hooks.
        inside = isinstance(network, torch.jit.ScriptModule)
        modules = {} if inside else dict(network.named_modules())
        self._hooked = [name for name in self.stages if name in modules]
        self.shapes = self._try(shape, list(modules))

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Images `[N, C, H, W]` → maps `[N, C', H', W']`, one a stage."""
        maps = self._maps(self._beside(x), x)
        return [maps[name] for name in self.stages or maps]

    def _beside(self, x: Tensor) -> nn.Module:
        """The network on the device, and in the dtype, of `x`."""
        place = (x.device, x.dtype)
        if place not in self._copies:
            # Sampling in inference mode must not make it unfit for training.
            with torch.inference_mode(False), torch.no_grad():
                self._copies[place] = copy.deepcopy(self._original).to(*place)
        return self._copies[place]

    def _maps(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda module, inputs, output: found.__setitem__(name, output)

        parts = [(name, network.get_submodule(name)) for name in self._hooked]
        hooks = [part.register_forward_hook(keep(name)) for name, part in parts]
        try:
            output = network(x)
        finally:
            for hook in hooks:
                hook.remove()
        if isinstance(output, (list, tuple)):
            output = {str(index): value for index, value in enumerate(output)}
        return {**output, **found} if isinstance(output, dict) else found

    def _try(self, shape: Shape, modules: list[str]) -> list[Shape]:
        images = torch.zeros(1, *shape, device="cpu")
        try:
            with torch.no_grad(), torch.device("cpu"):
                maps = self._maps(self._original, images)
        except Exception as error:
            raise ValueError(
                f"the extractor {self.name} cannot take images {shape} (channels, height, width): "
                f"{(str(error).strip() or type(error).__name__).splitlines()[-1]}"
            ) from error
        known = [*maps, *(name for name in modules if name)]
        for name in self.stages:
            if name not in maps:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ValueError(
                    f"the extractor {self.name} has no stage {name!r}, or does not call it; {hint}"
                    f"there are {', '.join(known[:20]) or 'none'}"
                )
        chosen = [(name, maps[name]) for name in self.stages or maps]
        if not chosen:
            raise ValueError(
                f"the extractor {self.name} returns no list or dict of maps: name submodules of it "
                f"as stages, for example {', '.join(known[:20]) or 'none'}"
            )
        for name, value in chosen:
            if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"stage {name!r} of the extractor {self.name} is no map [N, C, H, W]: {what}"
                )
        return [(m.shape[1], m.shape[2], m.shape[3]) for _, m in chosen]


def open_extractor(source: str, stages: Sequence[str], shape: Shape) -> Extractor:
    """The extractor that `source` names; its weights are the same on every rank.

    Args:
        source: a TorchScript file (`.pt`, `.ts`, `.pth`) that was not frozen by `torch.jit.freeze`,
            whose weights cannot be moved (none can be called on the meta device); a classifier
            that dgan saved (`.safetensors`); or `package.module:function`, which is called without
            arguments and returns a module with its weights in it.
        stages, shape: of `Extractor`. Of a classifier, no stages are its four coarsest.

    Raises:
        ValueError: see `Extractor`; or the file is something else, or the function is not found.
        FileNotFoundError: there is no such file.
    """
    # What a function draws is the same on every rank, and leaves the caller's numbers alone.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        if source.endswith(".safetensors"):
            network = _classifier(_existing(source), shape)
            return Extractor(network, stages or network.stages[-4:], shape)
        if source.endswith((".pt", ".ts", ".pth")):
            return Extractor(_torchscript(_existing(source)), stages, shape)
        return Extractor(_imported(source), stages, shape)


class ClassifierBody(nn.Module):
    """The convolutions of a saved classifier: a map for each resolution, coarser and coarser."""

    resize: Tensor | None

    def __init__(self, weights: dict[str, Tensor], size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while f"body.{len(layers)}.weight" in weights:
            first = not layers
            width, inputs = weights[f"body.{len(layers)}.weight"].shape[:2]
            layers += [nn.Conv2d(inputs, width, 3, stride=1 if first else 2, padding=1)]
            layers += [nn.GroupNorm(GROUPS, width), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.load_state_dict({k: v for k, v in weights.items() if k.startswith("body.")})
        self.stages = tuple(f"body.{index}" for index in range(2, len(layers), 3))
        side = 4 << (len(self.stages) - 1)
        self.register_buffer("resize", None if size == side else _resizing(size, side))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, size, size]` in [−1, 1] → `[N, C', 4, 4]`."""
        return self.body(x if self.resize is None else self.resize @ x @ self.resize.T)


def _resizing(size: int, side: int) -> Tensor:
    """The matrix that resizes columns `[size]` to `[side]` as the classifier's images were.

    As a product its derivatives of any order have deterministic kernels, unlike `interpolate`.
    """
    columns = torch.eye(size)[None, None]
    options = {"mode": "bilinear", "antialias": True, "align_corners": False}
    return F.interpolate(columns, (side, size), **options)[0, 0]


def _classifier(path: Path, shape: Shape) -> ClassifierBody:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if metadata.get("format") != CLASSIFIER:
        found = metadata.get("format", "no format")
        raise ValueError(
            f"{path} is not a classifier saved by dgan ({found}, expected {CLASSIFIER}): for other "
            "weights name a function that builds the module, package.module:function"
        )
    spec = json.loads(metadata["spec"])
    trained_on = tuple(spec[key] for key in ("channels", "height", "width"))
    if trained_on != shape:
        raise ValueError(
            f"the classifier {path} was trained on images {trained_on} (channels, height, width), "
            f"and these are {shape}: train one on them"
        )
    return ClassifierBody(weights, shape[1])


def _torchscript(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():  # deprecated, and yet what networks ship as
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise ValueError(
            f"{path} is not a TorchScript file (write one with torch.jit.script(module).save): "
            f"{str(error).splitlines()[0]}"
        ) from error


def _imported(source: str) -> nn.Module:
    module, _, name = source.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"extractor {source!r} cannot be found: {error}; name a function by its import path, "
            "package.module:function, or a file, .safetensors or .pt"
        ) from error
    network = function()
    if not isinstance(network, nn.Module):
        raise ValueError(f"extractor {source!r} gives a {type(network).__name__}, no torch module")
    return network


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"there is no extractor {path}")
    return path
