"""Draw what `run.py` stored: one picture an operator, a bar for each provider and order.

python benchmarks/kernels/plot.py FOLDER        needs matplotlib
"""

import json
import sys
from collections import defaultdict
from pathlib import Path


def draw(path: Path) -> Path:
    """`kernels-<operator>.png` beside the JSON: fraction of a copy, by case and order."""
    from matplotlib import pyplot

    stored = json.loads(path.read_text())
    bars: dict[str, dict[str, float]] = defaultdict(dict)
    for row in stored["rows"]:
        if "of_copy" in row:
            bars[f"{row['case']} {row['order']}"][row["provider"]] = row["of_copy"]
    providers = sorted({provider for row in bars.values() for provider in row})
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.3 * len(bars)), layout="constrained")
    height = 0.8 / max(1, len(providers))
    for index, provider in enumerate(providers):
        places = [number + index * height for number in range(len(bars))]
        axes.barh(places, [row.get(provider, 0.0) for row in bars.values()], height, label=provider)
    axes.set_yticks([number + 0.4 for number in range(len(bars))], list(bars), fontsize=6)
    axes.axvline(1.0, color="grey", linewidth=0.5)
    axes.set_xlabel("fraction of a copy's bandwidth, by the bytes that cannot be avoided")
    axes.set_title(f"{path.stem} on {stored['device']}")
    axes.invert_yaxis()
    axes.legend()
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
    return target


if __name__ == "__main__":
    for result in sorted(Path(sys.argv[1]).glob("kernels-*.json")):
        print(draw(result))
