"""Shared by all tests: one thread a process, and digits to train on."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of scikit-learn's handwritten digits at 8×8, with labels."""
    from dgan.data import pack_source

    folder = tmp_path_factory.mktemp("digits")
    pack_source("digits", folder, samples_per_shard=600)
    return str(folder / "train-*.tar")
