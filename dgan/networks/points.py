"""Multilayer perceptrons on points `[N, dimension]`, for toy distributions."""

from torch import Tensor, nn

from dgan.networks.layers import LEAKY_RELU_GAIN, BiasAct, Linear

GAINS = {"relu": 2**0.5, "leaky_relu": LEAKY_RELU_GAIN, "tanh": 1.0}
"""That keep the variance through these activations (He et al. 2015, equation 15)."""


def _hidden(inputs: int, widths: tuple[int, ...], act: str) -> nn.ModuleList:
    if act not in GAINS:
        raise ValueError(f"act {act!r} is not known here: choose from {', '.join(GAINS)}")
    sizes = (inputs, *widths)
    return nn.ModuleList(
        nn.Sequential(Linear(a, b, gain=GAINS[act]), BiasAct(b, act)) for a, b in zip(sizes, widths)
    )


class PointGenerator(nn.Module):
    """Latents to points, through hidden layers of the given `widths`; anywhere in space.

    The default is flat where units are off, as modes want it: leaky units, or latents of many
    dimensions, leave far more points between the modes of the same training.

    Raises:
        ValueError: `act` is none of `GAINS`.
    """

    couples_samples = False

    def __init__(
        self,
        *,
        dimension: int = 2,
        z_dim: int = 4,
        widths: tuple[int, ...] = (256, 256, 256),
        act: str = "relu",
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.hidden = _hidden(z_dim, widths, act)
        self.to_point = nn.Linear(widths[-1], dimension)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.hidden)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]` → points `[N, dimension]`; `labels` are not looked at."""
        for layer in self.hidden:
            z = layer(z)
        return self.to_point(z)


class PointDiscriminator(nn.Module):
    """Points to logits, through hidden layers of the given `widths`.

    Raises:
        ValueError: `act` is none of `GAINS`.
    """

    couples_samples = False

    def __init__(
        self,
        *,
        dimension: int = 2,
        widths: tuple[int, ...] = (256, 256),
        act: str = "leaky_relu",
    ) -> None:
        super().__init__()
        self.hidden = _hidden(dimension, widths, act)
        # With biases of 0 every kink of the first layer would run through the origin.
        nn.init.uniform_(self.hidden.get_parameter("0.1.bias"), -1, 1)
        self.head = nn.Linear(widths[-1], 1)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.hidden)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Points `[N, dimension]` → logits `[N]`; `labels` are not looked at."""
        for layer in self.hidden:
            x = layer(x)
        return self.head(x).sum(1)
