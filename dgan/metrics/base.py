"""What every feature extractor promises: uint8 images in, float32 features out, and a name."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

DIGEST_LENGTH = 12  # hex digits of the sha256 that stand in names: enough to tell files apart


class Features(ABC):
    """A frozen network that turns uint8 images into float32 feature vectors.

    Attributes:
        name: stands beside every number computed from these features: kind, digest, provenance.
            Statistics of features with different names are never compared.
        digest: the first 12 hex digits of the sha256 of the weights.
        resizing: the filter and size that images are resized with before the network; "none".
        batch_size: images that go through the network at once; larger inputs are split.
    """

    name: str
    digest: str
    resizing: str = "none"
    batch_size: int

    def __init__(self, module: nn.Module, *, name: str, digest: str, batch_size: int) -> None:
        self.module = module.eval()
        for parameter in module.parameters():  # TorchScript has no module.requires_grad_
            parameter.requires_grad_(False)
        self.name = name
        self.digest = digest
        self.batch_size = batch_size
        self._device = torch.device("cpu")

    @property
    def num_classes(self) -> int:
        """K, the number of classes that `recognise` tells apart; 0: it does not."""
        return 0

    def recognise(self, features: Tensor) -> Tensor:
        """Class probabilities, float32 [N, K], of features [N, D] that this network gave.

        Raises:
            TypeError: these features do not know classes.
        """
        raise TypeError(f"{self.name} does not know classes")

    @property
    def device(self) -> torch.device:
        """Where the weights live; images are moved there and features come back from there."""
        return self._device

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to `device` and return self."""
        self.module.to(device)
        self._device = torch.device(device)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Features of `images`.

        Args:
            images: uint8 [N, C, H, W] in 0..255, C 1 or 3, on any device.

        Returns:
            float32 [N, D] on `self.device`, without gradient.

        Raises:
            TypeError: `images` is not uint8, or the network does not return one tensor.
            ValueError: `images` is not [N, 1 or 3, H, W], or the network's output is not [N, D].
        """
        self._require(images)
        chunks = [self._checked(chunk) for chunk in images.split(self.batch_size)]
        return torch.cat(chunks)

    def _checked(self, images: Tensor) -> Tensor:
        # Autocast off: a metric must not depend on the precision the training loop happens to use.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            features = self._extract(images.to(self.device))
        if not isinstance(features, Tensor):
            raise TypeError(
                f"{self.name} returned {type(features).__name__}; it must return one [N, D] tensor"
            )
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"{self.name} returned shape {list(features.shape)} for {len(images)} images; "
                "features must be [N, D] (pool or flatten inside the network)"
            )
        return features.float()

    def _require(self, images: Tensor) -> None:
        """Raise TypeError or ValueError unless `images` are what `__call__` takes."""
        require_images(images)

    @abstractmethod
    def _extract(self, images: Tensor) -> Tensor:
        """Features [N, D] of one chunk, uint8 [N, C, H, W] already on the device."""


def require_images(images: Tensor) -> None:
    """Raise TypeError unless `images` is uint8, ValueError unless it is [N, 1 or 3, H, W]."""
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images are {images.dtype}; features take uint8 in 0..255: images in [-1, 1] become "
            "((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {list(images.shape)}; expected [N, 1 or 3, H, W]")


def require_file(path: Path, what: str, otherwise: str = "") -> None:
    """Raise FileNotFoundError that names `path`, `what` it should be and the way out."""
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}" + (f"; {otherwise}" if otherwise else ""))


def to_rgb(images: Tensor) -> Tensor:
    """[N, 1 or 3, H, W] → [N, 3, H, W]; grey is repeated."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def file_digest(path: Path) -> str:
    """The first 12 hex digits of a file's sha256, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """The first 12 hex digits of the sha256 over names, shapes and bytes of `weights`, by name."""
    sha = hashlib.sha256()
    for key in sorted(weights):
        values = weights[key].detach().cpu().contiguous()
        sha.update(f"{key}{list(values.shape)}{values.dtype}".encode())
        sha.update(values.numpy().tobytes())
    return sha.hexdigest()[:DIGEST_LENGTH]
