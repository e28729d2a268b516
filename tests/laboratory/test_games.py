"""What `dgan toy dirac` prints and draws."""

import io

import numpy as np
from rich.console import Console

from dgan.laboratory import dirac
from dgan.laboratory.dirac import GAMES, Game
from dgan.laboratory.games import TOLERANCE, error, games_picture, games_table, written


def printed(games: list[Game]) -> list[str]:
    text = io.StringIO()
    Console(width=160, file=text).print(games_table(games))
    return text.getvalue().splitlines()


def test_every_game_that_is_shown_agrees_with_the_theory() -> None:
    assert {game.penalty for game in GAMES} == {"none", "r1", "r1+r2", "wgan-gp"}
    assert max(map(error, GAMES)) < TOLERANCE
    lines = printed(list(GAMES))
    assert not any("WRONG" in line for line in lines)
    (line,) = [line for line in lines if "r1, 0.5" in line]
    assert line.count("−0.25 ± 0.433i") == 2
    (line,) = [line for line in lines if "wgan-gp, 0.25" in line]
    assert line.count("−0.25 ± 0.968i") == 2
    assert " 1 " in line


def test_a_wrong_theory_would_be_seen(monkeypatch) -> None:
    monkeypatch.setitem(dirac.SLOPES, "hinge", 1.01)
    assert any("WRONG" in line for line in printed([Game(loss="hinge")]))


def test_numbers_are_written_for_people() -> None:
    assert written((0.5j, -0.5j)) == "± 0.5i"
    assert written((-0.25 + 0.433j, -0.25 - 0.433j)) == "−0.25 ± 0.433i"
    assert written((-0.134 + 0j, -1.866 + 0j)) == "−0.134 and −1.87"


def test_a_panel_a_game() -> None:
    sheet = games_picture([*GAMES[:2], GAMES[2]], steps=30)
    assert sheet.size == (3 * 480, 480)
    panels = np.split(np.asarray(sheet).astype(int), 3, axis=1)
    # The path is darkest at its end, and in each panel another one.
    assert len({panel.tobytes() for panel in panels}) == 3
