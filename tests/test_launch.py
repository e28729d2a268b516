"""launch/: what a cluster user starts and edits."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from commands import checkpoint_of, end, steps_kept, write_recipe
from launched import LAUNCH, environment, launched
from ports import free_port

SCRIPTS = ["torchrun.sh", "deepspeed.sh", "slurm/train.sbatch"]
FILES = [*SCRIPTS, "k8s/jobset.yaml", "sky.yaml"]
STARTED_BY = {"slurm/train.sbatch": "sbatch", "k8s/jobset.yaml": "kubectl apply", "sky.yaml": "sky"}

JOBSET = Path(__file__).parent / "schemas" / "jobset-v1alpha2.yaml"

NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"}
COUNT = {"type": "integer", "minimum": 1}


def closed(schema: Any) -> Any:
    """`schema`, but all keys that it does not know are refused: a misspelled one, far away from
    here, would be ignored."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: closed(part) for key, part in schema.items()}
    return {**parts, "additionalProperties": False} if "properties" in schema else parts


def table(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    properties = {**required, **optional}
    return {"type": "object", "properties": properties, "required": list(required)}


# Not MOUNT, which cannot append, and logs and metrics are appended to.
BUCKET = table({"name": NAME, "mode": {"const": "MOUNT_CACHED"}})
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
    file_mounts={"type": "object", "additionalProperties": BUCKET},
)


def read(name: str, schema: Any) -> Any:
    tree = yaml.safe_load((LAUNCH / name).read_text())
    jsonschema.validate(tree, closed(schema))
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
    jobset = read("k8s/jobset.yaml", yaml.safe_load(JOBSET.read_text()))
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


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("backoffLimit", "backofLimit", "'backofLimit' was unexpected"),
        ("maxRestarts: 20", 'maxRestarts: "20"', "'20' is not of type 'integer'"),
        ('value: "4"', "value: 4", "4 is not of type 'string'"),
        ("restartPolicy: Never", "restartPolicy: Always", "'Always' is not one of"),
        ("name: dgan\nspec", "name: my_run\nspec", "'my_run' does not match"),
        ("sizeLimit: 16Gi", "sizeLimit: 16GiB", "'16GiB' does not match"),
        ("mountPath: /shared", "path: /shared", "'mountPath' is a required property"),
        ("medium: Memory", "medium: Disk", "'Disk' is not one of"),
    ],
)
def test_a_jobset_that_is_none_is_refused(before: str, after: str, what: str) -> None:
    text = (LAUNCH / "k8s" / "jobset.yaml").read_text()
    assert before in text
    schema = closed(yaml.safe_load(JOBSET.read_text()))
    with pytest.raises(jsonschema.ValidationError, match=re.escape(what)):
        jsonschema.validate(yaml.safe_load(text.replace(before, after)), schema)


def test_the_sky_task_is_one(tmp_path: Path) -> None:
    task = read("sky.yaml", SKY)
    # What one node has cached of a bucket, others do not see.
    assert task["num_nodes"] == 1
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
