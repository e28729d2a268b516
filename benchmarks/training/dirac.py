"""Dirac-GAN: eigenvalues measured by autograd beside the closed form, and where descent goes.

python benchmarks/training/dirac.py            # seconds; fails if one is off by 1e-3 or more
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from dgan.laboratory.dirac import GAMES, Game, descend, eigenvalues, theory
from dgan.laboratory.games import TOLERANCE, error, games_picture
from dgan.laboratory.picture import save_picture
from report import RESULTS, device, store


def row_of(game: Game) -> dict[str, Any]:
    path = descend(game, (1.0, 1.0))
    return {
        **asdict(game),
        "measured": [str(value) for value in eigenvalues(game)],
        "theory": [str(value) for value in theory(game)],
        "error": error(game),
        "distance_after_500_steps": path[-1].norm().item(),
    }


def main() -> None:
    asked = argparse.ArgumentParser(description="Eigenvalues of the Dirac-GAN.")
    asked.add_argument("--results", type=Path, help="folder of the results, if not the committed")
    folder = asked.parse_args().results or RESULTS / device()
    rows = [row_of(game) for game in GAMES]
    notes = "theory: Mescheder et al. 2018; WGAN-GP in the limit from either side of its kink"
    path = store("dirac", rows, notes=notes, out=folder)
    save_picture(games_picture(), folder / "dirac.png")
    for game, row in zip(GAMES, rows):
        print(f"{game.title:45} measured {', '.join(row['measured'])}  error {row['error']:.1e}")
    print(f"stored in {path}")
    if wrong := [game.title for game in GAMES if not error(game) <= TOLERANCE]:
        raise SystemExit(f"off by more than {TOLERANCE}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
