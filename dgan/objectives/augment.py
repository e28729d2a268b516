"""Augmentations that both players' images go through before they are judged.

Functions of images `[N, C, H, W]` in [−1, 1] and of uniform numbers in [0, 1), one row a sample:
what happens to a sample depends on its own row alone, so that the same rows of the global batch
give the same images at every world size. All are differentiable to any order in the images, in
reverse and forward mode. A penalty is taken with respect to the images before them, which is
`gradient_penalty(lambda x: discriminator(augment(x, numbers)), x)`, as the papers do; or after
them, `gradient_penalty(discriminator, augment(x, numbers))`.

Here: DiffAugment, instance noise, and how ADA's probability follows r_t. ADA's own transforms are
in `augment_adaptive`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

DIFF_AUGMENT = {"color": 3, "translation": 2, "cutout": 2}
"""DiffAugment's transforms in the order in which they apply, and the numbers each takes."""

DIFF_AUGMENT_NUMBERS = sum(DIFF_AUGMENT.values())
"""Columns of `uniform` in `diff_augment`, whatever the policy."""


def diff_augment(
    images: Tensor, uniform: Tensor, policy: Sequence[str] = tuple(DIFF_AUGMENT)
) -> Tensor:
    """DiffAugment (Zhao et al. 2020, "Differentiable augmentation for data-efficient GANs").

    `color` adds [−½, ½] to the brightness, scales saturation by [0, 2] and contrast by [½, 1½];
    `translation` moves by up to an eighth of the size, zeros come in; `cutout` puts zeros into a
    square of half the size, its centre anywhere. Always, not with a probability.

    Args:
        images: `[N, C, H, W]`.
        uniform: `[N, DIFF_AUGMENT_NUMBERS]` in [0, 1).
        policy: which of `DIFF_AUGMENT`; each keeps its numbers whichever others are there.

    Raises:
        ValueError: there is no such transform, or `uniform` has another shape.
    """
    for name in policy:
        if name not in DIFF_AUGMENT:
            raise ValueError(
                f"there is no transform {name!r}; choose from {', '.join(DIFF_AUGMENT)}"
            )
    check_numbers(images, uniform, DIFF_AUGMENT_NUMBERS)
    color, translation, cutout = uniform.split(list(DIFF_AUGMENT.values()), dim=1)
    if "color" in policy:
        images = _colored(images, color)
    if "translation" in policy:
        images = _translated(images, translation)
    if "cutout" in policy:
        images = _cut_out(images, cutout)
    return images


def instance_noise(images: Tensor, normal: Tensor, scale: float) -> Tensor:
    """x + scale · ε, ε standard normal of the images' shape, drawn anew for real and generated.

    Sønderby et al. 2017 ("Amortised MAP inference", instance noise); Arjovsky and Bottou 2017,
    section 3. Anneal `scale` to 0 over the run.

    Raises:
        ValueError: `scale` is negative.
    """
    if scale < 0:
        raise ValueError(f"the scale of instance noise is {scale}; it must be at least 0")
    return images + scale * normal.to(images.dtype)


def adapted(p: Tensor, sign: Tensor, images: int, target: float = 0.6, kimg: float = 500) -> Tensor:
    """ADA's next probability, a scalar in [0, 1], `images` real images after p.

    Karras et al. 2020 ("Training GANs with limited data"), section 3: r_t = E sign(D(x)) over
    real training images grows as the discriminator overfits; where it is above `target`, p grows,
    else it falls, so fast that it goes from 0 to 1 within `kimg` thousand images.

    Args:
        p: the probability so far, a scalar that a checkpoint holds.
        sign: r_t, the mean of `real_logits.sign()` over the global batch (or several of them;
            they take 4).
        images: real images seen since p was last adapted.
        target: of r_t.
        kimg: how fast.

    Raises:
        ValueError: `kimg` is not positive.
    """
    if not kimg > 0:
        raise ValueError(f"kimg is {kimg}; the time from p = 0 to 1 must be positive")
    step = images / (1000 * kimg)
    direction = (sign.detach().to(p.dtype) - target).sign()
    # At 1 everything is applied: beyond it, p would only be slower to come back.
    return (p + step * direction).clamp(0.0, 1.0)


def check_numbers(images: Tensor, uniform: Tensor, count: int) -> None:
    """Raise `ValueError` unless there are `count` numbers for each of the images `[N, C, H, W]`."""
    if images.ndim != 4 or uniform.shape != (len(images), count):
        raise ValueError(
            f"images are {tuple(images.shape)} and their uniform numbers {tuple(uniform.shape)}; "
            f"they must be [N, C, H, W] and [N, {count}]"
        )


def one_of(uniform: Tensor, count: Tensor | int) -> Tensor:
    """A whole number 0 … count − 1, equally likely, of the uniform numbers' dtype."""
    # A number that was rounded up to 1 belongs to the last.
    return (uniform * count).floor().clamp(max=count - 1)


def columns(values: Tensor) -> Iterator[Tensor]:
    """Each column of `[N, K]` as `[N, 1, 1, 1]`, to go with images."""
    return (value.view(-1, 1, 1, 1) for value in values.unbind(1))


def picked(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels (rows, columns), int64 `[N, ...]`, of images `[N, C, H, W]`: `[N, C, ...]`.

    By `gather`, which, unlike `grid_sample`, can be differentiated to any order.
    """
    index = (rows * images.shape[3] + columns).flatten(1)
    index = index[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).unflatten(2, rows.shape[1:])


def _colored(x: Tensor, uniform: Tensor) -> Tensor:
    brightness, saturation, contrast = columns(uniform.to(x.dtype))
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + 2 * saturation * (x - grey)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (x - mean)


def _translated(x: Tensor, uniform: Tensor) -> Tensor:
    # [N, H or W]: where each row and column of the result comes from.
    sources = []
    for size, number in zip(x.shape[2:], uniform.unbind(1)):
        furthest = int(size / 8 + 0.5)
        shift = one_of(number, 2 * furthest + 1).long() - furthest
        sources.append(torch.arange(size, device=x.device) + shift[:, None])
    inside = [(source >= 0) & (source < size) for source, size in zip(sources, x.shape[2:])]
    rows, columns = (source.clamp(0, n - 1) for source, n in zip(sources, x.shape[2:]))
    rows, columns = torch.broadcast_tensors(rows[:, :, None], columns[:, None, :])
    visible = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return picked(x, rows, columns) * visible


def _cut_out(x: Tensor, uniform: Tensor) -> Tensor:
    hidden = []
    for size, number in zip(x.shape[2:], uniform.unbind(1)):
        side = int(size / 2 + 0.5)
        # An even side lies around a corner of pixels, of which there is one more.
        first = one_of(number, size + 1 - side % 2).long()[:, None] - side // 2
        pixels = torch.arange(size, device=x.device)
        hidden.append((pixels >= first) & (pixels < first + side))
    return x * ~(hidden[0][:, None, :, None] & hidden[1][:, None, None, :])
