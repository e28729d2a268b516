"""Adversarial training for networks too large for one GPU, with exact gradient penalties."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgan.export import load_generator
    from dgan.objectives.check import check_penalty
    from dgan.objectives.penalties import gradient_penalty

__version__ = "0.1.0"
__all__ = ["check_penalty", "gradient_penalty", "load_generator"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds; `dgan recipes` and `--help` do without.
    if name == "gradient_penalty":
        from dgan.objectives.penalties import gradient_penalty

        return gradient_penalty
    if name == "check_penalty":
        from dgan.objectives.check import check_penalty

        return check_penalty
    if name == "load_generator":
        from dgan.export import load_generator

        return load_generator
    raise AttributeError(f"module 'dgan' has no attribute {name!r}")
