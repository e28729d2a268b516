# Everything that a user or CI runs. Each target does its own set-up; `make clean` starts over.
#   make demo    train the digits recipe on two sharded ranks, evaluate, show samples
#   make test    the tests
#   make test-cluster   a real Slurm, a real S3 server, and nodes that lose their network, on this
#                       machine; the first and last as root
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
FILES  := pyproject.toml constraints.txt

.PHONY: setup demo test test-cluster lint bench gpu clean

setup: $(VENV)/.installed

# torch comes first and alone: on a machine with a GPU the same line installs its CUDA build.
$(VENV)/.installed: $(FILES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dgan needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

data/digits/train-000000.tar: | $(VENV)/.installed
	$(BIN)/dgan data pack digits data/digits

demo: $(VENV)/.installed data/digits/train-000000.tar
	$(BIN)/torchrun --nproc-per-node 2 -m dgan train digits

# Two at a time, a file in one process: most tests keep one core busy.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m 'not cluster' --numprocesses 2 --dist loadfile

# Debian: slurmctld slurmd slurm-client munge; ceph-mon ceph-osd ceph-common radosgw. What is not
# there is skipped.
test-cluster: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m cluster

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev data/digits/train-000000.tar
	$(BIN)/python benchmarks/training/step.py

# On a machine that has torch and triton already, `make gpu PYTHON=python3 VENV=` uses those.
gpu:
	bash benchmarks/gpu.sh

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
