"""StyleGAN2's discriminator (Karras et al. 2020), and what StyleGAN2-ADA makes of it."""

import math

from torch import Tensor, nn

from dgan.networks.equalized import EqualizedConv2d, EqualizedLinear
from dgan.networks.layers import Embedding, Fused, channels_last, stages_of
from dgan.networks.network import Network
from dgan.networks.stylegan2 import Mapping
from dgan_kernels import minibatch_stddev


class HalvingStage(nn.Module):
    """One resolution: two convolutions to half the size.

    If it is `residual`, a 1×1 convolution to the same stands beside them.
    """

    def __init__(self, inputs: int, outputs: int, *, residual: bool) -> None:
        super().__init__()
        half = math.sqrt(0.5) if residual else 1.0
        self.conv1 = EqualizedConv2d(inputs, inputs, 3)
        self.conv2 = EqualizedConv2d(inputs, outputs, 3, down=True, gain=half)
        self.skip = None
        if residual:
            self.skip = EqualizedConv2d(inputs, outputs, 1, down=True, act="linear", gain=half)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` → `[N, outputs, H/2, W/2]`."""
        h = self.conv2(self.conv1(x))
        return h if self.skip is None else self.skip(x) + h


class Head(Fused):
    """4×4 features to a vector, which sees how much the samples of a group differ."""

    def __init__(self, channels: int, outputs: int, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.conv = EqualizedConv2d(channels + (group_size > 1), channels, 3)
        self.hidden = EqualizedLinear(16 * channels, channels, act="leaky_relu")
        self.out = EqualizedLinear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, 4, 4]` → `[N, outputs]`."""
        if self.group_size > 1:
            x = self._with_deviation(x)
        return self.out(self.hidden(self.conv(x).flatten(1)))

    def _with_deviation(self, x: Tensor) -> Tensor:
        # Neighbours form a group, where the operator takes samples that lie far apart: the groups
        # of a batch that is spread over ranks are then those of the whole batch.
        size = math.gcd(len(x), self.group_size)
        apart = x.unflatten(0, (-1, size)).transpose(0, 1).flatten(0, 1)
        apart = minibatch_stddev(apart, size, backend=self.backend)
        return apart.unflatten(0, (size, -1)).transpose(0, 1).flatten(0, 1)


class StyleGAN2Discriminator(Network):
    """Images (and labels, by projection) to logits.

    Args:
        widths: channels at 4×4, 8×8, …, `resolution`.
        group_size: how many neighbouring samples of a batch are compared with each other (Karras
            et al. 2018, section 3); where it does not divide a rank's micro-batch, their greatest
            common divisor. 1 leaves it out, and samples are then judged one by one.
        residual: have connections around the convolutions of each resolution; the first StyleGAN
            and StyleGAN2-ADA's configuration for CIFAR-10 have none.
        mapping_layers: what is projected on is the class's embedding after so many layers, as in
            StyleGAN2-ADA (Karras et al. 2020, "Training GANs with limited data", appendix C).

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        classes: int = 0,
        widths: tuple[int, ...],
        group_size: int = 4,
        residual: bool = True,
        mapping_layers: int = 0,
    ) -> None:
        super().__init__()
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        if mapping_layers < 0:
            raise ValueError(f"mapping_layers must be at least 0, got {mapping_layers}")
        self.couples_samples = group_size > 1
        steps = stages_of(resolution, widths, "StyleGAN2Discriminator")[::-1]
        size = widths[0] if classes else 1
        self.from_image = EqualizedConv2d(channels, widths[-1], 1)
        self.stages = nn.ModuleList(
            HalvingStage(inputs, outputs, residual=residual) for outputs, inputs in steps
        )
        self.head = Head(widths[0], size, group_size)
        self.embedding = self.mapping = None
        if classes and mapping_layers:
            self.mapping = Mapping(0, classes, size, mapping_layers)
        elif classes:
            self.embedding = Embedding(classes, size, gain=math.sqrt(classes / size))

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return [*self.stages, self.head]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `[N, C, H, W]`, labels int64 `[N]` → logits `[N]`."""
        x = channels_last(self.from_image(x))
        for stage in self.stages:
            x = stage(x)
        x = self.head(x)
        if self.mapping is not None:
            x = x * self.mapping(None, labels) / math.sqrt(x.shape[1])
        elif self.embedding is not None:
            x = x * self.embedding(labels)
        return x.sum(1)
