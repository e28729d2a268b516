"""Runs the Triton kernels of gradient penalties and minibatch_stddev on the CPU, in a process of
their own, for Triton reads TRITON_INTERPRET when it decorates a kernel.

By hand: TRITON_INTERPRET=1 pytest tests/kernels/interpreted_penalty_values.py
"""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to interpret")

HERE = pathlib.Path(__file__).parent


@pytest.mark.parametrize("part", ["values", "routes"])
def test_interpreted(part):
    script = HERE / f"interpreted_penalty_{part}.py"
    command = [sys.executable, "-m", "pytest", str(script), "-q", "-x", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout[-2000:]
