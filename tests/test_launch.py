"""launch/: what a cluster user starts and edits."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import checkpoint_of, end, steps_kept, write_recipe
from launched import LAUNCH, environment, free_port, launched

SCRIPTS = ["torchrun.sh", "deepspeed.sh", "slurm/train.sbatch"]
FILES = [*SCRIPTS, "k8s/jobset.yaml", "sky.yaml"]
STARTED_BY = {"slurm/train.sbatch": "sbatch", "k8s/jobset.yaml": "kubectl apply", "sky.yaml": "sky"}

NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"}
TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
COUNT = {"type": "integer", "minimum": 1}


def table(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """A schema that knows all keys: a misspelled one would be ignored, or refused, far away."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


VOLUMES = several({"type": "object", "required": ["name"]})
CONTAINER = table(
    {"name": NAME, "image": {"type": "string"}, "command": TEXTS},
    workingDir={"type": "string"},
    # A number would be refused by the API server: environment variables are strings.
    env=several(table({"name": {"type": "string"}, "value": {"type": "string"}})),
    ports=several(table({"containerPort": COUNT})),
    resources=table({"limits": {"type": "object"}}),
    volumeMounts=several(table({"name": NAME, "mountPath": {"type": "string"}})),
)
POD = table(
    {"restartPolicy": {"enum": ["Never", "OnFailure"]}, "containers": several(CONTAINER)},
    terminationGracePeriodSeconds=COUNT,
    volumes=VOLUMES,
)
JOB = table(
    {"parallelism": COUNT, "completions": COUNT, "template": table({"spec": POD})},
    backoffLimit={"type": "integer"},
)
REPLICATED = table({"name": NAME, "replicas": COUNT, "template": table({"spec": JOB})})
JOBSET = table(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": table({"name": NAME}),
        "spec": table(
            {"replicatedJobs": several(REPLICATED)}, failurePolicy=table({"maxRestarts": COUNT})
        ),
    }
)
SKY = table(
    {
        "name": NAME,
        "num_nodes": COUNT,
        "resources": table(
            {"accelerators": {"type": "string", "pattern": r"^\w+:\d+$"}},
            use_spot={"type": "boolean"},
            job_recovery=table({"max_restarts_on_errors": COUNT}),
        ),
        "setup": {"type": "string"},
        "run": {"type": "string"},
    },
    workdir={"type": "string"},
    envs={"type": "object"},
    file_mounts={"type": "object"},
)


def read(name: str, schema: dict[str, Any]) -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    tree = yaml.safe_load((LAUNCH / name).read_text())
    jsonschema.validate(tree, schema)
    return tree


@pytest.mark.parametrize("name", FILES)
def test_a_file_begins_with_the_line_that_starts_it_and_can_be_read(name: str) -> None:
    lines = (LAUNCH / name).read_text().splitlines()
    first = lines[1] if lines[0].startswith("#!") else lines[0]
    assert re.match(r"# .*" + STARTED_BY.get(name, re.escape(f"launch/{name}")), first)
    assert len(lines) <= 60


def test_every_file_is_tested() -> None:
    found = {str(path.relative_to(LAUNCH)) for path in LAUNCH.rglob("*") if path.is_file()}
    assert found == set(FILES)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_sound(name: str) -> None:
    beside = Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, str(LAUNCH / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_jobset_is_one() -> None:
    jobset = read("k8s/jobset.yaml", JOBSET)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert int(variables["NODES"]) == job["parallelism"] == job["completions"]
    # JobSet names pods <set>-<job>-<index>-<pod>, under a service called as the set.
    name = jobset["metadata"]["name"]
    assert variables["MASTER_ADDR"] == f"{name}-{replicated['name']}-0-0.{name}"
    assert (LAUNCH.parent / container["command"][0]).is_file()
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_sky_task_is_one(tmp_path: Path) -> None:
    task = read("sky.yaml", SKY)
    # Its commands, run with a launcher that only says what it was given.
    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch" / "torchrun.sh"
    script.write_text('#!/bin/sh\necho "$NODES $RANKS $MASTER_ADDR $*"\n')
    script.chmod(0o755)
    sky = {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        **{key: str(value) for key, value in task["envs"].items()},
    }
    command = ["bash", "-euc", task["run"]]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(**sky), capture_output=True, text=True, check=True
    )
    assert done.stdout == "2 8 10.0.0.1 train digits --run.dir /shared/runs/digits\n"


def test_torchrun_trains(digits: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "run", digits)
    outcome = end(launched("torchrun.sh", "train", recipe))
    assert outcome.code == 0, outcome
    assert steps_kept(tmp_path / "run") == [2, 4]
    assert "torchrun --nproc-per-node 2" in outcome.out


def test_two_nodes_meet(digits: str, tmp_path: Path) -> None:
    """The same line on both, which are one machine here: only the address is said for them."""
    recipe = write_recipe(tmp_path, "run", digits)
    place = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "NODES": "2",
        "RANKS": "1",
    }
    nodes = [
        launched("torchrun.sh", "train", recipe, PET_LOCAL_ADDR="127.0.0.1", **place)
        for _ in range(2)
    ]
    outcomes = [end(node) for node in nodes]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert sum("done at step 4" in outcome.out for outcome in outcomes) == 1
    assert steps_kept(tmp_path / "run") == [2, 4]


def test_deepspeed_trains_on_the_nodes_of_a_hostfile(digits: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    recipe = write_recipe(tmp_path, "run", digits, train__precision="float32")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu"}
    nodes = [
        launched("deepspeed.sh", hostfile, recipe, NODE_RANK=str(rank), **place)
        for rank in range(2)
    ]
    outcomes = [end(node) for node in nodes]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert checkpoint_of(tmp_path / "run", 4).is_dir()
    assert 'strategy = "deepspeed"' in (tmp_path / "run" / "recipe.toml").read_text()
