"""The `dgan` command: parse, call, print."""

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import tyro

from dgan import commands, data_commands, project_command, recipes, sample_command
from dgan.config import Recipe, nearest, switches
from dgan.watchdog import START_AGAIN


def train(arguments: Sequence[str]) -> None:
    """Train a recipe, or go on with a run: RECIPE [--section.key VALUE ...]."""
    recipe = _recipe("train", arguments)
    from dgan.train import train as run

    try:
        stopped_by = run(recipe)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"no space is left on the disk of {recipe.directory}: make room and run the same "
            "command again; it goes on from the last checkpoint, which is intact"
        ) from error
    # A person who presses Ctrl-C got what they asked for; a scheduler must not think it is done.
    if stopped_by not in (None, "SIGINT"):
        raise SystemExit(START_AGAIN)


def deepspeed(arguments: Sequence[str]) -> None:
    """Print a recipe's DeepSpeed configuration: RECIPE [--ranks N] [--section.key VALUE ...]."""
    arguments, ranks = list(arguments), "1"
    if "--ranks" in arguments[:-1]:
        at = arguments.index("--ranks")
        ranks = arguments[at + 1]
        del arguments[at : at + 2]
    if not ranks.isdecimal() or ranks == "0":
        raise ValueError(f"--ranks is {ranks!r}; it must be a number of processes")
    recipe = _recipe("deepspeed", arguments)
    from dgan.build import deepspeed_plan
    from dgan.validation import validate

    strategy = replace(recipe.parallel, strategy="deepspeed")
    recipe = replace(recipe, parallel=strategy)
    validate(recipe)
    print(json.dumps(deepspeed_plan(recipe, world_size=int(ranks)), indent=2))


def plan(arguments: Sequence[str]) -> None:
    """Plan a run: RECIPE [--nodes N] [--gpus-per-node M] [--gpu h100] [--section.key VALUE ...]."""
    from dgan import plan_command

    flags, left = plan_command.take_flags(arguments)
    own = "[--nodes N] [--gpus-per-node M] [--gpu h100] [--json FILE] "
    plan_command.show_plan(_recipe("plan", left, own), flags)


def _recipe(command: str, arguments: Sequence[str], own: str = "") -> Recipe:
    """The recipe that a command names, with what its other arguments change.

    `own` are flags of the command's own, for its usage.
    """
    if not arguments or arguments[0].startswith("-"):
        asked_for_help = arguments[:1] in (["-h"], ["--help"])
        print(
            f"usage: dgan {command} RECIPE {own}[--section.key VALUE ...]\n\nRECIPE is one of "
            f"{', '.join(recipes.RECIPES)}; a run's directory or its recipe.toml; or an import "
            f"path, mypackage.recipes:mine.\n`dgan {command} RECIPE --help` lists what can be set.",
            file=sys.stdout if asked_for_help else sys.stderr,
        )
        raise SystemExit(0 if asked_for_help else 2)
    name, *overrides = arguments
    return tyro.cli(
        Recipe,
        default=_exchange_networks(recipes.find(name), overrides),
        args=_spell_out(overrides),
        prog=f"dgan {command} {name}",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _spell_out(overrides: Sequence[str]) -> list[str]:
    """A switch that stands alone, such as `--run.fresh`, means True."""
    yes_or_no = switches()
    spelled: list[str] = []
    for word, following in zip(overrides, [*overrides[1:], "--"]):
        spelled.append(word)
        if word in yes_or_no and following.startswith("--"):
            spelled.append("True")
    return spelled


def _exchange_networks(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A network named on the command line brings its own options, not those of the recipe's."""
    for role in ("generator", "discriminator"):
        flag = f"--{role}.network"
        named = [v.partition("=")[2] for v in overrides if v.startswith(flag + "=")]
        named += [value for key, value in pairwise(overrides) if key == flag]
        player = getattr(recipe, role)
        if named and named[-1] != player.network:
            from dgan.networks import default_options

            options = default_options(role, named[-1])
            recipe = replace(recipe, **{role: replace(player, network=named[-1], options=options)})
    return recipe


OF_A_RECIPE: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "plan": plan,
    "deepspeed": deepspeed,
}

COMMANDS: dict[str, Callable[..., None]] = {
    **OF_A_RECIPE,
    "recipes": commands.list_recipes,
    "sample": sample_command.sample,
    "project": project_command.project,
    "report": commands.report,
    "evaluate": commands.evaluate,
    "export": commands.export,
    "toy": commands.toy,
    "doctor": commands.doctor,
    "data pack": data_commands.pack,
    "data import": data_commands.pack,
    "data index": data_commands.index,
    "data verify": data_commands.verify,
    "data show": data_commands.show,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a problem that the user can mend is one message and exit code 2.

    What ends before it is done, and goes on if started again, has exit code `START_AGAIN`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # DeepSpeed's launcher gives every process one, and LOCAL_RANK besides.
    arguments = [word for word in arguments if not word.startswith("--local_rank=")]
    # A user's own package is importable from where the command is given, as with `python -m`.
    sys.path.insert(0, os.getcwd())
    words = 2 if arguments[:1] == ["data"] else 1
    name, rest = " ".join(arguments[:words]), list(arguments[words:])
    if name not in COMMANDS:
        asked_for_help = name in ("", "-h", "--help", "help")
        if not asked_for_help:
            print(f"dgan: no command {name!r}; {nearest(name, list(COMMANDS))}", file=sys.stderr)
        print(_usage(), file=sys.stdout if asked_for_help else sys.stderr)
        raise SystemExit(0 if asked_for_help else 2)
    try:
        if name in OF_A_RECIPE:
            OF_A_RECIPE[name](rest)
        else:
            tyro.cli(COMMANDS[name], args=rest, prog=f"dgan {name}")
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        if os.environ.get("DGAN_TRACEBACK"):
            raise
        rank = os.environ.get("RANK", "0")
        print(f"dgan: error: {error}" + ("" if rank == "0" else f" [rank {rank}]"), file=sys.stderr)
        raise SystemExit(START_AGAIN if isinstance(error, ConnectionError) else 2) from None
    except KeyboardInterrupt:
        print("dgan: interrupted; what was saved before is intact", file=sys.stderr)
        raise SystemExit(130) from None


def _usage() -> str:
    lines, first = list[str](), dict[Callable[..., None], str]()
    for name, function in COMMANDS.items():
        same = first.setdefault(function, name)
        does = (function.__doc__ or "").splitlines()[0]
        lines.append(f"  {name:12} {does if same == name else f'The same as {same}.'}")
    return (
        "usage: dgan COMMAND ...\n\n"
        + "\n".join(lines)
        + "\n\n`dgan COMMAND --help` says more; DGAN_TRACEBACK=1 shows where an error came from."
    )


if __name__ == "__main__":
    main()
