"""upfirdn2d and what is built on it: change the resolution of images through a FIR filter."""

from collections.abc import Sequence
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from dgan_kernels import native_upfirdn2d, reference, reference_upfirdn2d
from dgan_kernels.checks import (
    TRITON,
    check_choice,
    check_clamp,
    check_input,
    check_number,
    check_tensor,
    check_vector,
    has_tangent,
    runs_triton,
)

if TRITON:
    from dgan_kernels import triton_upfirdn2d as kernels
else:
    kernels = None


class Epilogue(TypedDict, total=False):
    """What `upfirdn2d` does to its result, and where it runs; see there."""

    bias: Tensor | None
    act: str
    act_gain: float
    clamp: float | None
    backend: str | None


def upfirdn2d(
    x: Tensor,
    filter: Tensor | None = None,
    *,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    bias: Tensor | None = None,
    act: str = "linear",
    act_gain: float = 1.0,
    clamp: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Upsample x, pad it, filter it with ``filter``, and downsample it, in one pass over memory.

    The operator by which StyleGAN2 and 3 change resolution (Karras et al. 2020, 2021), each
    channel for itself: insert up - 1 zeros after every pixel, pad with zeros, convolve with the
    filter where it lies inside, multiply by gain, keep every down-th pixel from the first on.
    Then, in the same pass, ``clamp(act_gain * act(· + bias))`` as in `bias_act`.

    Args:
        x: [N, C, H, W]; float16, bfloat16, float32 or float64. Contiguous and channels_last memory
            is read in place and its order kept; other strides are copied first.
        filter: float32, on x's device: [taps], applied along both axes, or [rows, columns]; any
            sizes. None is the single tap 1. Not normalised here: taps usually sum to 1.
        up: how many pixels each becomes, or (x, y).
        down: one of how many pixels is kept, or (x, y).
        padding: zeros around the upsampled x: one number, (x, y), or (left, right, top, bottom);
            a negative number crops.
        flip_filter: False convolves, that is, the filter's last tap meets the first pixel; True
            correlates, as `torch.nn.functional.conv2d` does.
        gain: a factor on the filtered image; up**2 keeps the brightness through an upsampling.
        bias: [C], of x's dtype and device, or None.
        act: an activation of `bias_act`.
        act_gain: a factor after the activation; 1 by default, where StyleGAN's bias_act takes √2
            after relu and leaky_relu.
        clamp: a bound on the absolute value of the result, or None.
        backend: "triton", "reference" (plain PyTorch), or None to choose: Triton for 16-bit and
            32-bit tensors on a GPU, the reference for everything else.

    Returns:
        [N, C, (H·up_y + top + bottom - rows) // down_y + 1, the same for W], of x's dtype. Triton
        accumulates in float32; the reference accumulates as convolutions of x's dtype do.

    Derivatives:
        In x and bias. The operator is linear in x and its backward is itself, up and down
        exchanged, the filter flipped: in Triton, too, any order, in reverse and forward mode and
        mixed, through torch.autograd, torch.func and torch.compile. With ``act``, as many as
        `bias_act` has: two in Triton where the activation curves. The filter has no gradient.

    Limits:
        A filter that requires a gradient is refused. vmap, and torch.func or forward_ad inside
        torch.compile, run in plain PyTorch. With ``act``, the backward pass computes the filtered
        image again, in x's dtype, rather than keep it. A row of x, or of the result, has less than
        2**31 elements, all channels counted in channels_last.
    """
    filter = _filter(filter, x)
    return _resampled(
        x, filter, factors("up", up), factors("down", down), sides(padding), flip_filter, gain,
        bias=bias, act=act, act_gain=act_gain, clamp=clamp, backend=backend,
    )  # fmt: skip


def filter2d(
    x: Tensor,
    filter: Tensor,
    *,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    **epilogue: Unpack[Epilogue],
) -> Tensor:
    """Filter x [N, C, H, W] and keep its size; ``padding`` is added to what that takes.

    See `upfirdn2d` for the other arguments.
    """
    filter = _filter(filter, x)
    columns, rows = reference_upfirdn2d.filter_size(filter)
    around = (columns // 2, (columns - 1) // 2, rows // 2, (rows - 1) // 2)
    padding = _add(padding, around)
    return _resampled(x, filter, (1, 1), (1, 1), padding, flip_filter, gain, **epilogue)


def upsample2d(
    x: Tensor,
    filter: Tensor | None = None,
    *,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    **epilogue: Unpack[Epilogue],
) -> Tensor:
    """Return x [N, C, H, W] as [N, C, H·up_y, W·up_x], brightness kept, pixels centred.

    ``padding`` is added to what that takes. See `upfirdn2d` for the other arguments.
    """
    up_x, up_y = up = factors("up", up)
    filter = _filter(filter, x)
    columns, rows = reference_upfirdn2d.filter_size(filter)
    around = (
        (columns + up_x - 1) // 2, (columns - up_x) // 2, (rows + up_y - 1) // 2, (rows - up_y) // 2
    )  # fmt: skip
    padding, gain = _add(padding, around), gain * up_x * up_y
    return _resampled(x, filter, up, (1, 1), padding, flip_filter, gain, **epilogue)


def downsample2d(
    x: Tensor,
    filter: Tensor | None = None,
    *,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    **epilogue: Unpack[Epilogue],
) -> Tensor:
    """Return x [N, C, H, W] as [N, C, H / down_y, W / down_x], pixels centred.

    ``padding`` is added to what that takes. See `upfirdn2d` for the other arguments.
    """
    down_x, down_y = down = factors("down", down)
    filter = _filter(filter, x)
    columns, rows = reference_upfirdn2d.filter_size(filter)
    around = (
        (columns - down_x + 1) // 2, (columns - down_x) // 2,
        (rows - down_y + 1) // 2, (rows - down_y) // 2,
    )  # fmt: skip
    padding = _add(padding, around)
    return _resampled(x, filter, (1, 1), down, padding, flip_filter, gain, **epilogue)


def _resampled(
    x: Tensor, filter: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int],
    flip_filter: bool, gain: float, bias: Tensor | None = None, act: str = "linear",
    act_gain: float = 1.0, clamp: float | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Compute `upfirdn2d`, whose filter, up, down and padding are checked."""
    check_input("x", x)
    if x.ndim != 4 or 0 in x.shape[2:]:
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted: [N, C, H, W], H and W not 0")
    constants = (up, down, padding, flip_filter)
    _check_output(x, filter, *constants[:3])
    check_number("gain", gain)
    check_number("act_gain", act_gain)
    check_choice("act", act, reference.ACTIVATIONS)
    check_clamp(clamp)
    if bias is not None:
        check_vector("bias", bias, x, 1)
    epilogue = (act, float(act_gain), None if clamp is None else float(clamp))
    if not runs_triton(x, backend, "upfirdn2d") or kernels is None:
        y = native_upfirdn2d.upfirdn2d(x, filter, *constants, float(gain))
        return reference.bias_act(y, bias, *epilogue, 1)
    if has_tangent(filter):
        raise NotImplementedError(
            "filter has a tangent, which its kernels do not follow; ask for backend='reference'"
        )
    launched = (x, kernels.pack(filter))
    if bias is None and epilogue == ("linear", 1.0, None):
        return kernels.UPFIRDN2D(*launched, *constants, float(gain))
    if bias is not None:
        bias = bias.view(1, -1, 1, 1)
        if not torch.compiler.is_compiling():
            # As in bias_act: autograd then sums the bias's gradient only if it is asked for.
            size = reference_upfirdn2d.output_size(x.shape, filter, *constants[:3])
            bias = bias.expand(x.shape[0], -1, *size)
    return kernels.FUSED(*launched, bias, *constants, float(gain), *epilogue)


def _filter(filter: Tensor | None, x: Tensor) -> Tensor:
    """Return the filter, the single tap 1 for None; raise where it is not one."""
    check_tensor("x", x)
    if filter is None:
        return torch.ones(1, dtype=torch.float32, device=x.device)
    check_tensor("filter", filter)
    if filter.ndim not in (1, 2) or filter.numel() == 0:
        raise ValueError(
            f"filter has shape {tuple(filter.shape)}; accepted: [taps], applied along both axes, "
            f"or [rows, columns], none of them 0"
        )
    if filter.dtype != torch.float32:
        raise ValueError(f"filter has dtype {filter.dtype}; accepted: torch.float32")
    if filter.device != x.device:
        raise ValueError(f"filter is on {filter.device}; accepted: {x.device}, where x is")
    if filter.requires_grad:
        raise ValueError(
            "filter requires a gradient, and upfirdn2d has none for it; accepted: a constant, such "
            "as a buffer: pass filter.detach()"
        )
    return filter


def factors(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return (x, y)."""
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(f, int) and f >= 1 for f in pair):
        raise ValueError(f"{name}={value}; accepted: an integer of at least 1, or two, (x, y)")
    return pair


def sides(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Return (left, right, top, bottom)."""
    four = tuple(padding) if isinstance(padding, Sequence) else (padding, padding)
    if len(four) == 2:
        four = (four[0], four[0], four[1], four[1])
    if len(four) != 4 or not all(isinstance(side, int | torch.SymInt) for side in four):
        raise ValueError(
            f"padding={padding}; accepted: an integer, (x, y), or (left, right, top, bottom)"
        )
    return four


def _add(padding: int | Sequence[int], around: Sequence[int]) -> Sequence[int]:
    return tuple(p + a for p, a in zip(sides(padding), around))


def _check_output(
    x: Tensor, filter: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int]
) -> None:
    height, width = reference_upfirdn2d.output_size(x.shape, filter, up, down, padding)
    if height >= 1 and width >= 1:
        return
    columns, rows = reference_upfirdn2d.filter_size(filter)
    wide = x.shape[3] * up[0] + padding[0] + padding[1]
    high = x.shape[2] * up[1] + padding[2] + padding[3]
    raise ValueError(
        f"padding={tuple(padding)} leaves {high} by {wide} pixels of the upsampled x; accepted: at "
        f"least the filter's {rows} by {columns}"
    )
