"""The page: sections of HTML around an account of a run."""

import time
from datetime import datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

from dgan.recipe_file import default_settings, settings
from dgan.recipes import RECIPES
from dgan.report.chart import short
from dgan.report.curves import score_charts, training_charts
from dgan.report.pictures import chosen, data_uri
from dgan.report.reading import KNOWN, Account, Event

STATES = {
    "running": "running",
    "done": "done",
    "stopped": "stopped before its last step",
    "empty": "just started",
}

SHOWN_IN_A_ROW = 3
"""Of events of the same kind that follow each other; of more, their number is told."""


def page(account: Account) -> str:
    """The whole document."""
    folder = Path(__file__).parent
    name = escape(account.recipe.name)
    sections = [
        samples(account),
        curves(account),
        scores(account),
        health(account),
        recipe(account),
        environment(account),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · dgan report</title><style>{(folder / 'page.css').read_text()}</style>"
        f"</head><body><main>{head(account)}{''.join(sections)}"
        f"<footer>written {time.strftime('%Y-%m-%d %H:%M:%S')} by <code>dgan report "
        f"{escape(str(account.directory))}</code></footer></main>"
        f"<script>{(folder / 'page.js').read_text()}</script></body></html>\n"
    )


def head(account: Account) -> str:
    """What the run is, how far it is, and the numbers that one looks for first."""
    plan = account.recipe
    size = f"{plan.data.resolution}×{plan.data.resolution}"
    if plan.data.kind == "audio":
        size = f"{plan.data.resolution} samples at {plan.data.rate} Hz"
    if plan.data.kind == "text":
        size = f"{plan.data.resolution} characters of {plan.data.channels}"
    given = f"{plan.data.classes} classes" if plan.data.classes else "unconditional"
    if plan.data.embedding:
        given = f"embeddings of {plan.data.encoder or plan.data.embedding}"
    kind = f"{size}, {given}" if plan.data.kind != "points" else f"points of {plan.data.shards}"
    players = " / ".join(dict.fromkeys((plan.generator.network, plan.discriminator.network)))
    what = f"{players} · {plan.task.loss} · {kind} · batch {plan.train.batch_size}"
    facts = {"step": f"{account.step:,} <small>of {plan.train.steps:,}</small>"}
    if account.records:
        facts["images seen"] = short(1000 * account.records[-1]["kimg"])
    for score in [name for name in (plan.checkpoint.best, "modes") if _having(account, name)][:1]:
        best = _best(account, score)
        facts[f"best {score}"] = f"{best[score]:.4g} <small>at step {best['step']:,}</small>"
    if account.trained:
        speeds = sorted(record["images_per_second"] for record in account.trained)
        facts["images a second"] = short(speeds[len(speeds) // 2])
    if account.times:
        facts["from start to end, pauses included"] = _duration(account.times)
    if account.checkpoints:
        facts["newest checkpoint"] = f"step {account.checkpoints[-1]:,}"
    tiles = "".join(f"<div><b>{value}</b><span>{key}</span></div>" for key, value in facts.items())
    share = min(1.0, account.step / plan.train.steps)
    return (
        f'<header><h1>{escape(plan.name)} <em class="{account.state}">{STATES[account.state]}</em>'
        f"</h1><p>{escape(what)}</p>"
        f'<div class="progress"><i style="width:{100 * share:.1f}%"></i></div>'
        f'<div class="tiles">{tiles}</div></header>'
    )


def samples(account: Account) -> str:
    """A picture for each of some steps, under a slider, and the data beside it."""
    if not account.grids:
        return _section("Samples", '<p class="none">No picture is drawn yet.</p>')
    grids = chosen(account.grids)
    frames = "".join(
        f'<img data-step="{step:,}" alt="samples of step {step}" src="{data_uri(path)}"'
        f"{'' if index == len(grids) - 1 else ' hidden'}>"
        for index, (step, path) in enumerate(grids)
    )
    last = len(grids) - 1
    controls = (
        '<button type="button" aria-label="play">▶</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" aria-label="step">'
        if last
        else ""
    )
    shown = (
        f'<figure class="timeline"><div>{frames}</div><figcaption>{controls}'
        f"<output>step {grids[-1][0]:,}</output></figcaption></figure>"
    )
    reals = account.directory / "samples" / "reals.png"
    if reals.exists():
        shown += (
            f'<figure><div><img alt="real samples" src="{data_uri(reals)}"></div>'
            "<figcaption>the data</figcaption></figure>"
        )
    return _section("Samples", f'<div class="pictures">{shown}</div>')


def curves(account: Account) -> str:
    """Scores, and everything that is logged, over steps."""
    charts = score_charts(account) + training_charts(account)
    if not charts:
        return _section("Curves", '<p class="none">No step is logged yet.</p>')
    return _section("Curves", f'<div class="charts">{"".join(charts)}</div>')


def scores(account: Account) -> str:
    """A row for each evaluation, the best of each score marked; and those made afterwards."""
    parts = []
    if account.scored:
        parts.append(_score_table(account.scored, "step"))
        facts = account.scored[-1]
        known = ("features", "shards", "samples", "real_samples", "points")
        parts.append(_caption({key: facts[key] for key in known if key in facts}))
    for name, found in account.evaluations.items():
        parts.append(f"<h3>{escape(name)}</h3>" + _score_table([found], "step"))
        known = ("features", "shards", "samples", "real_samples")
        parts.append(_caption({key: found[key] for key in known if key in found}))
    none = '<p class="none">Nothing was scored yet.</p>'
    return _section("Scores", "".join(parts) or none)


def health(account: Account) -> str:
    """Alarms, rollbacks, skipped samples, resumes: what the log has besides progress."""
    rung = [record for record in account.records if "divergence/alarm" in record]
    last = account.trained[-1] if account.trained else {}
    facts = {
        "alarms": len(rung),
        "rollbacks": int(last.get("divergence/rollbacks", 0)),
        "samples skipped": int(last.get("data/skipped", 0)),
        "resumed": sum(event.kind == "resume" for event in account.events),
    }
    tiles = "".join(
        f'<div class="{"bad" if value and key != "resumed" else ""}"><b>{value}</b>'
        f"<span>{key}</span></div>"
        for key, value in facts.items()
    )
    rows = "".join(_event(*each) for each in _grouped(account.events))
    listed = f'<ul class="events">{rows}</ul>' if rows else ""
    return _section("Health", f'<div class="tiles small">{tiles}</div>{listed}')


def recipe(account: Account) -> str:
    """What differs from the recipe of that name, and from the defaults; all of it in a fold."""
    mine, defaults = settings(account.recipe), default_settings()
    parts = []
    if account.recipe.name in RECIPES:
        theirs = settings(RECIPES[account.recipe.name]())
        rows = _differing(mine, theirs)
        title = f"<h3>Unlike the recipe <code>{escape(account.recipe.name)}</code></h3>"
        parts.append(title + (_pairs(rows) if rows else '<p class="none">Nothing.</p>'))
    parts.append("<h3>Unlike the defaults</h3>" + _pairs(_differing(mine, defaults)))
    text = escape(account.recipe_text)
    parts.append(f"<details><summary>recipe.toml</summary><pre>{text}</pre></details>")
    return _section("Recipe", "".join(parts))


def environment(account: Account) -> str:
    """What the run ran on; a row for each start where they differ."""
    if not account.starts:
        return _section("Environment", '<p class="none">environment.jsonl is not there.</p>')
    starts = [{k: v for k, v in start.items() if v is not None} for start in account.starts]
    same = [k for k, v in starts[-1].items() if all(start.get(k) == v for start in starts)]
    parts = [_pairs({key: starts[-1][key] for key in same})]
    differing = list(dict.fromkeys(k for start in starts for k in start if k not in same))
    if differing:
        rows = [[_text(start.get(key, "–")) for key in differing] for start in starts]
        parts.append(f"<h3>Of each start</h3>{_table(differing, rows)}")
    return _section("Environment", "".join(parts))


def _score_table(records: list[dict[str, Any]], first: str) -> str:
    names = [name for name in KNOWN if any(name in record for record in records)]
    varying = [name for name in names if len({record.get(name) for record in records}) > 1]
    best = {name: _extreme(records, name) for name in varying}
    rows = []
    for record in records:
        cells = [f"{record.get(first, 0):,}"]
        for name in names:
            value = f"{record[name]:.4g}" if name in record else "–"
            is_best = best.get(name) is record
            cells.append(f'<b class="best" title="best">{value}</b>' if is_best else value)
        rows.append(cells)
    arrows = {"lower": " ↓", "higher": " ↑", "": ""}
    heads = [first] + [name.replace("_", " ") + arrows[KNOWN[name].better] for name in names]
    titles = [""] + [KNOWN[name].means for name in names]
    return _table(heads, rows, titles)


def _extreme(records: list[dict[str, Any]], score: str) -> dict[str, Any] | None:
    """The record with the best value, the first if several have it; None if none is better."""
    having = [r for r in records if score in r and r[score] == r[score]]  # a NaN is not
    if not having or not KNOWN[score].better:
        return None
    choose = min if KNOWN[score].better == "lower" else max
    return choose(having, key=lambda record: record[score])


def _having(account: Account, score: str) -> bool:
    return score in KNOWN and _extreme(account.scored, score) is not None


def _best(account: Account, score: str) -> dict[str, Any]:
    found = _extreme(account.scored, score)
    assert found is not None
    return found


def _grouped(events: list[Event]) -> list[tuple[Event, int]]:
    """Events, of a long row of one kind the first few; and how many more the last stands for."""
    shown: list[tuple[Event, int]] = []
    in_a_row = 0
    for event in events:
        in_a_row = in_a_row + 1 if shown and shown[-1][0].kind == event.kind else 1
        if event.kind == "skip" and in_a_row > SHOWN_IN_A_ROW:
            shown[-1] = (shown[-1][0], in_a_row - SHOWN_IN_A_ROW)
        else:
            shown.append((event, 0))
    return shown


def _event(event: Event, more: int) -> str:
    rest = f" <small>and {more} more</small>" if more else ""
    return (
        f'<li class="{event.kind}"><time>{event.time}</time><span>{event.kind}</span>'
        f"<p>{escape(event.text)}{rest}</p></li>"
    )


def _differing(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in mine.items() if key not in theirs or theirs[key] != value}
    own |= {key: "not set" for key in theirs if key not in mine}
    return {key: value for key, value in own.items() if key != "run.dir"}


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in values.items()
    )
    return f'<dl class="pairs">{rows}</dl>'


def _table(heads: list[str], rows: list[list[str]], titles: list[str] | None = None) -> str:
    explained = zip(heads, titles or [""] * len(heads))
    top = "".join(f'<th title="{escape(title)}">{escape(head)}</th>' for head, title in explained)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="table">{table}</div>'


def _caption(facts: dict[str, Any]) -> str:
    told = " · ".join(f"{key.replace('_', ' ')}: {_text(value)}" for key, value in facts.items())
    return f'<p class="caption">{told}</p>'


def _section(title: str, content: str) -> str:
    return f'<section id="{title.lower()}"><h2>{title}</h2>{content}</section>'


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} × {escape(str(name))}" for name, count in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(each) for each in value) or "none"
    return escape(f"{value:g}" if isinstance(value, float) else str(value))


def _duration(times: tuple[str, ...]) -> str:
    first, last = (datetime.strptime(each, "%Y-%m-%d %H:%M:%S") for each in times)
    seconds = timedelta(seconds=round((last - first).total_seconds()))
    return str(seconds)
