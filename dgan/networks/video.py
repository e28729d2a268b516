"""Short clips: residual networks whose convolutions are factorised, over a frame and over time.

Two judges share the discriminator's work, as in MoCoGAN (Tulyakov et al. 2018, "MoCoGAN:
decomposing motion and content for video generation") and DVD-GAN (Clark et al. 2019, "Adversarial
video generation on complex datasets", section 3.2): one of some frames at full resolution, one of
the whole clip at half of it. Here frames stand at fixed places, so that no random number is needed,
and a 3×3×3 convolution is one of 3×3 and then one of 3 (R(2+1)D, Tran et al. 2018). Blocks are
R3GAN's (`dgan.networks.r3gan`): nothing is normalised, and depth does not change the variance.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgan.networks.judges import side_by_side
from dgan.networks.layers import (
    LEAKY_RELU_GAIN,
    BiasAct,
    Conv2d,
    Embedding,
    Linear,
    fan_in_normal_,
    stages_of,
)
from dgan.networks.network import Network
from dgan.networks.resampling import Resample

MOTION = 0.3
"""Spread at the start of what frames differ in, beside 1 of what they share."""


class FrameConv2d(Conv2d):
    """A convolution of every frame by itself."""

    def forward(self, input: Tensor) -> Tensor:
        """`[N, inputs, T, H, W]` → `[N, outputs, T, H, W]`."""
        count, _, frames, height, _ = input.shape
        if self.kernel_size == (1, 1):  # whose neighbours do not matter: nothing is moved
            return super().forward(input.flatten(2, 3)).unflatten(2, (frames, height))
        folded = super().forward(input.transpose(1, 2).flatten(0, 1))
        return folded.unflatten(0, (count, frames)).transpose(1, 2)


class TimeConv(nn.Conv1d):
    """A convolution over three frames of every pixel by itself; zeros before the clip and after."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        self.gain = gain
        super().__init__(inputs, outputs, 3, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        fan_in_normal_(self.weight, self.gain)

    def forward(self, input: Tensor) -> Tensor:
        """`[N, inputs, T, H, W]` → `[N, outputs, T, H, W]`."""
        size = input.shape[3:]
        # As images of T × H·W: several times faster on a CPU than a convolution of three dimensions
        # is, and pixels need not be moved.
        pixels = F.conv2d(input.flatten(3), self.weight[..., None], padding=(1, 0))
        return pixels.unflatten(3, size)


class ClipBlock(nn.Module):
    """x + W₃ φ(W₂ φ(W₁ x)): 3×3 over the frame, 3 over time, 1×1; W₃ starts at zero.

    `depth` is the number of such blocks in the network, by which Fix-up scales the layers before
    the zero one (see `dgan.networks.r3gan.ResidualBlock`). Of single frames there is no W₂.
    """

    def __init__(self, channels: int, *, frames: int, depth: int) -> None:
        super().__init__()
        gain = LEAKY_RELU_GAIN * depth ** (-1 / 4 if frames > 1 else -1 / 2)
        self.over_frame = FrameConv2d(channels, channels, kernel_size=3, gain=gain)
        self.act1 = BiasAct(channels)
        self.over_time = (
            nn.Sequential(TimeConv(channels, channels, gain), BiasAct(channels))
            if frames > 1
            else nn.Identity()
        )
        self.project = FrameConv2d(channels, channels, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, T, H, W]` → the same shape."""
        return x + self.project(self.over_time(self.act1(self.over_frame(x))))


class Up(nn.Module):
    """Width by a 1×1 convolution, then twice the size; `longer`: and every frame twice."""

    def __init__(self, inputs: int, outputs: int, size: int, *, longer: bool) -> None:
        super().__init__()
        self.conv = FrameConv2d(inputs, outputs)
        self.resample = Resample(size, up=True)
        self.longer = longer

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, T, size, size]` → `[N, outputs, T or 2·T, 2·size, 2·size]`."""
        x = _each_frame(self.resample, self.conv(x))
        return x[:, :, :, None].expand(-1, -1, -1, 2, -1, -1).flatten(2, 3) if self.longer else x


class Down(nn.Module):
    """Half the size, then width by a 1×1 convolution; `shorter`: and means of two frames."""

    def __init__(self, inputs: int, outputs: int, size: int, *, shorter: bool) -> None:
        super().__init__()
        self.resample = Resample(size, up=False)
        self.conv = FrameConv2d(inputs, outputs)
        self.shorter = shorter

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, T, size, size]` → `[N, outputs, T or T/2, size/2, size/2]`."""
        x = x.unflatten(2, (-1, 2)).mean(3) if self.shorter else x
        return self.conv(_each_frame(self.resample, x))


class ClipHead(nn.Module):
    """A linear map of all features, of which the sum is the logit, or the class's projection."""

    def __init__(self, features: int, classes: int, size: int) -> None:
        super().__init__()
        self.linear = Linear(features, size if classes else 1)
        self.embedding = Embedding(classes, size, gain=size**-0.5) if classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """`[N, ...]`, labels int64 `[N]` → logits `[N]`."""
        x = self.linear(x.flatten(1))
        return (x if self.embedding is None else x * self.embedding(labels)).sum(1)


class VideoGenerator(Network):
    """Latents (and labels) to clips.

    It begins with frames of 4×4, few of them, that share their content and differ in motion. From
    there on each stage has twice the size, and the first ones also twice the frames, until there
    are `frames`.

    Args:
        resolution: height and width of the frames, a power of two.
        channels: of the frames.
        frames: of a clip. Where half of them is a whole number above 1, they begin as half, and so
            on, but no more often than there are stages to double them in.
        classes: number of classes; 0 for an unconditional generator.
        z_dim: size of the latent.
        widths: channels at 4×4, 8×8, …, `resolution`.
        blocks: residual blocks of each stage.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    couples_samples = False

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        frames: int,
        classes: int = 0,
        z_dim: int = 64,
        widths: tuple[int, ...],
        blocks: int = 1,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        steps = stages_of(resolution, widths, "VideoGenerator")
        lengths, depth = lengths_of(frames, len(widths)), blocks * len(widths)
        self.length = lengths[0]
        self.embedding = Embedding(classes, z_dim) if classes else None
        inputs = 2 * z_dim if classes else z_dim
        self.content = Linear(inputs, 16 * widths[0])
        self.motion = Linear(inputs, 16 * widths[0] * lengths[0], gain=MOTION)
        self.stages = nn.ModuleList([_stage(widths[0], lengths[0], blocks, depth)])
        for level, (before, after) in enumerate(steps):
            longer = lengths[level + 1] > lengths[level]
            up = Up(before, after, 4 << level, longer=longer)
            self.stages.append(nn.Sequential(up, *_stage(after, lengths[level + 1], blocks, depth)))
        self.to_clip = nn.Sequential(
            FrameConv2d(widths[-1], channels), BiasAct(channels, act="linear")
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        return list(self.stages)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents `[N, z_dim]`, labels int64 `[N]` → clips `[N, C, T, H, W]`, about [−1, 1]."""
        z = z if self.embedding is None else torch.cat([z, self.embedding(labels)], dim=1)
        content, motion = self.content(z), self.motion(z)
        x = content.unflatten(1, (-1, 1, 4, 4)) + motion.unflatten(1, (-1, self.length, 4, 4))
        for stage in self.stages:
            x = stage(x)
        return self.to_clip(x)


class Judge(nn.Module):
    """Clips (and labels) to logits, from `resolution` down to 4×4; of one frame: images.

    Args: as `VideoGenerator`, its mirror image.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        frames: int,
        classes: int,
        widths: tuple[int, ...],
        blocks: int,
    ) -> None:
        super().__init__()
        steps = stages_of(resolution, widths, "VideoDiscriminator")
        lengths, depth = lengths_of(frames, len(widths)), blocks * len(widths)
        self.from_clip = FrameConv2d(channels, widths[-1])
        self.stages = nn.ModuleList([_stage(widths[-1], lengths[-1], blocks, depth)])
        for level in reversed(range(len(steps))):
            after, before = steps[level]
            shorter = lengths[level + 1] > lengths[level]
            down = Down(before, after, 8 << level, shorter=shorter)
            self.stages.append(nn.Sequential(down, *_stage(after, lengths[level], blocks, depth)))
        self.head = ClipHead(16 * widths[0] * lengths[0], classes, widths[0])

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Clips `[N, C, T, H, W]`, labels int64 `[N]` → logits `[N]`."""
        x = self.from_clip(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x, labels)


class VideoDiscriminator(Network):
    """Clips (and labels, by projection) to the logits of two judges: of frames, and of the clip.

    The judge of frames sees some at full resolution, one at a time, and gives their mean logit; the
    other sees all of them at half of it, over time. A loss is the mean over both logits, and a
    gradient penalty that of their sum, as of other judges (`dgan.networks.judges`).

    Args: as `VideoGenerator`, with a `resolution` of 8 or more, and
        seen: frames that the judge of frames is given, evenly spread over the clip.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    couples_samples = False

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        frames: int,
        classes: int = 0,
        widths: tuple[int, ...],
        blocks: int = 1,
        seen: int = 2,
    ) -> None:
        super().__init__()
        if resolution < 8:
            raise ValueError(
                f"VideoDiscriminator cannot halve clips of resolution {resolution}: it takes 8, 16…"
            )
        if seen < 1 or frames % seen:
            raise ValueError(
                f"VideoDiscriminator sees {seen} of {frames} frames evenly spread: `seen` must "
                "divide them"
            )
        sizes = {"channels": channels, "classes": classes, "blocks": blocks}
        self.between = frames // seen
        self.of_frames = Judge(resolution=resolution, frames=1, widths=widths, **sizes)
        self.of_clips = Judge(
            resolution=resolution // 2, frames=frames, widths=widths[:-1], **sizes
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """The units in which to shard and to checkpoint."""
        judges = (self.of_frames, self.of_clips)
        return [part for judge in judges for part in (*judge.stages, judge.head)]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Clips `[N, C, T, H, W]`, labels int64 `[N]` → logits `[N, 2]`: of frames, of clips."""
        frames = x[:, :, self.between // 2 :: self.between].transpose(1, 2)  # [N, seen, C, H, W]
        count = frames.shape[1]
        asked = None if labels is None else labels.repeat_interleave(count)
        of_frames = self.of_frames(frames.flatten(0, 1)[:, :, None], asked)
        halved = x.unflatten(4, (-1, 2)).mean(5).unflatten(3, (-1, 2)).mean(4)
        of_each = of_frames.unflatten(0, (-1, count)).mean(1)
        return side_by_side([of_each, self.of_clips(halved, labels)])


def lengths_of(frames: int, stages: int) -> list[int]:
    """Frames at each stage from 4×4 up; the first ones double them, down to at least 2.

    Raises:
        ValueError: `frames` is less than 1.
    """
    if frames < 1:
        raise ValueError(f"a clip has at least 1 frame, not {frames}: set --data.frames")
    doublings = 0
    while doublings < stages - 1 and frames % 2 == 0 and frames > 2:
        frames, doublings = frames // 2, doublings + 1
    return [frames << min(level, doublings) for level in range(stages)]


def _stage(width: int, frames: int, blocks: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(ClipBlock(width, frames=frames, depth=depth) for _ in range(blocks)))


def _each_frame(layer: Resample, x: Tensor) -> Tensor:
    """`layer` on `[N, C·T, H, W]`: it treats channels alike, and so frames."""
    return layer(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
