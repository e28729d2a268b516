"""The classifier by which runs on MNIST are scored: one for all, measured on the test split."""

from pathlib import Path

import torch

from dgan.data import ShardDataset, ShardStream
from dgan.metrics import ClassifierFeatures, train_classifier


def classifier_of(data: Path, path: Path, *, samples: int = 60_000, epochs: int = 4) -> float:
    """How much of the test split in `data` it gets right; `path` keeps it once it is trained."""
    if not path.exists():
        with ShardDataset(str(data / "train-*.tar")) as dataset:
            stream = ShardStream(dataset, batch_size=min(64, len(dataset)), seed=0, workers=0)
            batches = ((batch["image"], batch["label"]) for batch in stream)
            train_classifier(
                batches,
                num_classes=dataset.num_classes,
                max_samples=min(samples, len(dataset)),
                epochs=epochs,
            ).save(path)
    features = ClassifierFeatures.load(path)
    right = total = 0
    with ShardDataset(str(data / "test-*.tar")) as dataset:
        for batch in dataset.batches(500):
            found = features.probabilities(batch["image"]).argmax(1)
            right += int((found == torch.as_tensor(batch["label"])).sum())
            total += len(found)
    return right / total
