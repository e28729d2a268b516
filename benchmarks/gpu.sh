#!/usr/bin/env bash
# Everything that needs a GPU, the most telling first: kernel tests, kernel and step benchmarks.
# usage: make gpu [PYTHON=python3] [OUT=folder]     results go to OUT, one file each as it is done
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-benchmarks/results/$("$python" -c 'import sys; sys.path.insert(0, "benchmarks"); import report; print(report.device())')}
mkdir -p "$out"
failed=0
step() { echo "== $*"; "$@" || { failed=1; echo "== failed: $*"; }; }
step "$python" -m pytest -q tests/kernels -m gpu
step "$python" benchmarks/kernels/run.py --out "$out"
step "$python" benchmarks/kernels/attention_jvp.py --out "$out"
step "$python" benchmarks/kernels/spectral_norm.py --out "$out"
if "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    [ -e data/digits/train-000000.tar ] || step "$python" -m dgan data pack digits data/digits
    step "$python" benchmarks/training/step.py --out "$out"
fi
echo "results in $out"
exit $failed
