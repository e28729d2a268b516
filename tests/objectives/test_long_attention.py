"""Attention over many tokens: exact, and no matrix of tokens by tokens in the tangent pass."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from dgan import gradient_penalty
from dgan.objectives.replacements import LONG


class Attention(nn.Module):
    """One head of 4 channels; keys and values from the input, or from elsewhere."""

    def __init__(self, causal: bool, context: Tensor | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(4, 4).double() for _ in range(3))
        self.causal, self.context = causal, context

    def forward(self, x: Tensor) -> Tensor:
        other = x if self.context is None else self.context
        heads = (self.query(x), self.key(other), self.value(other))
        return F.scaled_dot_product_attention(*heads, is_causal=self.causal).square().mean((1, 2))


class Largest(TorchDispatchMode):
    """The most elements of any tensor that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in result if isinstance(result, (tuple, list)) else (result,):
            self.numel = max(self.numel, leaf.numel() if isinstance(leaf, Tensor) else 0)
        return result


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_exact_without_the_matrix(causal: bool, crossed: bool) -> None:
    tokens = LONG + 3
    context = torch.randn(2, tokens, 4, dtype=torch.float64) if crossed else None
    network = Attention(causal, context)
    x = torch.randn(2, tokens, 4, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        gradient_penalty(network, x, method="double").loss.backward()
    # Of another context's values alone the output's derivative in x does not depend.
    expected = [p.grad for p in network.parameters()]
    network.zero_grad()
    output = gradient_penalty(network, x, method="forward")
    with Largest() as largest:
        output.loss.backward()
    for parameter, wanted in zip(network.parameters(), expected):
        if wanted is not None:
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-14)
    assert largest.numel < tokens**2


def test_under_autocast() -> None:
    """Narrow products of narrow inputs; as close as double backward is there."""
    network = Attention(False, None).float()
    x = torch.randn(2, LONG, 4)
    gradients = {}
    for how, method in (("exact", "double"), ("double", "double"), ("forward", "forward")):
        network.zero_grad()
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.autocast("cpu", torch.bfloat16, enabled=how != "exact"),
        ):
            gradient_penalty(network, x, method=method).loss.backward()
        gradients[how] = torch.cat([p.grad.flatten() for p in network.parameters()])
    error = {h: (g - gradients["exact"]).norm().item() for h, g in gradients.items()}
    assert error["forward"] <= 1.5 * error["double"]
