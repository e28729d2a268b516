"""A family of transformers, for as many parameters as there are GPUs to hold them.

The generator is a DiT (Peebles and Xie 2023, "Scalable Diffusion Models with Transformers") that
starts from learned tokens in place of a noisy image; latent and class drive its AdaLN-Zero. The
discriminator is a ViT (Dosovitskiy et al. 2021) with normalisation before each branch, which judges
the mean of all tokens. Queries and keys are normalised (Dehghani et al. 2023, there by layer norm,
here by RMS norm): attention's logits stay bounded however large the tokens and their maps grow.

With w = `width`, d = `depth`, h = `heads`, p = `patch`, C = `channels`, K = `classes`, z = `z_dim`
and T = (resolution / p)² tokens, the numbers of parameters are

    generator       d (18 w² + 15 w + 2 w/h) + w (3 w + z + T + K + C p² + 4) + C p²
    discriminator   d (12 w² + 13 w + 2 w/h) + w (C p² + T + K + 4) + 1

so that `width=5120` is ten billion in a generator of `depth=21`, a discriminator of `depth=32`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.layers import BiasAct, Embedding, Fused, Linear
from dgan.networks.network import Network
from dgan_kernels import bias_act, norm_act

EXPANSION = 4
"""How much wider the hidden layer of a block's MLP is."""


class TokenNorm(Fused):
    """Layer norm of each token, with a learned scale and shift, or those of a sample; `[N, T, C]`.

    `norm` is `layer`, or `rms`, which subtracts no mean and has no shift.
    """

    def __init__(self, width: int, norm: str = "layer", *, learned: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if learned else None
        self.bias = nn.Parameter(torch.zeros(width)) if learned and norm == "layer" else None
        self.norm = norm

    def reset_parameters(self) -> None:
        """Begin anew: scales 1, shifts 0."""
        for name, value in self.named_parameters():
            nn.init.constant_(value, 1.0 if name == "weight" else 0.0)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """`[N, ..., C]`, scale and shift `[N, C]` in place of the learned ones → the same shape."""
        pair = self.weight if scale is None else scale, self.bias if shift is None else shift
        affine = (None if vector is None else vector.to(x.dtype) for vector in pair)
        return norm_act(x, *affine, norm=self.norm, eps=1e-6, backend=self.backend)


class Attention(nn.Module):
    """Multi-head self-attention over tokens, with normalised queries and keys."""

    def __init__(self, width: int, heads: int, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=True)
        self.query_norm = TokenNorm(width // heads, "rms")
        self.key_norm = TokenNorm(width // heads, "rms")
        self.out = Linear(width, width, gain, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, width]` → the same shape."""
        # [3, N, heads, T, width / heads]
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.query_norm(query), self.key_norm(key)
        h = F.scaled_dot_product_attention(query, key, value)
        return self.out(h.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps with a GELU in between, for each token."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.expand = Linear(width, EXPANSION * width)
        self.act = BiasAct(EXPANSION * width, act="gelu_tanh", dim=-1)
        self.project = Linear(EXPANSION * width, width, gain, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, width]` → the same shape."""
        return self.project(self.act(self.expand(x)))


class Modulation(Fused):
    """The condition of a sample to `count` vectors of the network's width."""

    def __init__(self, width: int, count: int, gain: float) -> None:
        super().__init__()
        self.linear = Linear(width, count * width, gain, bias=True)
        self.count = count

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """`[N, width]` → `count` of `[N, width]`."""
        return self.linear(bias_act(condition, act="silu", backend=self.backend)).chunk(
            self.count, dim=1
        )


class ModulatedBlock(nn.Module):
    """A transformer block whose norms and gates the condition decides; the identity at first.

    AdaLN-Zero: Peebles and Xie 2023, section 3.2.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, 6, gain=0.0)
        self.norm1 = TokenNorm(width, learned=False)
        self.attention = Attention(width, heads, gain=1.0)
        self.norm2 = TokenNorm(width, learned=False)
        self.mlp = MLP(width, gain=1.0)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens `[N, T, width]`, condition `[N, width]` → tokens."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        x = x + gate1[:, None] * self.attention(self.norm1(x, 1 + scale1, shift1))
        return x + gate2[:, None] * self.mlp(self.norm2(x, 1 + scale2, shift2))


class Block(nn.Module):
    """A transformer block, normalised before each branch; branches are small in deep networks.

    What `depth` blocks add to the residual stream has the variance of what they start from
    (Radford et al. 2019, section 2.3).
    """

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        gain = 1 / math.sqrt(2 * depth)
        self.norm1 = TokenNorm(width)
        self.attention = Attention(width, heads, gain)
        self.norm2 = TokenNorm(width)
        self.mlp = MLP(width, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, T, width]` → tokens."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Positions(nn.Module):
    """A learned vector of unit variance for each token."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors anew."""
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T or 1, width]` → `[N, T, width]`."""
        return x + self.weight


class Condition(Fused):
    """Latents (and labels) to the vector that modulates a generator."""

    def __init__(self, z_dim: int, classes: int, width: int) -> None:
        super().__init__()
        self.expand = Linear(z_dim, width)
        self.act = BiasAct(width, act="silu")
        self.project = Linear(width, width, bias=True)
        self.embedding = Embedding(classes, width, gain=math.sqrt(classes)) if classes else None

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """`[N, z_dim]`, labels int64 `[N]` → `[N, width]`."""
        condition = self.project(self.act(self.expand(z)))
        return condition if self.embedding is None else condition + self.embedding(labels)


class ToImage(nn.Module):
    """Tokens to the patches of an image, after a norm that the condition modulates."""

    def __init__(self, width: int, channels: int, patch: int, side: int) -> None:
        super().__init__()
        self.shape = (side, side, channels, patch, patch)
        self.modulation = Modulation(width, 2, gain=1.0)
        self.norm = TokenNorm(width, learned=False)
        self.linear = Linear(width, channels * patch**2, bias=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens `[N, T, width]`, condition `[N, width]` → `[N, C, H, W]`."""
        shift, scale = self.modulation(condition)
        patches = self.linear(self.norm(x, 1 + scale, shift)).flatten(1).unflatten(1, self.shape)
        # [N, row, column, C, y, x] → [N, C, row, y, column, x]
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class TransformerGenerator(Network):
    """Latents (and labels) to images.

    Args:
        resolution: of the images, a multiple of `patch`.
        channels: of the images.
        classes: number of classes; 0 for an unconditional generator.
        z_dim: size of the latent.
        width: of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: of attention.
        patch: height and width of the square of pixels that a token stands for.

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
        z_dim: int = 64,
        width: int,
        depth: int,
        heads: int,
        patch: int,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        side = _side(resolution, patch, width, depth, heads)
        self.condition = Condition(z_dim, classes, width)
        self.positions = Positions(side**2, width)
        # The units in which to shard and to checkpoint.
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads) for _ in range(depth))
        self.to_image = ToImage(width, channels, patch, side)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]`, labels int64 `[N]` → images `[N, C, H, W]`, about [−1, 1]."""
        condition = self.condition(z, labels)
        x = self.positions(condition[:, None])
        for block in self.blocks:
            x = block(x, condition)
        return self.to_image(x, condition)


class TransformerDiscriminator(Network):
    """Images (and labels, by projection) to logits; arguments as `TransformerGenerator`'s.

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
        width: int,
        depth: int,
        heads: int,
        patch: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        side = _side(resolution, patch, width, depth, heads)
        self.from_patches = Linear(channels * patch**2, width, bias=True)
        self.positions = Positions(side**2, width)
        # The units in which to shard and to checkpoint.
        self.blocks = nn.ModuleList(Block(width, heads, depth) for _ in range(depth))
        self.norm = TokenNorm(width)
        self.head = Linear(width, 1, bias=True)
        self.embedding = (
            Embedding(classes, width, gain=math.sqrt(classes / width)) if classes else None
        )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, labels int64 `[N]` → logits `[N]`."""
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).mT
        x = self.positions(self.from_patches(patches))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).mean(1)
        logits = self.head(x).sum(1)
        # Miyato and Koyama 2018, equation 3.
        return logits if self.embedding is None else logits + (x * self.embedding(labels)).sum(1)


def _side(resolution: int, patch: int, width: int, depth: int, heads: int) -> int:
    """How many patches an image is high and wide."""
    if patch < 1 or resolution % patch:
        raise ValueError(f"patch {patch} does not divide resolution {resolution}")
    if heads < 1 or width % heads:
        raise ValueError(f"heads {heads} does not divide width {width}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return resolution // patch
