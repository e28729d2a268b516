"""The report of real runs: ended, going on, just begun, of a toy; and as a browser shows it."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import dgan, write_recipe
from PIL import Image

from dgan.data import pack_source
from dgan.recipe_file import to_toml
from dgan.recipes import digits as digits_recipe
from dgan.recipes import find
from dgan.report import write_report
from dgan.report.pictures import MOST_FRAMES, chosen, data_uri
from dgan.report.reading import events_of
from dgan.toy import toy_recipe
from dgan.train import train

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), "")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped once, and scored three times."""
    folder = tmp_path_factory.mktemp("runs")
    pack_source("digits", folder / "few", limit=60)
    plan = {"evaluation__every": 3, "evaluation__samples": 20, "samples__every": 2}
    shards = str(folder / "few" / "train-*.tar")
    recipe = find(str(write_recipe(folder, "run", shards, "mlp", train__steps=3, **plan)))
    train(recipe)
    train(replace(recipe, train=replace(recipe.train, steps=6)))
    return folder / "run"


def report(run: Path, out: Path) -> str:
    size = write_report(run, out)
    assert out.stat().st_size == size < 3e6
    return out.read_text()


def test_nothing_is_fetched(run: Path, tmp_path: Path) -> None:
    page = report(run, tmp_path / "x.html")
    assert "://" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', page)
    assert len(sources) > 3
    assert all(source.startswith("data:image/") for source in sources)


def test_it_shows_what_the_run_recorded(run: Path, tmp_path: Path) -> None:
    page = report(run, tmp_path / "x.html")
    assert "<title>tiny · dgan report</title>" in page
    assert 'class="done">done' in page
    for title in ("Losses", "Logits", "Speed", "Gradient norms", "fid", "coverage"):
        assert f'aria-label="{title}"' in page, title
    assert re.findall(r'<img data-step="(\d+)"', page) == ["0", "2", "3", "4", "6"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scored = [record for record in records if "fid" in record]
    assert [record["step"] for record in scored] == [0, 3, 6]
    best = min(scored, key=lambda record: record["fid"])
    assert f'<b class="best" title="best">{best["fid"]:.4g}</b>' in page
    assert page.count('title="best"') <= 5
    # The run went on once, from a checkpoint of step 3: said, and marked in the curves.
    assert "<b>1</b><span>resumed</span>" in page
    assert re.search(r'class="mark resume" x1="\d', page)
    assert "<dt>train.batch_size</dt><dd>16</dd>" in page
    assert "<dt>train.seed</dt>" not in page  # it is the default
    assert html.escape((run / "recipe.toml").read_text()) in page


def test_a_run_records_what_it_runs_on_at_each_start(run: Path, tmp_path: Path) -> None:
    starts = [json.loads(line) for line in (run / "environment.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 3]
    assert starts[0]["ranks"] == 1
    assert sum(starts[0]["devices"].values()) == 1
    page = report(run, tmp_path / "x.html")
    assert f"<dt>torch</dt><dd>{starts[0]['torch']}</dd>" in page
    assert "Of each start" in page


def test_a_run_that_goes_on(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    recipe = replace(find(str(copy)), name="<b>&")
    longer = replace(recipe, train=replace(recipe.train, steps=100))
    (copy / "recipe.toml").write_text(to_toml(longer))
    assert ">stopped before its last step<" in report(copy, tmp_path / "x.html")
    (copy / ".lock").write_text("{}")
    with (copy / "metrics.jsonl").open("a") as lines:
        lines.write(
            '{"step": 7, "kimg": 0.112, "discriminator/loss": NaN, "images_per_second": 1.0}'
        )
        lines.write('\n{"step": 8, "ki')  # half a line
    page = report(copy, tmp_path / "x.html")
    assert 'class="running">running' in page
    assert "<b>7 <small>of 100</small></b>" in page
    assert "<title>&lt;b&gt;&amp; · dgan report</title>" in page
    os.utime(copy / ".lock", (0, 0))
    assert 'class="stopped"' in report(copy, tmp_path / "x.html")


def test_a_run_that_has_just_begun(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    run.mkdir()
    recipe = digits_recipe()
    (run / "recipe.toml").write_text(to_toml(replace(recipe, train=replace(recipe.train, seed=5))))
    outcome = dgan(capsys, "report", run)
    assert outcome.code == 0, outcome
    page = (run / "report.html").read_text()
    assert 'class="empty">just started' in page
    assert "No step is logged yet." in page
    unlike = page[page.index("Unlike the recipe") : page.index("Unlike the defaults")]
    assert re.findall(r"<dt>(\S+)</dt><dd>(\S+)</dd>", unlike) == [("train.seed", "5")]
    assert "no recipe at" in dgan(capsys, "report", tmp_path / "nothing").error()


def test_a_toy(tmp_path: Path) -> None:
    recipe = toy_recipe("ring", "relativistic", steps=20)
    train(replace(recipe, run=replace(recipe.run, dir=str(tmp_path / "run"))))
    page = report(tmp_path / "run", tmp_path / "x.html")
    assert "points of ring" in page
    for title in ("modes", "high quality", "distance", "Losses"):
        assert f'aria-label="{title}"' in page, title


LOG = """\
2026-01-02 03:04:05 step 10/20  kimg 1.0  5 images/s  left 0:00:01
2026-01-02 03:04:06 step 10  fid 3.2
2026-01-02 03:04:07 skipped sample 7 of x.tar on rank 0: damaged
2026-01-02 03:04:08 step 12: the discriminator is saturated: tells all apart
step 12: rolled back to run/checkpoints/step-000000008 (rollback 1 of at most 3); going on
2026-01-02 03:04:09 going on from run/checkpoints/step-000000012
"""


def test_the_log_without_its_progress() -> None:
    events = events_of(LOG.splitlines())
    assert [(event.kind, event.step) for event in events] == [
        ("skip", None), ("alarm", 12), ("resume", 12),
    ]  # fmt: skip
    assert events[1].text.endswith("of at most 3); going on")
    assert events[1].time == "2026-01-02 03:04:08"


def test_pictures_are_few_and_small(tmp_path: Path) -> None:
    assert chosen(range(5)) == [0, 1, 2, 3, 4]
    some = chosen(range(1000))
    assert (len(some), some[0], some[-1]) == (MOST_FRAMES, 0, 999)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    large = data_uri(tmp_path / "large.png")
    assert large.startswith("data:image/webp;base64,")
    assert len(large) < 0.2 * (tmp_path / "large.png").stat().st_size
    assert data_uri(tmp_path / "small.png").startswith("data:image/")


def chromium(page: Path, *options: str) -> str:
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,1400"]
    switches += [f"--user-data-dir={page.parent / 'profile'}", *options]
    done = subprocess.run(
        [CHROMIUM, *switches, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not CHROMIUM, reason=f"there is none of {BROWSERS}")
def test_a_browser_shows_it(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "x.html"
    text = report(run, page)
    # The slider is moved by a script of the test: the page's own must answer.
    move = "const slider = document.querySelector('input'); slider.value = 0;"
    move += "slider.dispatchEvent(new Event('input'))"
    page.write_text(text.replace("</body>", f"<script>{move}</script></body>"))
    dom = chromium(page, "--dump-dom")
    assert "<title>tiny · dgan report</title>" in dom
    assert re.search(r'<path class="line s0" d="M[\d. ML]+', dom)
    assert "<output>step 0</output>" in dom
    pictures = re.findall(r'<img data-step="(\d+)"([^>]*)>', dom)
    assert [step for step, rest in pictures if "hidden" not in rest] == ["0"]
    write_report(run, page)
    chromium(page, f"--screenshot={tmp_path / 'x.png'}")
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (1400, 1000, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    # The samples' picture, darker than the paper, is there, and so is the curves' blue.
    assert (pixels[..., 2] > pixels[..., 0] + 80).sum() > 300
    assert (pixels.max(-1) < 200).mean() > 0.05
