"""Runs the Triton kernels on the CPU: in a process of their own, for Triton reads TRITON_INTERPRET
when it decorates a kernel, once and for the whole process.

By hand: TRITON_INTERPRET=1 pytest tests/kernels/interpreted_norm_act_values.py
"""

import os
import pathlib
import subprocess
import sys

import pytest
from interpreter import need_interpreter

need_interpreter()

HERE = pathlib.Path(__file__).parent
SCRIPTS = sorted(
    path.name
    for path in HERE.glob("interpreted_*.py")
    if not path.stem.endswith("_ranks")  # those `test_kernels_over_ranks.py` runs
)


@pytest.mark.timeout(1800)  # some take two minutes of a whole core
@pytest.mark.parametrize("script", SCRIPTS)
def test_interpreted(script):
    command = [sys.executable, "-m", "pytest", script, "-v", "-x", "-p", "no:cacheprovider"]
    # Verbose: a test that ends the process is known by its name, which stands before its end.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout[-2000:]
