"""The discriminators that the benchmarks of the penalties take: convolutional and transformer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.layers import BiasAct
from dgan.networks.r3gan import R3GANDiscriminator

RESOLUTION = 32
NETWORKS = ("conv leaky_relu", "conv gelu", "transformer leaky_relu", "transformer gelu")
ACTIVATIONS = {"leaky_relu": lambda x: F.leaky_relu(x, 0.2), "gelu": F.gelu}


def build(name: str) -> nn.Module:
    """One of `NETWORKS`, from a fixed seed; it names its `.blocks`."""
    torch.manual_seed(0)
    family, act = name.split()
    return convolutional(act) if family == "conv" else TransformerDiscriminator(act)


def convolutional(act: str) -> R3GANDiscriminator:
    """dgan's R3GAN at 32×32: as published but for width, and one block a stage."""
    network = R3GANDiscriminator(
        resolution=RESOLUTION,
        channels=3,
        widths=(96, 64, 32, 16),
        blocks=(1, 1, 1, 1),
        groups=(12, 8, 4, 2),
    )
    for module in network.modules():
        if isinstance(module, BiasAct):
            module.act = act
    return network


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

    def __init__(self, width: int, heads: int, act: str) -> None:
        super().__init__()
        self.heads, self.act = heads, act
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, width]` → the same shape."""
        n, tokens, width = x.shape
        heads = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(ACTIVATIONS[self.act](self.up(self.norm2(x))))


class TransformerDiscriminator(nn.Module):
    """4×4 patches, learned positions, pre-norm blocks, the mean of the tokens to one logit."""

    def __init__(self, act: str, width: int = 96, depth: int = 4, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.positions = nn.Parameter(torch.randn((RESOLUTION // 4) ** 2, width) / math.sqrt(width))
        self.layers = nn.ModuleList(TransformerBlock(width, heads, act) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, 3, 32, 32]` → logits `[N]`."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1)).sum(1)


def images(count: int, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:
    """Smooth noise in [−1, 1] with some grain, `[count, 3, 32, 32]`: stands in for images."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, size=RESOLUTION, mode="bicubic", antialias=True)
    grain = torch.randn(count, 3, RESOLUTION, RESOLUTION, generator=generator)
    return (0.5 * smooth + 0.05 * grain).clamp(-1, 1).to(device)


def perturb(network: nn.Module, scale: float = 0.3) -> nn.Module:
    """Noise on every parameter, a `scale` of fan-in scaled weights, as if training had moved it.

    R3GAN's blocks add nothing at initialisation (their last convolution starts at zero).
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=scale / math.sqrt(fan_in))
    return network
