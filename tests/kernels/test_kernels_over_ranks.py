"""Statistics over ranks, and sharded networks: real processes, on the CPU."""

import os
import pathlib
import subprocess
import sys

import pytest
from interpreter import need_interpreter
from ports import free_port

need_interpreter()

HERE = pathlib.Path(__file__).parent


SCRIPTS = sorted(path.name for path in HERE.glob("interpreted_*_ranks.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_ranks(script):
    port = free_port()
    command = [sys.executable, str(HERE / script), str(port)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=HERE, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert "ranks agree" in done.stdout
