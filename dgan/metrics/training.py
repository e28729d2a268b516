"""Training of the small classifier whose features and labels the metrics use."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from dgan.metrics.base import require_images
from dgan.metrics.classifier import (
    ClassifierFeatures,
    ClassifierSpec,
    SmallClassifier,
    build_classifier,
    require_clips,
)

SAMPLE_BUDGET = 60_000  # images seen when `epochs` is left open: 98 to 99 % on MNIST


def train_classifier(
    data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    *,
    num_classes: int,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    max_samples: int = 10_000,
    dimension: int = 64,
    device: torch.device | str = "cpu",
    held_out: tuple[Tensor, Tensor] | None = None,
) -> ClassifierFeatures:
    """Train a small classifier on labelled images, or clips, and measure it on others.

    The same data, seed, device and thread count give the same weights. On one CPU core: sklearn's
    digits (8×8) in about 4 s at 98–100 %, 10,000 MNIST images at 32×32 in about 35 s at 99 %.

    Args:
        data: (images, labels), or an iterable of such batches: images uint8 [N, C, H, W] with
            H, W ≥ 8, or clips uint8 [N, C, T, H, W]; labels int64 [N] in 0..num_classes − 1. An
            iterable may be endless: it is read until `max_samples`, so it must come shuffled.
        num_classes: K.
        seed: of the split, the initialisation, the order and the augmentation.
        epochs: passes over the training part; left open, about 60,000 images are seen, in 3 to
            16 passes.
        batch_size: images a step.
        learning_rate: AdamW's peak, reached after a tenth of the steps, then down a half cosine.
        max_samples: more images than this are left out (of tensors: a random part).
        dimension: D of the features.
        device: where to train; the features stay there.
        held_out: what the stated accuracy is measured on; None: a random tenth of `data`, which
            is then not trained on.

    Raises:
        TypeError: images are not uint8, or labels are not integers.
        ValueError: shapes, label range, fewer than 20 images or fewer than 2 classes present.
    """
    images, labels = _gather(data, max_samples, seed)
    _require_labels(images, labels, num_classes)
    if held_out is None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        test, fit = order.tensor_split([max(1, len(images) // 10)])
        held_out = images[test], labels[test]
        images, labels = images[fit], labels[fit]
    epochs = epochs or min(16, max(3, round(SAMPLE_BUDGET / len(images))))
    channels, *frames, height, width = images.shape[1:]
    sizes = (num_classes, channels, height, width, dimension)

    with (
        torch.inference_mode(False),  # evaluation loops often run inside inference_mode
        torch.enable_grad(),
        torch.autocast(torch.device(device).type, enabled=False),
    ):
        module = build_classifier(*sizes, seed, *frames).to(device)
        _fit(module, images, labels, seed, epochs, batch_size, learning_rate)

    with torch.no_grad():
        predicted = [
            module(module.prepare(chunk.to(device))).argmax(dim=1).cpu()
            for chunk in held_out[0].split(512)
        ]
    spec = ClassifierSpec(
        num_classes=num_classes,
        channels=channels,
        height=height,
        width=width,
        dimension=dimension,
        accuracy=(torch.cat(predicted) == held_out[1]).double().mean().item(),
        held_out=len(held_out[0]),
        trained_on=len(images),
        seed=seed,
        frames=frames[0] if frames else 0,
    )
    return ClassifierFeatures(module, spec).to(device)


def _fit(
    module: SmallClassifier,
    images: Tensor,
    labels: Tensor,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    device = module.head.weight.device
    random = torch.Generator().manual_seed(seed + 1)  # not the split's stream again
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.01)
    steps_an_epoch = math.ceil(len(images) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * steps_an_epoch, pct_start=0.1
    )
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=random).split(batch_size):
            x = _shift(module.prepare(images[chosen].to(device)), random)
            loss = F.cross_entropy(module(x), labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _shift(x: Tensor, random: torch.Generator) -> Tensor:
    """Move each image by up to a sixteenth of its side either way; borders are repeated."""
    n, _, height, width = x.shape
    reach = max(1, height // 16)
    dy, dx = torch.randint(0, 2 * reach + 1, (2, n, 1), generator=random).to(x.device)
    padded = F.pad(x, [reach] * 4, mode="replicate").permute(0, 2, 3, 1)
    rows = (dy + torch.arange(height, device=x.device)).unsqueeze(2)  # [N, H, 1]
    columns = (dx + torch.arange(width, device=x.device)).unsqueeze(1)  # [N, 1, W]
    batch = torch.arange(n, device=x.device).view(n, 1, 1)
    return padded[batch, rows, columns].permute(0, 3, 1, 2).contiguous()


def _gather(
    data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]], limit: int, seed: int
) -> tuple[Tensor, Tensor]:
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
        images, labels = data[0], torch.as_tensor(data[1])
        if len(images) > limit and len(images) == len(labels):
            random = torch.Generator().manual_seed(seed + 2)
            chosen = torch.randperm(len(images), generator=random)[:limit]
            images, labels = images[chosen.to(images.device)], labels[chosen.to(labels.device)]
        return images.cpu(), labels.cpu()
    gathered: list[Tensor] = []
    asked: list[Tensor] = []
    for images, labels in data:
        gathered.append(torch.as_tensor(images).cpu())
        asked.append(torch.as_tensor(labels).cpu())
        if sum(map(len, gathered)) >= limit:  # the iterable may be endless
            break
    if not gathered:
        raise ValueError("the iterable of (images, labels) batches is empty")
    return torch.cat(gathered)[:limit], torch.cat(asked)[:limit]


def _require_labels(images: Tensor, labels: Tensor, num_classes: int) -> None:
    (require_clips if images.ndim == 5 else require_images)(images)
    if min(images.shape[-2:]) < 8:
        raise ValueError(f"images are {list(images.shape[-2:])}; the classifier needs 8×8 or more")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels are {labels.dtype}; expected int64")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images but labels of shape {list(labels.shape)}")
    if len(images) < 20:
        raise ValueError(f"{len(images)} labelled images; a classifier needs at least 20")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels run from {low} to {high}, but num_classes is {num_classes}")
    if low == high:
        raise ValueError(f"every label is {low}; a classifier needs two classes or more")
