"""A classifier of grey images at each channel of colour images, as of stacked MNIST."""

import torch
from torch import Tensor

from dgan.metrics.base import Features
from dgan.metrics.classifier import ClassifierFeatures

CHANNELS = 3


class StackedFeatures(Features):
    """Embeddings of the three channels side by side, and K³ classes: one of K in each channel.

    Stacked MNIST (Metz et al. 2017, "Unrolled generative adversarial networks"): three digits as
    red, green and blue, 1,000 classes. The class is 100·red + 10·green + blue for K = 10, and its
    probability the product of the three, so the most probable one is that of each channel.

    Args:
        classifier: of grey images of the same size.

    Raises:
        ValueError: it is one of colour images.
    """

    def __init__(self, classifier: ClassifierFeatures) -> None:
        if classifier.spec.channels != 1:
            raise ValueError(
                f"{classifier.name} was trained on {classifier.spec.channels} channels; classes "
                "are stacked from a classifier of grey images"
            )
        name = f"stacked {CHANNELS} × {classifier.name}"
        super().__init__(
            classifier.module, name=name, digest=classifier.digest, batch_size=classifier.batch_size
        )
        self.classifier = classifier
        self.resizing = classifier.resizing

    @property
    def num_classes(self) -> int:
        """K³."""
        return self.classifier.num_classes**CHANNELS

    def recognise(self, features: Tensor) -> Tensor:
        """Probabilities of the stacked classes, float32 [N, K³], of features [N, 3·D]."""
        joint = torch.ones(len(features), 1, device=self.device)
        for part in features.chunk(CHANNELS, dim=1):
            joint = (joint[:, :, None] * self.classifier.recognise(part)[:, None]).flatten(1)
        return joint

    def to(self, device: torch.device | str) -> "StackedFeatures":
        """Move the weights to `device` and return self."""
        self.classifier.to(device)
        return super().to(device)

    def _extract(self, images: Tensor) -> Tensor:
        if images.shape[1] != CHANNELS:
            raise ValueError(
                f"images have {images.shape[1]} channels; {self.name} takes {CHANNELS}"
            )
        grey = images.flatten(0, 1)[:, None]  # [3 N, 1, H, W]
        return self.classifier(grey).reshape(len(images), -1)
