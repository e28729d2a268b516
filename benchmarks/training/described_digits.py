"""Digits from captions: the share recognised as what was asked for, with mismatched pairs or not.

    python benchmarks/training/described_digits.py --steps 400         # two runs, a minute each

Each of scikit-learn's digits has a caption in one of three phrases, which a frozen encoder makes a
vector of: the sum of random vectors of its words. Scores are of 500 samples of the last step,
asked for in the three phrases and in one that was never trained on, by a classifier trained on the
same images with labels. Runs that are finished are not made again.
"""

import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dgan.build_networks import build_network
from dgan.config import Recipe, Task
from dgan.data import ShardDataset, ShardStream, pack_source
from dgan.draws import latents
from dgan.export import synthesise
from dgan.metrics import train_classifier
from dgan.recipes import digits
from dgan.run import metrics_of, save_grid
from dgan.trained import load_run
from dgan.visible import to_uint8
from report import RESULTS, device, store
from runs import parser, trained, with_budget

SIZE, SAMPLES = 32, 500
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = ("the digit {}", "a handwritten {}", "this looks like a {}")
UNSEEN = ("please write a {}",)
SHARES = (0.0, 0.5)


def encode(captions: list[str]) -> Tensor:
    """`[N, 32]`, of about unit variance: Σ v(word) / √words, v standard normal."""
    split = [text.split() for text in captions]
    return torch.stack([sum(map(vector, words)) / len(words) ** 0.5 for words in split])


def vector(word: str) -> Tensor:
    """Drawn by the word alone."""
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def described(folder: Path) -> str:
    """The shards, made once."""
    if not (folder / "train-000000.tar").exists():
        pack_source("digits", folder / "plain")
        with ShardDataset(str(folder / "plain" / "train-*.tar")) as dataset:
            for i in range(len(dataset)):
                sample = dataset[i]
                path = folder / "images" / str(sample["label"]) / f"{i:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(sample["image"][0].numpy()).save(path)
                text = PHRASES[i % len(PHRASES)].format(WORDS[sample["label"]])
                path.with_suffix(".txt").write_text(text)
        pack_source(folder / "images", folder)
    return str(folder / "train-*.tar")


def of_share(share: float, shards: str) -> Recipe:
    """The recipe `digits`, given captions in the place of labels."""
    recipe = digits()
    data = replace(
        recipe.data,
        shards=shards,
        classes=0,
        embedding=SIZE,
        encoder="described_digits:encode",
    )
    return replace(
        recipe,
        name=f"described-digits-mismatch-{share:g}",
        data=data,
        task=Task(loss=recipe.task.loss, mismatch=share),
        evaluation=replace(recipe.evaluation, every=-1),
        checkpoint=replace(recipe.checkpoint, keep_best=0),
    )


def scorer(shards: str) -> Callable[[str, Any, int], dict[str, Any]]:
    """What scores a generator; the classifier is the same for all."""
    with ShardDataset(shards) as dataset:
        stream = ShardStream(dataset, batch_size=64, seed=0, workers=0)
        batches = ((batch["image"], batch["label"]) for batch in stream)
        features = train_classifier(batches, num_classes=10, max_samples=len(dataset))
    asked = torch.arange(SAMPLES) % 10

    def recognised(network: Any, z_dim: int, phrases: tuple[str, ...]) -> float:
        texts = [phrases[i // 10 % len(phrases)].format(WORDS[i % 10]) for i in range(SAMPLES)]
        z = latents(SAMPLES, z_dim, seed=0, purpose="benchmark")
        images = to_uint8(synthesise(network.eval(), z, encode(texts)))
        return (features.probabilities(images).argmax(1) == asked).double().mean().item()

    def score(method: str, network: Any, z_dim: int) -> dict[str, Any]:
        return {
            "method": method,
            "recognised": recognised(network, z_dim, PHRASES),
            "recognised_of_an_unseen_phrase": recognised(network, z_dim, UNSEEN),
            "samples": SAMPLES,
            "features": features.name,
        }

    return score


def main() -> None:
    asked = parser("Digits from captions.", "runs/described-digits")
    options = asked.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    shards = described(options.out / "data")
    score, folder = scorer(shards), options.results or RESULTS / device()
    untrained = build_network(of_share(0.0, shards), "generator")
    rows = [score("untrained", untrained, untrained.z_dim)]
    for share in SHARES:
        plan = with_budget(of_share(share, shards), options)
        directory = trained(plan, options.out)
        run = load_run(directory)
        last = [line for line in metrics_of(directory) if "generator/loss" in line][-1]
        row = score(f"mismatch {share:g}", run.network, run.z_dim)
        rows.append({**row, "step": run.step, "matched": last.get("discriminator/matched")})
        path = store("described-digits", rows, out=folder)
        texts = [UNSEEN[0].format(word) for word in WORDS] * 6
        z = latents(len(texts), run.z_dim, seed=1, purpose="benchmark")
        images = to_uint8(synthesise(run.network, z, encode(texts)))
        save_grid(images, folder / f"described-digits-mismatch-{share:g}.png", columns=10)
    for row in rows:
        seen, unseen = row["recognised"], row["recognised_of_an_unseen_phrase"]
        print(f"{row['method']:14} recognised {seen:.1%}, of an unseen phrase {unseen:.1%}")
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
