"""Adversarial steps as a direct PyTorch script has them: what dgan's own step is measured against.

Nothing of dgan but its networks. `Direct` is what a careful user writes for one process; `Apart` is
how R3GAN's training code goes about it (Huang et al. 2024): real and generated samples judged in
calls of their own, each with a penalty pass of its own, on the layers of its networks.
"""

import copy
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dgan.networks.layers import BiasAct
from dgan.networks.resampling import Resample, Taps


class Direct:
    """Both players, their optimizers and the generator's average.

    Args:
        loss: `relativistic`, `non_saturating` or `hinge`.
        gamma: γ of R1 + R2; 0: no penalty.
        separate: real and generated samples are judged in two calls.
    """

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, *, loss: str, gamma: float,
        separate: bool, z_dim: int, decay: float,
    ) -> None:  # fmt: skip
        self.generator, self.discriminator = generator, discriminator
        self.average = copy.deepcopy(generator).requires_grad_(False)
        self.loss, self.gamma, self.separate = loss, gamma, separate
        self.z_dim, self.decay = z_dim, decay
        rates = {"lr": 2e-4, "betas": (0.0, 0.99)}
        self.of_generator = torch.optim.Adam(generator.parameters(), **rates)
        self.of_discriminator = torch.optim.Adam(discriminator.parameters(), **rates)

    def step(self, batch: dict[str, Any]) -> None:
        """One update of the discriminator, one of the generator, one of the average."""
        real, labels = batch["image"] / 127.5 - 1.0, batch.get("label")
        self.discriminator.requires_grad_(True)
        self.generator.requires_grad_(False)
        # PyTorch's fused attention cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH) if self.gamma else nullcontext():
            loss, logged = self.discriminator_loss(real, labels)
            self.of_discriminator.zero_grad()
            loss.backward()
        self.of_discriminator.step()
        self.discriminator.requires_grad_(False)
        self.generator.requires_grad_(True)
        loss = self.generator_loss(real, labels)
        self.of_generator.zero_grad()
        loss.backward()
        self.of_generator.step()
        self._follow()
        # What a script logs: a few means. dgan also takes norms of gradients and looks for NaN.
        _ = [value.item() for value in logged]

    def discriminator_loss(self, real: Tensor, labels: Tensor | None) -> tuple[Tensor, list]:
        """The loss, and what is logged."""
        with torch.no_grad():
            fake = self.generator(torch.randn(len(real), self.z_dim), labels)
        images = torch.cat([real, fake]).requires_grad_(self.gamma > 0)
        twice = None if labels is None else torch.cat([labels, labels])
        if self.separate:
            halves = zip(images.chunk(2), (None, None) if twice is None else twice.chunk(2))
            logits = torch.cat([self.discriminator(x, y) for x, y in halves])
        else:
            logits = self.discriminator(images, twice)
        penalty = torch.zeros(())
        if self.gamma:
            (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
            # Half of γ times the sum of both means, R1's and R2's.
            penalty = self.gamma * slope.square().sum((1, 2, 3)).mean()
        of_real, of_fake = logits.chunk(2)
        loss = adversarial(self.loss, of_real, of_fake)
        return loss + penalty, [loss.detach(), of_real.mean(), of_fake.mean()]

    def generator_loss(self, real: Tensor, labels: Tensor | None) -> Tensor:
        """What the generator minimises."""
        fake = self.generator(torch.randn(len(real), self.z_dim), labels)
        of_fake = self.discriminator(fake, labels)
        if self.loss == "hinge":
            return -of_fake.mean()
        if self.loss == "non_saturating":
            return F.softplus(-of_fake).mean()
        with torch.no_grad():
            of_real = self.discriminator(real, labels)
        return F.softplus(of_real - of_fake).mean()

    @torch.no_grad()
    def _follow(self) -> None:
        for mine, theirs in zip(self.average.parameters(), self.generator.parameters()):
            mine.lerp_(theirs, 1.0 - self.decay)


class Apart(Direct):
    """Both sides judged and penalised one after the other, both times with gradients."""

    def discriminator_loss(self, real: Tensor, labels: Tensor | None) -> tuple[Tensor, list]:
        """See `Direct`."""
        fake = self.generator(torch.randn(len(real), self.z_dim), labels).detach()
        sides, penalties = [], []
        for images in (real, fake):
            images = images.detach().requires_grad_()
            logits = self.discriminator(images, labels)
            (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
            sides.append(logits)
            penalties.append(slope.square().sum((1, 2, 3)))
        loss = adversarial(self.loss, *sides)
        penalty = self.gamma / 2 * (penalties[0] + penalties[1]).mean()
        return loss + penalty, [loss.detach(), sides[0].mean(), sides[1].mean()]

    def generator_loss(self, real: Tensor, labels: Tensor | None) -> Tensor:
        """See `Direct`."""
        fake = self.generator(torch.randn(len(real), self.z_dim), labels)
        of_fake = self.discriminator(fake, labels)
        return F.softplus(self.discriminator(real.detach(), labels) - of_fake).mean()


def adversarial(loss: str, of_real: Tensor, of_fake: Tensor) -> Tensor:
    """What the discriminator minimises."""
    if loss == "hinge":
        return F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()
    if loss == "non_saturating":
        return F.softplus(-of_real).mean() + F.softplus(of_fake).mean()
    return F.softplus(of_fake - of_real).mean()


class PlainBiasAct(nn.Module):
    """A bias a channel and leaky ReLU, one after the other."""

    def __init__(self, layer: BiasAct) -> None:
        super().__init__()
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` → the same shape."""
        return F.leaky_relu(x + self.bias[:, None, None], 0.2)


class Filtered(nn.Module):
    """Twice or half the resolution as StyleGAN's upfirdn2d has it where there is no CUDA."""

    taps: Tensor

    def __init__(self, layer: Resample) -> None:
        super().__init__()
        self.up = layer.up
        taps = Taps()()
        self.register_buffer("taps", taps[:, None] * taps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` → half or twice the size."""
        n, c, height, width = x.shape
        taps = self.taps.expand(c, 1, 4, 4)
        if not self.up:
            return F.conv2d(F.pad(x, (1, 1, 1, 1)), taps, groups=c)[:, :, ::2, ::2]
        # Zeros between the pixels, then the filter over all of it.
        wide = x.new_zeros(n, c, height, 2, width, 2)
        wide[:, :, :, 0, :, 0] = x
        wide = F.pad(wide.flatten(2, 3).flatten(3, 4), (2, 1, 2, 1))
        return F.conv2d(wide, 4 * taps, groups=c)


def with_plain_layers(network: nn.Module) -> nn.Module:
    """A copy of an R3GAN network, with the same weights, on plain layers."""
    plain = copy.deepcopy(network)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BiasAct):
                setattr(parent, name, PlainBiasAct(child))
            elif isinstance(child, Resample):
                setattr(parent, name, Filtered(child))
    return plain
