"""Features of a small classifier trained on the shards' own labels: no download, any domain."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dgan.metrics.base import Features, require_file, require_images, weights_digest

FORMAT = "dgan.classifier/1"
WIDTHS = {4: 64, 8: 64, 16: 32, 32: 16, 64: 16}  # channels at each resolution: 100–130k parameters
GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec:
    """What it takes to rebuild a classifier, and what its training measured."""

    num_classes: int
    channels: int
    height: int
    width: int
    dimension: int
    accuracy: float  # on the held-out tenth, in 0..1
    held_out: int
    trained_on: int
    seed: int
    frames: int = 0  # of clips; 0: images


class SmallClassifier(nn.Module):
    """Strided 3×3 convolutions with GroupNorm down to 4×4, an embedding, a linear head.

    Images are resized (antialiased) to the power of two nearest to their longer side, between 8
    and 64, so parameters and cost stay bounded at any resolution.
    """

    def __init__(self, *, num_classes: int, channels: int, side: int, dimension: int) -> None:
        super().__init__()
        self.side = min(64, max(8, 2 ** round(math.log2(side))))
        layers: list[nn.Module] = [nn.Conv2d(channels, WIDTHS[self.side], 3, padding=1)]
        size = self.side
        while size > 4:
            before, after = WIDTHS[size], WIDTHS[size // 2]
            layers += [nn.GroupNorm(GROUPS, before), nn.ReLU()]
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1)]
            size //= 2
        layers += [nn.GroupNorm(GROUPS, WIDTHS[4]), nn.ReLU(), nn.Flatten()]
        self.body = nn.Sequential(*layers)
        self.embed = nn.Linear(WIDTHS[4] * 4 * 4, dimension)
        self.head = nn.Linear(dimension, num_classes)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → float32 [N, C, side, side] in [−1, 1]."""
        x = images.float() / 127.5 - 1
        if x.shape[-2:] != (self.side, self.side):
            size = (self.side, self.side)
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        return x

    def embedding(self, x: Tensor) -> Tensor:
        """Prepared images → float32 [N, dimension], before the last nonlinearity."""
        return self.embed(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        """Prepared images → logits, float32 [N, K]."""
        return self.head(F.relu(self.embedding(x)))


class ClipClassifier(SmallClassifier):
    """The same of clips: their frames are channels of one image.

    The first is as it is, the others are differences to the one before, magnified, so that what
    moves is not small beside what stands still.

    Args: as `SmallClassifier`, and
        frames: of a clip.
    """

    magnified = 4.0

    def __init__(self, *, channels: int, frames: int, **sizes: int) -> None:
        super().__init__(channels=channels * frames, **sizes)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 [N, C, T, H, W] → float32 [N, C·T, side, side]."""
        frames = super().prepare(images.transpose(1, 2).flatten(0, 1))
        clips = frames.unflatten(0, (len(images), images.shape[2]))  # [N, T, C, side, side]
        moved = self.magnified * clips.diff(dim=1)
        return torch.cat([clips[:, :1], moved], 1).flatten(1, 2)


class ClassifierFeatures(Features):
    """The embedding of a `SmallClassifier`, and its class probabilities.

    Made by `train_classifier` or `ClassifierFeatures.load`.

    Attributes:
        spec: classes, image shape, feature dimension, held-out accuracy, training seed.
    """

    module: SmallClassifier

    def __init__(self, module: SmallClassifier, spec: ClassifierSpec) -> None:
        digest = weights_digest(module.state_dict())
        name = (
            f"classifier:{digest} ({spec.dimension}-d, trained on these shards' labels, "
            f"test accuracy {100 * spec.accuracy:.1f} %)"
        )
        super().__init__(module, name=name, digest=digest, batch_size=256)
        self.spec = spec
        if (spec.height, spec.width) != (module.side, module.side):
            self.resizing = f"bilinear, antialiased, to {module.side}×{module.side}"

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self.spec.num_classes

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities, float32 [N, K], of uint8 [N, C, H, W] images; errors as `__call__`.

        The images must have the channels and size that the classifier was trained on.
        """
        return self.recognise(self(images))

    def recognise(self, features: Tensor) -> Tensor:
        """Class probabilities, float32 [N, K], of features [N, D] that this network gave."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.module.head(F.relu(features.to(self.device))).softmax(dim=1)

    def _require(self, images: Tensor) -> None:
        (require_clips if self.spec.frames else require_images)(images)

    def _extract(self, images: Tensor) -> Tensor:
        frames = (self.spec.frames,) if self.spec.frames else ()
        expected = (self.spec.channels, *frames, self.spec.height, self.spec.width)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images are {list(images.shape[1:])} but {self.name} was trained on "
                f"{list(expected)}; train one for this resolution"
            )
        return self.module.embedding(self.module.prepare(images))

    def save(self, path: str | Path) -> None:
        """Write weights and spec to one safetensors file, whole or not at all."""
        path = Path(path)
        metadata = {"format": FORMAT, "spec": json.dumps(asdict(self.spec))}
        weights = {k: v.detach().cpu().contiguous() for k, v in self.module.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        save_file(weights, partial, metadata=metadata)
        partial.replace(path)  # atomic: another rank that waits for the file never sees half of it

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote; weights are equal bit for bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a classifier saved by `save`.
        """
        path = Path(path)
        require_file(path, "saved classifier", "train one with dgan.metrics.train_classifier")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        if metadata.get("format") != FORMAT:
            found = metadata.get("format", "no format")
            raise ValueError(f"{path} is not a saved classifier: {found}, expected {FORMAT}")
        spec = ClassifierSpec(**json.loads(metadata["spec"]))
        module = build_classifier(
            spec.num_classes, spec.channels, spec.height, spec.width, spec.dimension, 0, spec.frames
        )
        module.load_state_dict(weights)
        return cls(module, spec).to(device)


def build_classifier(
    num_classes: int,
    channels: int,
    height: int,
    width: int,
    dimension: int,
    seed: int,
    frames: int = 0,
) -> SmallClassifier:
    """A classifier of images of this shape, or clips, initialised from `seed` on the CPU."""
    # Initialised on the CPU from a forked generator: the same weights on every device, and the
    # caller's random state is left alone (torch.manual_seed would reseed CUDA's as well).
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        side = max(height, width)
        sizes = {"num_classes": num_classes, "channels": channels, "dimension": dimension}
        module = (
            ClipClassifier(frames=frames, side=side, **sizes)
            if frames
            else SmallClassifier(side=side, **sizes)
        )
    return module.float()


def require_clips(clips: Tensor) -> None:
    """Raise TypeError unless `clips` is uint8, ValueError unless it is [N, 1 or 3, T, H, W]."""
    if clips.ndim != 5:
        raise ValueError(f"clips have shape {list(clips.shape)}; expected [N, 1 or 3, T, H, W]")
    require_images(clips[:, :, 0])
