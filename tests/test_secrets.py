"""Addresses that say who may read: what is refused, and what is filled in from the environment."""

import base64
import sys
from pathlib import Path

import pytest
from commands import dgan, steps_kept, write_recipe
from tiny import tiny

from dgan.data import ShardDataset
from dgan.data.location import fill_in, holds_secret
from dgan.recipe_file import from_toml, to_toml

sys.path.append(str(Path(__file__).parent / "data"))
from web_server import serving

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    "address",
    [
        "https://user:hunter2@host/x.tar",
        "https://hunter2@host/{000..099}.tar",
        "https://$NAME:hunter2@host/x.tar",
        "s3://key:hunter2@bucket/x.tar",
        "https://host/x.tar?X-Amz-Signature=hunter2",
        "https://host/x.tar?download=1&apikey=hunter2",
        "https://host/x.tar?hunter2",
        "https://host/it's.tar?sig=hunter2",
        "https://host/x.tar?$SIGNATURE&sig=hunter2",
    ],
)
def test_secrets_are_refused_before_anything_is_written(
    capsys: Capture, tmp_path: Path, digits: str, address: str
) -> None:
    assert holds_secret(address)
    for shards in ([address], [digits, address]):
        options = ["--data.shards", *shards, "--run.dir", tmp_path / "run"]
        outcome = dgan(capsys, "train", "digits", *options)
        assert "'https://host/x.tar?$SIGNATURE'" in outcome.error()
        assert "hunter2" not in outcome.out + outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "address",
    [
        "data/mine/train-*.tar",
        "data/a@b/x-?.tar",
        "https://host/{000..099}.tar",
        "https://host/a@b.tar?download=1&versionId=3",
        "https://$NAME:$PASSWORD@host/x.tar?$SIGNATURE",
        "https://host/x.tar?sig=$SIGNATURE",
        "s3://bucket/train-??.tar",
    ],
)
def test_what_is_no_secret_is_not_refused(address: str) -> None:
    assert not holds_secret(address)


def test_variables_are_filled_in_where_secrets_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "me@work")
    monkeypatch.setenv("SIGNATURE", "sv=1&sig=a%2Fb")
    assert fill_in("https://$NAME:$NAME@host/$web/x.tar") == (
        "https://me%40work:me%40work@host/$web/x.tar"
    )
    assert fill_in("https://host/x.tar?$SIGNATURE") == "https://host/x.tar?sv=1&sig=a%2Fb"
    assert fill_in("https://host/x.tar?s=$NAME&v=$SIGNATURE") == (
        "https://host/x.tar?s=me@work&v=sv=1&sig=a%2Fb"
    )
    for plain in ("s3://bucket/$NAME-?.tar", "data/$NAME?.tar", "https://host/x.tar"):
        assert fill_in(plain) == plain
    with pytest.raises(ValueError, match=r"names \$NOTHING, but there is no such environment"):
        ShardDataset("https://host/x.tar?sig=$NOTHING")


def test_a_run_on_shards_behind_a_password_keeps_it_to_itself(
    capsys: Capture, tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SHARDS_USER", "me")
    monkeypatch.setenv("SHARDS_PASSWORD", "hunter2")
    monkeypatch.setenv("SHARDS_TOKEN", "token=hunter3")
    with serving(Path(digits).parent) as server:
        host = server.url.removeprefix("http://")
        shards = f"http://$SHARDS_USER:$SHARDS_PASSWORD@{host}/train-000000.tar?$SHARDS_TOKEN"
        recipe = write_recipe(tmp_path, "run", shards, train__steps=2)
        outcome = dgan(capsys, "train", recipe)
        assert outcome.code == 0, outcome
        assert all("?token=hunter3" in path for path, *_ in server.requests)
        pair = "Basic " + base64.b64encode(b"me:hunter2").decode()
        assert set(server.authorizations) == {pair}
        assert from_toml(tmp_path / "run" / "recipe.toml").data.shards == shards
        resumed = dgan(capsys, "train", tmp_path / "run", "--train.steps", 4)
        assert resumed.code == 0, resumed
    assert 4 in steps_kept(tmp_path / "run")
    texts = [outcome.out, outcome.err, resumed.out, resumed.err]
    assert not any("hunter" in text for text in texts)
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"hunter" not in path.read_bytes(), path


def test_a_recipe_of_before_can_be_given_the_address_anew(
    capsys: Capture, tmp_path: Path, digits: str
) -> None:
    """One that was saved with a secret in it."""
    path = tmp_path / "old.toml"
    old = tiny("https://u:hunter2@host/x.tar", str(tmp_path / "run"), "mlp", train__steps=1)
    path.write_text(to_toml(old))
    assert "recipe.toml would show" in dgan(capsys, "train", path).error()
    assert dgan(capsys, "train", path, "--data.shards", digits).code == 0
