"""What can be given to both players in the place of a label, and what cannot."""

from dgan.config import Recipe


def check_condition(recipe: Recipe) -> None:
    """Raise `ValueError` for embeddings or mismatches that a recipe cannot have."""
    data, task = recipe.data, recipe.task
    if data.encoder and not data.embedding:
        raise ValueError(
            f"--data.encoder {data.encoder} makes vectors of a size that --data.embedding has to "
            "say; it is 0"
        )
    if data.encoder and ":" not in data.encoder:
        raise ValueError(
            f"--data.encoder {data.encoder!r} is no import path, mypackage.encoders:encode"
        )
    if data.embedding and data.classes:
        raise ValueError(
            f"--data.embedding {data.embedding} takes the place of labels, and --data.classes is "
            f"{data.classes}: set one of them to 0"
        )
    virtual = [r for r in ("generator", "discriminator") if _is_virtual(recipe, r)]
    if data.embedding and virtual:
        raise ValueError(
            f"--{virtual[0]}.options.norm virtual has a reference batch of labels, and "
            "--data.embedding none: choose another norm"
        )
    if not 0 <= task.mismatch < 1:
        raise ValueError(f"--task.mismatch is {task.mismatch}; it is a share, from 0 to below 1")
    if task.mismatch and not (data.classes or data.embedding):
        raise ValueError(
            f"--task.mismatch {task.mismatch} exchanges labels or embeddings, and there are none: "
            "set --data.classes or --data.embedding, or leave it out"
        )
    if task.mismatch and task.name != "synthesis":
        raise ValueError(f"--task.mismatch means nothing to --task.name {task.name}: leave it out")


def _is_virtual(recipe: Recipe, role: str) -> bool:
    return getattr(recipe, role).options.get("norm") == "virtual"
