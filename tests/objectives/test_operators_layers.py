"""Every layer of `torch.nn`, forward against double backward."""

import pytest
import torch
from exactness import numbers, penalty_gradient, relative
from layer_cases import CONTAINERS, EXCLUDED, LAYERS
from torch import Tensor, nn


class Discriminator(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(12, 64), middle, nn.LazyLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x).tanh()).tanh()).squeeze(1)


def discriminator(name: str) -> Discriminator:
    torch.manual_seed(1)
    network = Discriminator(LAYERS[name]())
    training = {module: module.training for module in network.modules()}
    network.double().eval()(numbers(2, 12))  # the head learns its width
    for module, mode in training.items():
        module.training = mode
    return network


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_equals_double_backward(name: str) -> None:
    one, two, x = discriminator(name), discriminator(name), numbers(4, 12, seed=9)
    before = [buffer.clone() for buffer in one.buffers()]
    wanted = penalty_gradient(one, x, "double")
    assert relative(penalty_gradient(two, x, "forward"), wanted) < 1e-10
    for found, expected in zip(two.buffers(), one.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if "spectral" in name or name.endswith(("tracking", "cumulative")):
        # Otherwise equal buffers would say nothing.
        assert any((old != new).any() for old, new in zip(before, one.buffers()))


def test_no_layer_of_pytorch_is_forgotten() -> None:
    public = {
        name
        for name, layer in vars(nn).items()
        if isinstance(layer, type) and issubclass(layer, nn.Module)
    }
    covered = {type(module).__name__ for make in LAYERS.values() for module in make().modules()}
    # A lazy layer turns into the ordinary one at its first call.
    forgotten = {
        n for n in public - covered - set(EXCLUDED) if n.removeprefix("Lazy") not in covered
    }
    assert not forgotten, f"give these layers a case, or a reason in EXCLUDED: {sorted(forgotten)}"
    both = covered & (EXCLUDED.keys() - set(CONTAINERS.split()))
    assert not both, f"covered, so no longer to be excluded: {sorted(both)}"
