"""DeepSpeed's JSON configuration, made from a recipe's values and a user's own."""

import json
from pathlib import Path
from typing import Any

OWNED = {
    "train_batch_size": "--train.batch_size",
    "train_micro_batch_size_per_gpu": "--train.batch_size",
    "gradient_accumulation_steps": "--train.accumulation",
    "optimizer": "--generator.learning_rate … and --discriminator.learning_rate …",
    "scheduler": "--generator.learning_rate … and --discriminator.learning_rate …",
    "fp16": "--train.precision",
    "bf16": "--train.precision",
    "zero_optimization.stage": "--parallel.zero_stage",
}
"""What the recipe decides, and by which key; a user's file may not."""


def deepspeed_configuration(
    *,
    stage: int,
    batch_size: int,
    accumulation: int,
    world_size: int,
    bfloat16: bool,
    offload: bool,
    overrides: str = "",
) -> dict[str, Any]:
    """The configuration of either network's engine.

    Args:
        stage: of ZeRO: 1 spreads the optimizer's state, 2 gradients too, 3 weights too.
        batch_size: images of an update, over all ranks.
        accumulation: micro-batches of an update.
        world_size: ranks.
        bfloat16: compute in bfloat16 with float32 master weights; gradients are added up and
            reduced in float32 either way.
        offload: keep the optimizer, and at stage 3 the weights, on the CPU.
        overrides: a JSON file that is merged over the result, key by key; what DeepSpeed offers
            and the recipe does not decide.

    Raises:
        FileNotFoundError, ValueError: no such file; it is not a JSON object, or sets what the
            recipe decides.
    """
    # Its own linear layer, of stage 3, has neither a forward mode nor a second derivative.
    zero: dict[str, Any] = {"stage": stage, "memory_efficient_linear": False}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload and stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    made = {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": batch_size // (world_size * accumulation),
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": zero,
        "bf16": {"enabled": bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "gradient_clipping": 0.0,  # DeepSpeed's default is 1.0
        # The optimizer is PyTorch's Adam.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return merge(made, _read(overrides)) if overrides else made


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`; tables are merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both else value
    return merged


def _read(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"--parallel.deepspeed_config: there is no file {path}")
    try:
        tree = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(tree).__name__}")
    for key, recipe_key in OWNED.items():
        section, _, name = key.partition(".")
        inside = tree.get(section) if name else tree
        if isinstance(inside, dict) and (name or section) in inside:
            raise ValueError(f"{path} sets {key!r}, which the recipe decides: use {recipe_key}")
    return tree
