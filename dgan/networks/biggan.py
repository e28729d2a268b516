"""BigGAN (Brock et al. 2019, "Large Scale GAN Training for High Fidelity Natural Image Synthesis").

Residual blocks as in SNGAN, of orthogonal weights and spectral norm one in both players, with
attention at one resolution (Zhang et al. 2019, "Self-Attention Generative Adversarial Networks").
Each block of the generator sees its own part of the latent, beside an embedding of the class that
all share. At 128×128, the paper's ch = 96 is
`widths=(1536, 1536, 768, 384, 192, 96), attention=64`.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.layers import Conv2d, Embedding, Linear, NormAct, channels_last, stages_of
from dgan.networks.network import Network
from dgan.networks.residual import (
    DiscriminativeBlock,
    GenerativeBlock,
    Projection,
    halving_stages,
)
from dgan.networks.spectral import spectral_norm


def orthogonal_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Orthogonal weights; at gain 1 also before a ReLU, as the paper has them."""
    return nn.init.orthogonal_(weight)


class SelfAttention(nn.Module):
    """x + γ · attention of every position to the maxima of 2×2 neighbours; γ begins at 0.

    Logits are not scaled; queries and keys have an eighth of the channels, values half of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = partial(Conv2d, fill=orthogonal_)
        self.query = conv(channels, max(channels // 8, 1))
        self.key = conv(channels, max(channels // 8, 1))
        self.value = conv(channels, max(channels // 2, 1))
        self.out = conv(max(channels // 2, 1), channels)
        self.strength = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        """Begin anew, as the identity."""
        nn.init.zeros_(self.strength)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` → the same shape."""
        key, value = (F.max_pool2d(part, 2) for part in (self.key(x), self.value(x)))
        # One head: [N, 1, positions, channels].
        query, key, value = (part.flatten(2).mT[:, None] for part in (self.query(x), key, value))
        h = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        h = h[:, 0].mT.unflatten(2, x.shape[2:])
        return x + self.strength * self.out(h)


class Attending(nn.Module):
    """A block, then attention over what it gives."""

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.block = block
        self.attention = SelfAttention(channels)

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the block takes → `[N, channels, H, W]`."""
        return self.attention(self.block(*inputs))


def _check_attention(attention: int, resolutions: list[int], name: str) -> None:
    if attention and attention not in resolutions:
        raise ValueError(
            f"attention {attention}: {name} has blocks that give "
            f"{', '.join(map(str, resolutions))}; choose one of these, or 0 for no attention"
        )


class BigGANGenerator(Network):
    """Latents (and labels) to images in (−1, 1).

    Args:
        resolution: of the images, a power of two.
        channels: of the images.
        classes: number of classes; 0 for an unconditional generator.
        z_dim: size of the latent, cut into one part for each of `widths`.
        widths: channels at 4×4, 8×8, …, `resolution`.
        attention: the resolution that is attended over; 0 for none.
        embedding_dim: size of the embedding that tells every block the class.
        spectral: divide the weights, but the embedding, by their spectral norm.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    couples_samples = True  # batch normalisation

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        z_dim: int = 120,
        widths: tuple[int, ...],
        attention: int = 0,
        embedding_dim: int = 128,
        spectral: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.z_dim = z_dim
        steps = stages_of(resolution, widths, name)
        _check_attention(attention, [8 << i for i in range(len(steps))], name)
        if z_dim < len(widths):
            raise ValueError(
                f"z_dim {z_dim} cannot be cut into {len(widths)} parts: make it larger"
            )
        first, *parts = (len(part) for part in torch.arange(z_dim).tensor_split(len(widths)))
        self.embedding = Embedding(classes, embedding_dim, fill=orthogonal_) if classes else None
        self.start = Linear(first, 16 * widths[0], bias=True, fill=orthogonal_)
        self.stages = nn.ModuleList()
        for level, ((a, b), part) in enumerate(zip(steps, parts)):
            condition = part + (embedding_dim if classes else 0)
            affine = partial(Linear, condition, fill=orthogonal_)
            block = GenerativeBlock(a, b, affine, orthogonal_)
            self.stages.append(Attending(block, b) if attention == 8 << level else block)
        self.norm = NormAct(widths[-1], "batch", act="relu")
        self.to_image = Conv2d(widths[-1], channels, 3, bias=True, fill=orthogonal_)
        if spectral:
            spectral_norm(self, [m for m in self.modules() if isinstance(m, Conv2d | Linear)])

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.stages)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]`, labels int64 `[N]` → images `[N, C, H, W]`."""
        first, *parts = z.tensor_split(len(self.stages) + 1, dim=1)
        if self.embedding is not None:
            shared = self.embedding(labels)
            parts = [torch.cat([shared, part], dim=1) for part in parts]
        x = self.start(first).unflatten(1, (-1, 4, 4))
        for stage, part in zip(self.stages, parts):
            x = stage(x, part)
        return self.to_image(self.norm(x)).tanh()


class BigGANDiscriminator(Network):
    """Images (and labels, by projection) to logits.

    Args:
        widths: channels at 4×4, 8×8, …, `resolution / 2`, in front of them those of one more block
            at 4×4: as many as the generator has.
        attention: the resolution that is attended over; 0 for none.
        spectral: divide every weight by its spectral norm.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    couples_samples = False

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        widths: tuple[int, ...],
        attention: int = 0,
        spectral: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        steps = halving_stages(resolution, channels, widths, 4, name)
        _check_attention(attention, [resolution >> i for i in range(1, len(widths))], name)
        self.stages = nn.ModuleList()
        for level, (a, b, halve) in enumerate(steps):
            block = DiscriminativeBlock(a, b, b, first=level == 0, halve=halve, fill=orthogonal_)
            here = halve and attention == resolution >> (level + 1)
            self.stages.append(Attending(block, b) if here else block)
        self.head = Projection(widths[0], classes, orthogonal_)
        if spectral:
            spectral_norm(self)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [*self.stages, self.head]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, labels int64 `[N]` → logits `[N]`."""
        x = channels_last(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x, labels)
