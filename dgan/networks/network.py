"""Networks whose weights can be filled after they were built."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from dgan.networks.layers import Fused
from dgan.networks.spectral import FIRST_ITERATIONS, SpectralNorm


class Network(Fused):
    """A network that may be built on the meta device, given memory, and filled then.

        with torch.device("meta"):
            network = TransformerGenerator(...)
        network.to_empty(device="cuda")
        network.init_weights()

    Every parameter and buffer belongs to a layer with a `reset_parameters`, which its constructor
    calls. Layers are constructed in the order in which they are registered: from equal seeds,
    `init_weights` draws what construction does.
    """

    @torch.no_grad()
    def init_weights(
        self, around: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext
    ) -> None:
        """Draw all parameters anew, and fill all buffers, one layer after another.

        `around` is entered for each: whoever sharded the network makes the layer whole there.

        Raises:
            ValueError: the network is still on the meta device.
        """
        if any(tensor.is_meta for tensor in (*self.parameters(), *self.buffers())):
            raise ValueError(
                f"{type(self).__name__} has no memory yet: call to_empty(device=...) before "
                "init_weights()"
            )
        modules = list(self.modules())
        for layer in modules:
            if callable(reset := getattr(layer, "reset_parameters", None)):
                with around(layer):
                    reset()
        for layer in modules:
            if isinstance(layer, parametrize.ParametrizationList):
                with around(layer):
                    _restart(layer)


def _restart(weight: parametrize.ParametrizationList) -> None:
    """Begin the power iteration of a normalised weight anew."""
    (norm,) = weight
    assert isinstance(norm, SpectralNorm), "the only parametrisation of networks here"
    norm.u.copy_(F.normalize(torch.randn_like(norm.u), dim=0))
    norm.advance(weight.original, FIRST_ITERATIONS)
