"""StyleGAN2's convolution, whose weights are scaled by a style for each sample."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dgan_kernels.bias_act import bias_act
from dgan_kernels.checks import check_tensor
from dgan_kernels.reference_upfirdn2d import filter_size, own_dtype
from dgan_kernels.upfirdn2d import factors, sides, upfirdn2d

_EPSILON = 1e-8


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    noise: Tensor | None = None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    bias: Tensor | None = None,
    act: str = "linear",
    gain: float = 1.0,
    clamp: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolve each sample with its own modulated and demodulated weights, plus noise.

    Then, in one pass with demodulation and noise, ``clamp(gain * act(· + bias))`` as in `bias_act`.
    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", equations 1 to 3:
    w'_oik = s_i·w_oik and w''_oik = w'_oik / √(Σ_ik w'_oik² + 10⁻⁸). The weights of a sample are
    never built: s scales x before the convolution, and d_o = 1 / √(Σ_i s_i²·Σ_k w_oik² + 10⁻⁸)
    its result; d of all samples is one matrix product, s²·(Σ_k w²)ᵀ.

    Args:
        x: [N, C, H, W]; float16, bfloat16, float32 or float64, which the result has.
        weight: [O, C, rows, columns]; of x's dtype or wider.
        styles: [N, C]; of x's dtype or wider. The demodulation is computed in the wider dtype.
        noise: [N or 1, 1 or O, height, width] of the result, added to it; or None.
        up: the factor of upsampling, or (x, y), through ``resample_filter``.
        down: the factor of downsampling, or (x, y), through ``resample_filter``.
        padding: of the upsampled x, as in `upfirdn2d`, beside what centres the filter;
            (size - 1) // 2 of a square, odd weight keeps the size.
        resample_filter: as in `upfirdn2d`, normalised to sum 1; None is the single tap 1.
        demodulate: whether to divide by the weights' norm; False where the result is an image.
        flip_weight: True correlates, as `torch.nn.functional.conv2d` does; False convolves.
        bias: [O], of any floating dtype, or None.
        act: the activation, as in `bias_act`.
        gain: a factor after the activation.
        clamp: a bound on the absolute value of the result, or None.
        backend: of `bias_act` and `upfirdn2d`: "triton", "reference", or None to choose.

    Returns:
        [N, O, height, width]: the upsampled, padded, convolved and downsampled x.

    Derivatives:
        In x, weight, styles, noise and bias, in reverse and forward mode. Where `bias_act` takes
        its Triton kernels, first and second; with backend="reference", any order.

    Limits:
        Noise of more than one channel is added in a pass of its own, after the demodulation.
        In float16, styles and weights are scaled to at most 1 before a demodulation, which takes
        the scale out again but for the 10⁻⁸, so that no sum overflows.
    """
    _check(x, weight, styles, bias)
    if demodulate and x.dtype == torch.float16:
        # Constants: the result does not depend on them.
        fan_in = weight[0].numel() ** 0.5
        weight = weight / (fan_in * weight.detach().abs().amax((1, 2, 3), True)).clamp(min=1e-12)
        styles = styles / styles.detach().abs().amax(1, True).clamp(min=1e-12)
    up, down = factors("up", up), factors("down", down)
    y = _resampled_conv2d(
        x * styles.to(x.dtype)[:, :, None, None],
        (weight if flip_weight else weight.flip((2, 3))).to(x.dtype),
        up, down, _centred(sides(padding), up, down, resample_filter), resample_filter, backend,
    )  # fmt: skip
    scale = None
    if demodulate:
        wide = torch.promote_types(weight.dtype, styles.dtype)
        with own_dtype(x):
            energy = styles.to(wide).square() @ weight.to(wide).square().sum((2, 3)).T
        scale = (energy + _EPSILON).rsqrt().to(y.dtype)
    if noise is not None:
        _check_noise(noise, y)
        noise = noise.to(y.dtype)
        if noise.shape[1] > 1:  # bias_act takes noise that all channels share
            y = (y if scale is None else y * scale[:, :, None, None]) + noise
            scale = noise = None
    nothing_left = scale is None and noise is None and bias is None
    if nothing_left and (act, gain, clamp) == ("linear", 1.0, None):
        return y
    return bias_act(
        y, None if bias is None else bias.to(y.dtype), act=act, gain=gain, clamp=clamp,
        scale=scale, noise=noise, backend=backend,
    )  # fmt: skip


def _resampled_conv2d(
    x: Tensor, weight: Tensor, up: tuple[int, int], down: tuple[int, int],
    padding: Sequence[int], filter: Tensor | None, backend: str | None,
) -> Tensor:  # fmt: skip
    """Upsample x through the filter, pad, correlate, and downsample through the filter.

    Filter and convolution commute: neither is computed on pixels that are dropped afterwards, or
    on zeros that were inserted.
    """
    resample = partial(upfirdn2d, backend=backend)
    rows, columns = weight.shape[2:]
    if up == (1, 1):
        left, right, top, bottom = padding
        if down != (1, 1) and rows == columns == 1:
            return F.conv2d(resample(x, filter, down=down, padding=padding), weight)
        if down != (1, 1):
            x = resample(x, filter, padding=padding)
            return F.conv2d(x, weight, stride=(down[1], down[0]))
        if left == right >= 0 and top == bottom >= 0:
            return F.conv2d(x, weight, padding=(top, left))
        return F.conv2d(resample(x, padding=padding), weight)
    gain = up[0] * up[1]
    if rows == columns == 1:
        y = resample(F.conv2d(x, weight), filter, up=up, padding=padding, gain=gain)
    else:
        # Has every position that the weight reaches: rows - 1 and columns - 1 too many at each
        # side; and no zeros after the last pixel.
        y = F.conv_transpose2d(x, weight.transpose(0, 1).flip((2, 3)), stride=(up[1], up[0]))
        more = (1 - columns, up[0] - columns, 1 - rows, up[1] - rows)
        y = resample(y, filter, padding=[p + m for p, m in zip(padding, more)], gain=gain)
    return y if down == (1, 1) else resample(y, filter, down=down)


def _centred(
    padding: Sequence[int], up: tuple[int, int], down: tuple[int, int], filter: Tensor | None
) -> list[int]:
    """Return ``padding`` with what keeps pixels centred through the filter."""
    left, right, top, bottom = padding
    columns, rows = (1, 1) if filter is None else filter_size(filter)
    if max(up) > 1:
        left, right = left + (columns + up[0] - 1) // 2, right + (columns - up[0]) // 2
        top, bottom = top + (rows + up[1] - 1) // 2, bottom + (rows - up[1]) // 2
    if max(down) > 1:
        left, right = left + (columns - down[0] + 1) // 2, right + (columns - down[0]) // 2
        top, bottom = top + (rows - down[1] + 1) // 2, bottom + (rows - down[1]) // 2
    return [left, right, top, bottom]


def _check(x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("styles", styles), ("bias", bias)):
        if name != "bias" or bias is not None:
            check_tensor(name, tensor)
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted: [N, C, H, W]")
    if weight.ndim != 4 or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; accepted: [O, {x.shape[1]}, rows, columns], "
            f"for x has shape {tuple(x.shape)}"
        )
    if styles.shape != x.shape[:2]:
        raise ValueError(
            f"styles has shape {tuple(styles.shape)}; accepted: [{x.shape[0]}, {x.shape[1]}], one "
            f"for each sample and channel of x"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; accepted: [{weight.shape[0]}], one for each "
            f"channel of the result"
        )


def _check_noise(noise: Tensor, y: Tensor) -> None:
    check_tensor("noise", noise)
    samples, channels, height, width = y.shape
    fits = noise.ndim == 4 and all(
        given == size or (d < 2 and given == 1)
        for d, (given, size) in enumerate(zip(noise.shape, y.shape))
    )
    if not fits:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; accepted: [{samples} or 1, 1 or {channels}, "
            f"{height}, {width}], for a result of shape {tuple(y.shape)}"
        )
