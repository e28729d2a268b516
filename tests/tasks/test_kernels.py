"""`train.kernels` reaches everything that a step computes: in a process where kernels run on CPUs.

Triton reads TRITON_INTERPRET once, when it decorates a kernel.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "interpreted_kernels.py"


def test_the_flag_reaches_everything() -> None:
    pytest.importorskip("triton", reason="triton is not installed: there are no kernels")
    command = [sys.executable, "-m", "pytest", str(SCRIPT), "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
