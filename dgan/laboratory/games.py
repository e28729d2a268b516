"""What `dgan toy dirac` shows: eigenvalues measured and derived, and where descent goes."""

from collections.abc import Sequence

from PIL import Image
from rich.table import Table

from dgan.laboratory.dirac import GAMES, Game, Pair, descend, eigenvalues, jump, theory
from dgan.laboratory.picture import draw_path, side_by_side

TOLERANCE = 1e-3
"""By how much a measured eigenvalue may differ from the theory's."""


def error(game: Game) -> float:
    """The larger distance of a measured eigenvalue from the derived one."""
    return max(abs(found - derived) for found, derived in zip(eigenvalues(game), theory(game)))


def games_table(games: Sequence[Game] = GAMES) -> Table:
    """A row a game: its eigenvalues by autograd, in closed form, and how far they are apart."""
    table = Table(title="Dirac-GAN: eigenvalues at the equilibrium (of WGAN-GP on either side)")
    table.add_column("game")
    for name in ("measured", "theory", "error", "jump of the field"):
        table.add_column(name, justify="right")
    for game in games:
        wrong = error(game)
        mark = "" if wrong < TOLERANCE else "  WRONG"
        table.add_row(
            game.title,
            written(eigenvalues(game)),
            written(theory(game)),
            f"{wrong:.0e}{mark}",
            f"{jump(game):.3g}" if game.penalty == "wgan-gp" else "none",
        )
    return table


def games_picture(
    games: Sequence[Game] = GAMES, *, rate: float = 0.05, steps: int = 600
) -> Image.Image:
    """A panel a game: simultaneous gradient descent from (1, 1), θ to the right and ψ upwards."""
    panels = [
        draw_path(
            descend(game, (1.0, 1.0), rate=rate, steps=steps),
            extent=2.5,
            caption=f"{game.title}\nλ {written(theory(game))}",
        )
        for game in games
    ]
    return side_by_side(panels, columns=min(4, len(panels)))


def written(pair: Pair) -> str:
    """Two eigenvalues for a person: −0.25 ± 0.433i, or −0.134 and −1.87."""
    first, second = pair
    if abs(first.imag) > 1e-9:
        real = "" if abs(first.real) < 1e-9 else f"{_number(first.real)} "
        return f"{real}± {first.imag:.3g}i"
    return f"{_number(first.real)} and {_number(second.real)}"


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
