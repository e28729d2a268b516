"""The networks of text: probabilities, and penalties between one-hot vectors and them."""

import torch

import dgan
from dgan.networks import build

SIZES = {"resolution": 9, "channels": 5, "classes": 3}


def test_the_generator_gives_probabilities() -> None:
    generator = build("generator", "characters", seed=0, z_dim=4, width=6, depth=2, **SIZES)
    made = generator(torch.randn(7, 4), torch.arange(7) % 3)
    assert made.shape == (7, 5, 9)
    torch.testing.assert_close(made.sum(1), torch.ones(7, 9))
    assert made.min() > 0
    assert made.std() > 0.01  # not yet equal, or nothing would be learned from


def test_penalties_agree_on_mixed_texts() -> None:
    critic = build("discriminator", "characters", seed=0, width=6, depth=2, **SIZES).double()
    draw = torch.Generator().manual_seed(0)
    real = torch.nn.functional.one_hot(torch.randint(5, (4, 9), generator=draw), 5)
    fake = torch.randn(4, 9, 5, generator=draw).double().softmax(2)
    x, labels = (0.3 * real + 0.7 * fake).transpose(1, 2), torch.arange(4) % 3
    gradients = {}
    for method in ("double", "forward"):
        output = dgan.gradient_penalty(critic, x, labels, kind="one_centered", method=method)
        loss = output.loss + output.logits.mean()
        gradients[method] = torch.autograd.grad(loss, list(critic.parameters()))
    for a, b in zip(*gradients.values()):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    assert max(part.abs().max() for part in gradients["double"]) > 0.01
    error = dgan.check_penalty(critic, x, labels, kind="one_centered")
    assert error < 0.01
