"""Runs attention_jvp's Triton kernels on the CPU: in a process of their own, for Triton reads
TRITON_INTERPRET when it decorates a kernel, once and for the whole process.

By hand: TRITON_INTERPRET=1 pytest tests/kernels/interpreted_attention_jvp.py
"""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to interpret")

HERE = pathlib.Path(__file__).parent


def test_interpreted():
    script = HERE / "interpreted_attention_jvp.py"
    command = [sys.executable, "-m", "pytest", str(script), "-q", "-x", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout[-2000:]
