"""The operators' CPU path through torch.compile with its own backend, against eager PyTorch."""

import shutil

import pytest
import torch
from routes import penalty
from torch import nn
from torch._inductor import config

from dgan_kernels import bias_act, norm_act, upsample2d

COMPILERS = ("g++", "clang++")
pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in COMPILERS),
    reason=f"inductor needs a C++ compiler for the CPU: none of {', '.join(COMPILERS)} is here",
)

# Other orders of the same sums, twice differentiated, in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.weight, self.bias = (nn.Parameter(torch.randn(4)) for _ in range(2))
        self.register_buffer("taps", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)

    def forward(self, x):
        x = bias_act(self.first(x), self.bias, act="leaky_relu", gain=2**0.5, clamp=8.0)
        x = upsample2d(x, self.taps, bias=self.bias, act="silu")
        x = norm_act(self.second(x), self.weight, self.bias, norm="group", groups=2, act="silu")
        return x.square().mean((2, 3)).sum(1)


def first_order(D, x):
    return D(x).sum()


@pytest.mark.parametrize("loss", [first_order, penalty])
def test_inductor(loss):
    torch._dynamo.reset()
    x = torch.randn(2, 2, 6, 5, requires_grad=True)
    D = Discriminator()
    want = loss(D, x)
    gradients = torch.autograd.grad(want, list(D.parameters()), allow_unused=True)
    with torch._dynamo.config.patch(trace_autograd_ops=True), config.patch(compile_threads=1):
        compiled = torch.compile(lambda x: loss(D, x), fullgraph=True, backend="inductor")
        got = compiled(x)
        found = torch.autograd.grad(got, list(D.parameters()), allow_unused=True)
    torch.testing.assert_close(got, want, **CLOSE)
    for (name, p), a, b in zip(D.named_parameters(), found, gradients):
        a, b = (torch.zeros_like(p) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}", **CLOSE)
    assert sum(g is not None and bool(g.abs().max() > 1e-4) for g in gradients) >= 4
