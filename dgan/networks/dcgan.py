"""DCGAN (Radford et al. 2016): strided convolutions and batch normalisation."""

import torch
from torch import Tensor, nn

from dgan.draws import seeds_from_latents
from dgan.networks.convolution import Conv2d, ConvTranspose2d
from dgan.networks.heads import head_named
from dgan.networks.layers import NORMS, BiasAct, Embedding, NormAct, stages_of
from dgan.networks.network import Network
from dgan.networks.virtual_batch_norm import VirtualBatchNorm


def norm_named(norm: str, channels: int, act: str) -> nn.Module:
    """A norm and an activation in one layer."""
    if norm == "virtual":
        return VirtualBatchNorm(channels, act=act)
    return NormAct(channels, norm, act=act)


class DCGANGenerator(Network):
    """Latents (and labels) to images in (−1, 1).

    Args: as `R3GANGenerator`; `widths` are the channels at 4×4, 8×8, …, `resolution / 2`, `norm` is
    `batch` as in the paper or `virtual`, which keeps samples apart (`VirtualBatchNorm`).
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        z_dim: int = 100,
        widths: tuple[int, ...],
        head: str = "tanh",
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if norm not in ("batch", "virtual"):
            raise ValueError(f"norm {norm!r} is not known here: choose from batch, virtual")
        self.couples_samples = norm == "batch"
        self.z_dim, self.classes, self.head = z_dim, classes, head_named(head)
        steps = stages_of(resolution, (*widths, channels), "DCGANGenerator")
        self.embedding = Embedding(classes, z_dim) if classes else None
        inputs = 2 * z_dim if classes else z_dim
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    ConvTranspose2d(inputs, widths[0], 4, bias=False),
                    norm_named(norm, widths[0], "relu"),
                )
            ]
        )
        for before, after in steps[:-1]:
            up = ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
            self.stages.append(nn.Sequential(up, norm_named(norm, after, "relu")))
        features = self.head.parameters * channels
        self.to_image = ConvTranspose2d(widths[-1], features, 4, stride=2, padding=1)

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.stages)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]`, labels int64 `[N]` → images `[N, C, H, W]`."""
        x = z if self.embedding is None else torch.cat([z, self.embedding(labels)], dim=1)
        x = x[:, :, None, None]
        for stage in self.stages:
            x = stage(x)
        return self.head.image(self.to_image(x), seeds_from_latents(z))

    def reference_inputs(self, rows: int) -> list[Tensor]:
        """Latents (and labels in turn) that virtual batch normalisation refers to."""
        labels = [torch.arange(rows) % self.classes] if self.classes else []
        return [torch.randn(rows, self.z_dim), *labels]


class DCGANDiscriminator(Network):
    """Images (and labels, by projection) to logits.

    Args:
        widths: channels at 4×4, 8×8, …, `resolution / 2`.
        norm: `batch` as in the paper, which judges a sample by the others of its batch; `layer`,
            `instance` or `none`, which do not, as gradient penalties ask (Gulrajani et al. 2017,
            section 4, recommend `layer`); or `virtual`, which judges it by a reference batch
            (Salimans et al. 2016).
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        widths: tuple[int, ...],
        norm: str = "batch",
    ) -> None:
        super().__init__()
        known = ("none", *NORMS, "virtual")
        if norm not in known:
            raise ValueError(f"norm {norm!r} is not known: choose from {', '.join(known)}")
        self.shape, self.classes = (channels, resolution, resolution), classes
        self.couples_samples = norm == "batch"
        steps = stages_of(resolution, (*widths, channels), "DCGANDiscriminator")[::-1]
        self.stages = nn.ModuleList()
        for index, (after, before) in enumerate(steps):
            down = Conv2d(before, after, 4, stride=2, padding=1, bias=False)
            # The first layer is not normalised (section 3 of the paper).
            normalised = norm != "none" and index
            act = norm_named(norm, after, "leaky_relu") if normalised else BiasAct(after)
            self.stages.append(nn.Sequential(down, act))
        self.features = Conv2d(widths[0], 1 if not classes else widths[0], 4)
        self.embedding = Embedding(classes, widths[0]) if classes else None

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [*self.stages, self.features]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, labels int64 `[N]` → logits `[N]`."""
        for stage in self.stages:
            x = stage(x)
        x = self.features(x).flatten(1)
        return (x if self.embedding is None else x * self.embedding(labels)).sum(1)

    def reference_inputs(self, rows: int) -> list[Tensor]:
        """Images (and labels) that virtual batch normalisation refers to: 0 until they are set."""
        labels = [torch.zeros(rows, dtype=torch.int64)] if self.classes else []
        return [torch.zeros(rows, *self.shape), *labels]
