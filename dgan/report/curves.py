"""Which curves a run has, and which of them share a chart."""

from dgan.report.chart import LOG_FROM, Mark, Series, chart
from dgan.report.reading import KNOWN, Account

GROUPS: dict[str, dict[str, str]] = {
    "Losses": {"discriminator/loss": "discriminator", "generator/loss": "generator"},
    "Logits": {"discriminator/real_logits": "real", "discriminator/fake_logits": "generated"},
    "Accuracy and diversity": {
        "discriminator/accuracy": "pairs in order",
        "discriminator/diversity": "variance over the real",
    },
    "Squared gradients": {
        "discriminator/r1": "r1, at real",
        "discriminator/r2": "r2, at generated",
    },
    "Penalty": {"discriminator/penalty": "Penalty"},
    "Gradient norms": {
        "discriminator/gradient_norm": "discriminator",
        "generator/gradient_norm": "generator",
    },
    "Speed": {"images_per_second": "Speed"},
}
"""Charts that every run has, and what their lines are called."""

IMPLIED = ("step", "kimg", "points", "samples", "real_samples", "discriminator/adversarial")
IMPLIED += ("discriminator/real_signs",)
"""Numbers of the records that are shown elsewhere, or say nothing new."""


def score_charts(account: Account) -> list[str]:
    """A chart for each score that the run was given while it trained."""
    names = [name for name in KNOWN if any(name in record for record in account.scored)]
    charts = []
    for name in names:
        line = _series(account.scored, name, name.replace("_", " "))
        better = KNOWN[name].better
        note = f"{better} is better" if better else ""
        # What is to fall does so by ratios.
        log_from = 5.0 if better == "lower" else LOG_FROM
        marks = marks_of(account)
        charts.append(chart(line.name, [line], marks=marks, note=note, log_from=log_from))
    return charts


def training_charts(account: Account) -> list[str]:
    """Charts of what is logged with each step; what no group names has one of its own."""
    marks, records = marks_of(account), account.trained
    numbers = {
        key: None
        for record in records
        for key, value in record.items()
        if isinstance(value, int | float)
    }
    charts = []
    for title, names in GROUPS.items():
        lines = [_series(records, key, name) for key, name in names.items() if key in numbers]
        note = "images a second" if title == "Speed" else ""
        if lines:
            charts.append(chart(title, lines, marks=marks, note=note))
    grouped = {key for names in GROUPS.values() for key in names}
    for key in numbers:
        line = _series(records, key, key)
        # A count that stays 0, a schedule that stands still: nothing to see.
        if key not in (*grouped, *IMPLIED) and len(set(line.values)) > 1:
            charts.append(chart(key, [line], marks=marks))
    return charts


def marks_of(account: Account) -> list[Mark]:
    """Where the run went on, and where an alarm rang or it was rolled back."""
    found = {
        (event.step, event.kind)
        for event in account.events
        if event.kind in ("resume", "alarm") and event.step is not None
    }
    found |= {(r["step"], "alarm") for r in account.records if "divergence/alarm" in r}
    return [Mark(step, kind) for step, kind in sorted(found)]


def _series(records: list[dict], key: str, name: str) -> Series:
    having = [record for record in records if key in record]
    return Series(name, [r["step"] for r in having], [float(r[key]) for r in having])
