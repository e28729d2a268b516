"""upfirdn2d in Triton, with bias_act as an epilogue.

One kernel, which is linear in x: its backward is itself with other constants, and so is every
further derivative. A program makes RH rows of the result by BP pixels by BC channels; BC is 1
where the rows of a plane are contiguous, more in channels_last. Along an axis, with position
p = o·down + a (a < up, and s whole pixels of padding before), output o reads

    x[i + k] · tap[t + k·up],  k = 0, 1, ...  with  i = ⌈p / up⌉ − s,  t = ⌈p / up⌉·up − p

so that no inserted zero is ever loaded or multiplied. t is the phase of o: up values are possible.
"""
# ruff: noqa: ANN001, ANN201 - Triton gives annotations a meaning of its own
# pyright: reportGeneralTypeIssues=false
# (pyright takes a call from one kernel to another for an error)

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgan_kernels import reference_upfirdn2d as reference
from dgan_kernels import triton_activations as activations
from dgan_kernels import triton_fir as fir
from dgan_kernels.autograd import Gradients, Launch, Via
from dgan_kernels.reference import bias_act_forward
from dgan_kernels.triton_activations import OPTIONS
from dgan_kernels.triton_bias_act import BACKWARD as BIAS_ACT_BACKWARD

# A warp a program: its rows then lie in one thread each, and none needs shared memory to meet.
WARPS = 1
ROWS = 8  # of the result: a separable filter of four taps reads 11 rows of x for them, not 32
SQUARE_ROWS = 4  # where the filter does not separate, more rows only take registers
CHANNELS_LAST = (256, 64)  # BP·BC, and the largest BC: 8 elements a lane, 16 bytes of 16 bits
PLANES = 128  # the largest BP, half of it where the filter does not separate


@triton.jit
def upfirdn2d_kernel(
    x_ptr, f_ptr, b_ptr, y_ptr, H, W, OH, OW, C, CHANNELS, b_stride, AX, AY, SX, SY,
    gain, act_gain, clamp,
    UPX: tl.constexpr, UPY: tl.constexpr, DOWNX: tl.constexpr, DOWNY: tl.constexpr,
    TX: tl.constexpr, TY: tl.constexpr, FLIP: tl.constexpr, SEPARABLE: tl.constexpr,
    ACT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CLAMP: tl.constexpr,
    RH: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute y = clamp(act_gain·act(gain·fir(x) + b)); blocks are [RH, BP·BC]."""
    columns = tl.cdiv(OW, BP)
    strips = tl.cdiv(OH, RH)
    block_c = tl.program_id(0) % tl.cdiv(C, BC)
    rest = tl.program_id(0) // tl.cdiv(C, BC)
    block_x = rest % columns
    block_y = rest // columns % strips
    plane = rest // columns // strips  # of [N, C] planes, or [N] in channels_last
    inner = tl.arange(0, BP * BC)[None, :]
    c = block_c * BC + inner % BC
    ox = block_x * BP + inner // BC
    if BC == 1:
        # Neighbouring lanes then take neighbouring pixels, in loads, which start anywhere, as in
        # stores: the wide stores that the compiler would choose make narrow loads lie apart.
        ox = tl.max_contiguous(ox, [1, 1])
    oy = block_y * RH + tl.arange(0, RH)[:, None]
    live = (ox < OW) & (c < C)
    ax = ox * DOWNX + AX
    ay = oy * DOWNY + AY
    x_at = x_ptr + plane.to(tl.int64) * H * W * C
    cx = (ax + UPX - 1) // UPX
    if SEPARABLE:
        first_y = (block_y * RH * DOWNY + AY + UPY - 1) // UPY - SY
        acc = fir.separable(
            x_at, f_ptr, c, live, cx - SX, cx * UPX - ax, ay, first_y, H, W, C, SY,
            UPX, UPY, TX, TY, FLIP, ((RH - 1) * DOWNY + TY - 1) // UPY + 1, RH,
        )  # fmt: skip
    else:
        cy = (ay + UPY - 1) // UPY
        acc = fir.square(
            x_at, f_ptr, c, live, cx - SX, cx * UPX - ax, cy - SY, cy * UPY - ay, H, W, C,
            UPX, UPY, TX, TY, FLIP, RH,
        )  # fmt: skip
    u = gain * acc
    if HAS_BIAS:
        if BC == 1:
            u += tl.load(b_ptr + (plane % CHANNELS) * b_stride).to(tl.float32)
        else:
            u += tl.load(b_ptr + c * b_stride, mask=c < C, other=0).to(tl.float32)
    y = act_gain * activations.value(u, ACT)
    if HAS_CLAMP:
        # Not tl.minimum: it would turn NaN into the bound and hide it.
        y = tl.where(y > clamp, clamp, tl.where(y < -clamp, -clamp, y))
    y_at = y_ptr + plane.to(tl.int64) * OH * OW * C + oy.to(tl.int64) * (OW * C)
    tl.store(y_at + (ox * C + c), y.to(y_ptr.dtype.element_ty), mask=live & (oy < OH))


_KERNEL: Any = upfirdn2d_kernel


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def blocks(channels: int, height: int, width: int, separable: bool) -> dict[str, int]:
    """Return the block sizes for a result of that size; channels is 1 where planes are walked."""
    rows = min(ROWS if separable else SQUARE_ROWS, _power_of_2(height))
    if channels == 1:
        widest = PLANES if separable else PLANES // 2
        return {"RH": rows, "BP": min(widest, max(32, _power_of_2(width))), "BC": 1}
    size, widest = CHANNELS_LAST
    block = min(widest, _power_of_2(channels))
    return {"RH": rows, "BP": size // block, "BC": block}


def _allocate(
    x: Tensor, filter: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int],
    flip: bool, gain: float,
) -> Tensor:  # fmt: skip
    """Return the memory for the result, channels_last where x is."""
    size = (*x.shape[:2], *reference.output_size(x.shape, filter, up, down, padding))
    memory = reference.memory_format(x)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory)


def _launch(
    x: Tensor, filter: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int],
    flip: bool, gain: float, epilogue: Sequence[Any] = (None, "linear", 1.0, None),
) -> Tensor:  # fmt: skip
    """Run the kernel; ``filter`` is packed, the epilogue's bias varies along the channels alone."""
    bias, act, act_gain, clamp = epilogue
    y = _allocate(x, filter, up, down, padding, flip, gain)
    if y.numel() == 0:
        return y
    memory = reference.memory_format(x)
    x, filter = x.contiguous(memory_format=memory), filter.contiguous()
    (batch, channels, height, width), (rows, columns) = x.shape, y.shape[2:]
    last = memory == torch.channels_last
    pixel, planes = (channels, batch) if last else (1, batch * channels)
    sizes = blocks(pixel, rows, columns, filter.ndim == 1)
    # Whole pixels of padding before x, and what part of one is left over.
    before = [-(-padding[2 * axis] // up[axis]) for axis in (0, 1)]
    phase = [before[axis] * up[axis] - padding[2 * axis] for axis in (0, 1)]
    taps_x, taps_y = reference.filter_size(filter)
    grid = planes * triton.cdiv(rows, sizes["RH"]) * triton.cdiv(columns, sizes["BP"])
    with torch.cuda.device_of(y):
        _KERNEL[(grid * triton.cdiv(pixel, sizes["BC"]),)](
            x, filter, y if bias is None else bias, y, height, width, rows, columns,
            pixel, channels, 0 if bias is None else bias.stride(1), *phase, *before,
            gain, act_gain, 0.0 if clamp is None else clamp,
            UPX=up[0], UPY=up[1], DOWNX=down[0], DOWNY=down[1], TX=taps_x, TY=taps_y, FLIP=flip,
            SEPARABLE=filter.ndim == 1, ACT=act, HAS_BIAS=bias is not None,
            HAS_CLAMP=clamp is not None, **sizes, num_warps=WARPS, **OPTIONS,
        )  # fmt: skip
    return y


def pack(filter: Tensor) -> Tensor:
    """Return the filter as the launches take it: [taps], or [1, rows, columns].

    With a rank between them, a filter that vmap batches cannot be taken for one that is not.
    """
    return filter if filter.ndim == 1 else filter[None]


def _unpacked(filter: Tensor) -> Tensor:
    if filter.ndim not in (1, 3):
        raise NotImplementedError(
            "vmap over filter: its kernels take one filter; ask for backend='reference'"
        )
    return filter if filter.ndim == 1 else filter[0]


def _plain(x: Tensor, filter: Tensor, *constants: Any) -> Tensor:
    return reference.upfirdn2d(x, _unpacked(filter), *constants)


# Linear: no rule reads x, so that none is kept; its shape stands in its place.


def _vjp(via: Via, grads: Any, shape: torch.Size, filter: Tensor, *constants: Any) -> Gradients:
    return via(UPFIRDN2D)(grads[0], filter, *reference.transposed(shape, filter, *constants)), None


def _jvp(via: Via, tangents: Any, shape: torch.Size, filter: Tensor, *constants: Any) -> Tensor:
    return via(UPFIRDN2D)(tangents[0], filter, *constants)


# With the epilogue, z = fir(x) is not kept: its derivatives compute it again, from an x that is a
# quarter of it where a network scales up.


def _fused(x: Tensor, filter: Tensor, bias: Tensor | None, *constants: Any) -> Tensor:
    return _launch(x, filter, *constants[:5], epilogue=(bias, *constants[5:]))


def _fused_outputs(x: Tensor, filter: Tensor, bias: Tensor | None, *constants: Any) -> Tensor:
    return _allocate(x, filter, *constants[:5])


def _fused_plain(x: Tensor, filter: Tensor, bias: Tensor | None, *constants: Any) -> Tensor:
    act, act_gain, clamp = constants[5:]
    return bias_act_forward(_plain(x, filter, *constants[:5]), bias, act, act_gain, clamp, 1)


def _needs_z(*constants: Any) -> bool:
    """Return whether the epilogue's slope depends on where it is taken."""
    act, clamp = constants[5], constants[7]
    return act != "linear" or clamp is not None


def _fused_keeps(
    x: Tensor, filter: Tensor, bias: Tensor | None, *constants: Any
) -> tuple[int, ...]:
    return (0, 1, 2) if _needs_z(*constants) else (1, 2)


def _through_act(
    via: Via, dy: Tensor, x: Any, filter: Tensor, bias: Tensor | None, *constants: Any
) -> Tensor:
    """Return dy · d act / dz at z = fir(x) + bias: a gradient backwards, or a tangent forwards."""
    z = via(UPFIRDN2D)(x, filter, *constants[:5]) if _needs_z(*constants) else dy
    return via(BIAS_ACT_BACKWARD)(dy, z, bias, *constants[5:], 1)


def _fused_vjp(
    via: Via, grads: Any, x: Any, filter: Tensor, bias: Tensor | None, *constants: Any
) -> Gradients:
    dz = _through_act(via, grads[0], x, filter, bias, *constants)
    shape = x.shape if isinstance(x, Tensor) else x
    dx = via(UPFIRDN2D)(dz, filter, *reference.transposed(shape, filter, *constants[:5]))
    return dx, None, None if bias is None else dz.sum_to_size(bias.shape)


def _fused_jvp(
    via: Via, tangents: Any, x: Any, filter: Tensor, bias: Tensor | None, *constants: Any
) -> Tensor:
    tx, _, tb = tangents
    if tx is not None:
        tz = via(UPFIRDN2D)(tx, filter, *constants[:5])
        tb = tz if tb is None else tz + tb
    return _through_act(via, tb, x, filter, bias, *constants)


_CONSTANTS = "SymInt[] up, SymInt[] down, SymInt[] padding, bool flip, float gain"

UPFIRDN2D = Launch(
    "upfirdn2d", f"(Tensor x, Tensor filter, {_CONSTANTS}) -> Tensor",
    tensors=2, outputs=_allocate, run=_launch, plain=_plain, vjp=_vjp, jvp=_jvp,
    keeps=(1,),
)  # fmt: skip
FUSED = Launch(
    "upfirdn2d_bias_act",
    f"(Tensor x, Tensor filter, Tensor? bias, {_CONSTANTS}, str act, float act_gain, "
    f"float? clamp) -> Tensor",
    tensors=3, outputs=_fused_outputs, run=_fused, plain=_fused_plain,
    vjp=_fused_vjp, jvp=_fused_jvp, keeps=_fused_keeps,
)  # fmt: skip
