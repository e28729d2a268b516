"""Text: n-gram divergences of a character-level WGAN-GP, of no training, and of real text.

    python benchmarks/training/text.py --minutes 30

The text is that of the docstrings of this Python's standard library, in lower case, a line of at
least 32 characters a paragraph; other characters become spaces. `dgan data pack` deals it to
training, validation and test. Scores are on the test split, of the last step: none is chosen. Real
text is as many parts of the training split; what it scores no generator can be expected to beat.
"""

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from dgan.build_evaluation import text_evaluator
from dgan.build_networks import build_network
from dgan.config import Recipe
from dgan.data import ShardStream, pack_source
from dgan.data.text import TextDataset, text_of
from dgan.metrics.ngrams import ORDERS, NgramCounts, jensen_shannon
from dgan.opening import open_images
from dgan.parallel.world import launch
from dgan.recipes.text import ALPHABET, characters_wgan_gp
from dgan.texts import save_text
from dgan.trained import load_run
from report import RESULTS, device, store
from runs import curve, draw, parser, trained, with_budget

SHORTEST = 32
OWNERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def paragraphs() -> Iterator[str]:
    """Of all docstrings, as the alphabet has them; each once."""
    unknown, seen = re.compile(f"[^{re.escape(ALPHABET)}]+"), set[str]()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "test", "tests"}.intersection(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # some files are for other versions
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, OWNERS) else None
            for paragraph in re.split(r"\n\s*\n", text or ""):
                line = " ".join(unknown.sub(" ", paragraph.lower()).split())
                if len(line) >= SHORTEST and line not in seen:
                    seen.add(line)
                    yield line


def pack(folder: Path) -> None:
    if list(folder.glob("train-*.tar")):
        return
    lines = folder.parent / f"{folder.name}.txt"
    save_text(list(paragraphs()), lines)
    pack_source(str(lines), folder, split_by_hash="90/5/5")


def placed(recipe: Recipe, data: Path, samples: int) -> Recipe:
    """With the data of the command line; scored ten times."""
    every = max(1, recipe.train.steps // 10)
    return replace(
        recipe,
        data=replace(recipe.data, shards=str(data / "train-*.tar")),
        checkpoint=replace(recipe.checkpoint, every=every, keep_best=0),
        samples=replace(recipe.samples, every=every),
        evaluation=replace(
            recipe.evaluation, every=every, samples=samples, shards=str(data / "test-*.tar")
        ),
    )


def real_scores(recipe: Recipe) -> dict[str, float]:
    """Of as many parts of the training split."""
    counts = []
    for shards in (recipe.data.shards, recipe.evaluation.shards):
        counts.append(NgramCounts(recipe.data.channels))
        with open_images(recipe, shards) as dataset:
            assert isinstance(dataset, TextDataset)
            if shards == recipe.data.shards:
                stream = ShardStream(dataset, batch_size=100, seed=1, workers=0)
                for _ in range(recipe.evaluation.samples // 100):
                    counts[-1].add(next(stream)["image"].argmax(1))
            else:
                for batch in dataset.batches(500):
                    counts[-1].add(batch["image"].argmax(1))
    train, test = (found.counts for found in counts)
    return {f"js_{n}": jensen_shannon(train[n], test[n]) for n in ORDERS}


def main() -> None:
    asked = parser("A character-level WGAN-GP on docstrings.", "runs/text")
    asked.add_argument("--data", type=Path, default=Path("data/docstrings"))
    asked.add_argument("--samples", type=int, default=5000)
    options = asked.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.results or RESULTS / device()
    pack(options.data)
    recipe = placed(characters_wgan_gp(), options.data, options.samples)
    rows: list[dict[str, Any]] = [{"method": "real text, training split", **real_scores(recipe)}]
    with launch() as world:
        score = text_evaluator(recipe, recipe.evaluation.shards, world)
        with torch.no_grad():
            untrained = build_network(recipe, "generator").eval()
            found = score(untrained, recipe.generator.options.get("z_dim", 128))
        rows.append({"method": "untrained", **found})
    recipe = placed(with_budget(recipe, options), options.data, options.samples)
    run = trained(recipe, options.out)
    made = load_run(run)
    with launch() as world, torch.no_grad():
        score = text_evaluator(recipe, recipe.evaluation.shards, world)
        rows.append(
            {
                "method": "WGAN-GP",
                "step": made.step,
                **score(made.network.to(world.device), made.z_dim),
                "js_4_over_kimg": curve(run, "js_4"),
            }
        )
        z = torch.randn(40, made.z_dim, generator=torch.Generator().manual_seed(0))
        lines = text_of(made.network(z.to(world.device), None), ALPHABET)
    notes = f"docstrings of Python {sys.version.split()[0]}'s standard library; nats"
    path = store("text-characters", rows, notes=notes, out=folder)
    save_text(lines, folder / "text-characters.txt")
    draw(folder / "text-characters.png", "4-gram divergence", {recipe.name: curve(run, "js_4")})
    for row in rows:
        print(f"{row['method']:28}" + "".join(f"  {row[f'js_{n}']:.4f}" for n in ORDERS))
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
