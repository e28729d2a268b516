"""What the discriminator makes of samples on the way to its logits."""

from collections.abc import Callable

from torch import Tensor, nn


def features_layer(discriminator: nn.Module) -> nn.Module:
    """The layer whose outputs are the features: the last of the network's `.blocks` but one.

    In every family the last may be the one that makes the logits.

    Raises:
        ValueError: there are fewer than two blocks.
    """
    blocks = list(getattr(discriminator, "blocks", ()))
    if len(blocks) < 2:
        raise ValueError(
            f"{type(discriminator).__name__} has {len(blocks)} `.blocks`: features are taken "
            "behind the last but one, so it must name two or more"
        )
    return blocks[-2]


def features_of(layer: nn.Module, judge: Callable[[], Tensor], rows: int) -> Tensor:
    """What `layer` puts out, `[rows, ...]`, when `judge` calls its network once.

    A derivative of it passes through what comes after `layer` too, as zeros: ZeRO-3 counts the
    layers that a backward pass comes through, from the last one on.
    """
    outputs: list[Tensor] = []

    def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
        outputs.append(output)

    handle = layer.register_forward_hook(keep)
    try:
        logits = judge()
    finally:
        handle.remove()
    (features,) = outputs
    # Rows of a reference batch, if there is one, stand in front.
    return features[-rows:] + 0.0 * logits.sum()
