"""Shared by all tests: one thread a process, and where the real data sets may lie."""

from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the checkout; tests that need them are skipped elsewhere."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets are not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of scikit-learn's handwritten digits at 8×8, with labels."""
    from dgan.data import pack_source

    folder = tmp_path_factory.mktemp("digits")
    pack_source("digits", folder, samples_per_shard=600)
    return str(folder / "train-*.tar")
