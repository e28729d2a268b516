from pathlib import Path

import pytest
from shard_helpers import write_shards

from dgan.data import pack_source


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits")
    pack_source("digits", out, samples_per_shard=700)
    return out


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return write_shards(tmp_path, [40, 17, 43])
