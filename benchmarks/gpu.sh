#!/usr/bin/env bash
# Everything that needs a GPU, within 9 minutes: kernel tests, kernel and step benchmarks.
#   make gpu [PYTHON=python3] [OUT=folder] [DEADLINE=seconds]
# All results go to OUT, one file each as it is done. A step that is done is not done again, so that
# the same command goes on where a lent GPU was taken away; the table comes last, also then.
# Without a GPU it says so, runs the smallest sizes in Triton's interpreter, and keeps no results.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
end=$((SECONDS + ${DEADLINE:-520}))
failed=0

left() { echo $((end - SECONDS)); }

# step LIMIT COMMAND...: for LIMIT seconds at the most, and no longer than there are.
step() {
    local limit=$1 && shift
    [ "$limit" -le "$(left)" ] || limit=$(left)
    if [ "$limit" -le 0 ]; then echo "== no time left for: $*" && failed=1 && return 1; fi
    echo "== $* (${limit} s at most)"
    timeout --kill-after=10 "$limit" "$@" || { failed=1 && echo "== failed: $*" && return 1; }
}

# once NAME LIMIT COMMAND...: unless it has succeeded before; NAME is a file's or a mark in OUT.
once() {
    local mark=$out/$1 && shift
    if [ -e "$mark" ]; then echo "== there already: $mark" && return; fi
    if step "$@"; then [ -e "$mark" ] || touch "$mark"; fi
}

if ! "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    echo "no GPU here: nothing is timed, and no results are kept"
    out=$(mktemp -d) && trap 'rm -rf "$out"' EXIT
    step 300 "$python" benchmarks/kernels/run.py
    TRITON_INTERPRET=1 step 120 "$python" benchmarks/kernels/stylegan.py
    step 120 "$python" benchmarks/kernels/attention_jvp.py --lengths 128
    step 120 "$python" benchmarks/kernels/spectral_norm.py --out "$out"
    exit $failed
fi

out=${OUT:-benchmarks/results/$("$python" -c 'import sys; sys.path.insert(0, "benchmarks"); import report; print(report.device())')}
mkdir -p "$out"
# What is most telling first; the tests last of what is short, for they compile every kernel.
once stylegan.passed 40 "$python" benchmarks/kernels/stylegan.py --device cuda
step 190 "$python" benchmarks/kernels/run.py --out "$out" --seconds 150
once attention_jvp.json 60 "$python" benchmarks/kernels/attention_jvp.py --out "$out"
once kernels-spectral-norm.json 30 "$python" benchmarks/kernels/spectral_norm.py --out "$out"
once tests.passed 150 "$python" -m pytest -q tests/kernels -m gpu
[ -e data/digits/train-000000.tar ] || step 30 "$python" -m dgan data pack digits data/digits
once training-step.json 60 "$python" benchmarks/training/step.py --out "$out"
once training-compiled.json 120 "$python" benchmarks/training/compiled_blocks.py --out "$out"
once training-parts.json 60 "$python" benchmarks/training/parts.py --out "$out"
[ "$(left)" -lt 60 ] || step "$(left)" "$python" benchmarks/kernels/run.py --out "$out" --seconds $(($(left) - 40))
if "$python" -c 'import matplotlib' 2> /dev/null; then "$python" benchmarks/kernels/plot.py "$out"; fi
"$python" benchmarks/kernels/run.py --out "$out" --table
echo "results in $out"
exit $failed
