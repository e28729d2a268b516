"""What a gradient penalty does to whole images: norms, directions, points between two batches."""

import torch
from torch import Tensor

from dgan_kernels import reference_gradient_penalty as reference
from dgan_kernels.checks import (
    TRITON,
    check_choice,
    check_constant,
    check_input,
    check_tensor,
    runs_triton,
)
from dgan_kernels.rows import from_rows, memory_order, to_rows

if TRITON:
    from dgan_kernels import triton_gradient_penalty as kernels
else:
    kernels = None

KINDS = {"zero_centered": "½‖g‖²", "one_centered": "(‖g‖ - 1)²"}


def squared_norm(x: Tensor, *, backend: str | None = None) -> Tensor:
    """Return the sum of squares of each sample, in one pass over memory.

    The quantity that R1 and R2 (Mescheder et al. 2018) and WGAN-GP (Gulrajani et al. 2017)
    penalise, x being the gradient of the logits in the input. PyTorch writes the squares out
    before it sums them, 3 passes, and casts 16-bit tensors first.

    Args:
        x: [N, C] or [N, C, *spatial]; float16, bfloat16, float32 or float64. Contiguous and
            channels_last memory is read in place; other strides are copied first.
        backend: "triton", "reference" (plain PyTorch), or None to choose: Triton for 16-bit and
            32-bit tensors on a GPU, the reference for everything else.

    Returns:
        [N]; float32, or float64 for a float64 x. Summed in that dtype, without atomics: the same x
        gives the same bits on the same GPU.

    Derivatives:
        Any order, forward and reverse mode, in Triton too, through torch.autograd, torch.func and
        torch.compile. The backward pass reads x once and writes once.

    Limits:
        vmap, and torch.func or forward_ad inside torch.compile, run in plain PyTorch. Samples of a
        few elements leave most of a GPU's threads idle; samples whose size is not a multiple of 16
        are read in narrow loads.
    """
    check_input("x", x)
    rows = to_rows(x, memory_order(x))
    if runs_triton(x, backend, "squared_norm") and kernels is not None:
        return kernels.SQUARED_NORM(rows)
    return reference.squared_norm(rows)


def interpolate(real: Tensor, fake: Tensor, mix: Tensor, *, backend: str | None = None) -> Tensor:
    """Return ``fake + mix * (real - fake)``: where WGAN-GP takes its penalty. Without derivatives.

    Args:
        real: [N, C] or [N, C, *spatial]; float16, bfloat16, float32 or float64.
        fake: of real's shape, dtype and device.
        mix: [N], between 0 (fake) and 1 (real), both exact; of real's dtype or float32. WGAN-GP
            draws it uniformly (Gulrajani et al. 2017, algorithm 1).
        backend: as in `squared_norm`.

    Returns:
        Of real's shape, dtype and, where real is contiguous or channels_last, memory order.
        Computed in float32 at least.

    Derivatives:
        None, for a penalty's points are constants to it: an argument that requires a gradient, or
        has a tangent, is refused; pass it detached.

    Limits:
        `torch.lerp` reads and writes as little where ``mix`` has real's dtype; expect parity.
    """
    check_input("real", real)
    _check_same("fake", fake, "real", real)
    _check_per_sample("mix", mix, "real", real, (real.dtype, torch.float32))
    for name, tensor in (("real", real), ("fake", fake), ("mix", mix)):
        check_constant(name, tensor, "interpolate")
    order = memory_order(real)
    # Detached for a recording that is switched off: nothing is to be kept for it.
    arguments = (to_rows(real.detach(), order), to_rows(fake.detach(), order), mix.detach())
    if runs_triton(real, backend, "interpolate") and kernels is not None:
        between = kernels.INTERPOLATE(*arguments)
    else:
        between = reference.interpolate(*arguments)
    return from_rows(between, real.shape, order)


def penalty_direction(
    gradient: Tensor,
    squares: Tensor,
    kind: str = "zero_centered",
    *,
    one_sided: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Return ``φ′(‖g‖)/‖g‖ · g``, the derivative of each sample's penalty φ in its gradient g.

    The tangent by which a gradient penalty is exact in forward mode, where it is held constant:
    ∇θ Σ φ(‖g‖) = ∇θ Σ ∂D(x)·u. With `squared_norm` a step reads the gradient twice in all.

    Args:
        gradient: g, [N, C] or [N, C, *spatial]; float16, bfloat16, float32 or float64.
        squares: ‖g‖², [N], as `squared_norm(gradient)` returns it.
        kind: "zero_centered", φ = ½‖g‖² (R1, R2): the result is g itself, not copied; or
            "one_centered", φ = (‖g‖ - 1)² (WGAN-GP): 2(1 - 1/‖g‖)·g.
        one_sided: of "one_centered": count norms above 1 only (Gulrajani et al. 2017, section 4).
        backend: as in `squared_norm`.

    Returns:
        Of the gradient's shape, dtype and, where it is contiguous or channels_last, memory order.
        0 where ``squares`` is 0, the subgradient there; NaN where it is NaN: nothing is hidden.

    Derivatives:
        None: an argument that requires a gradient, or has a tangent, is refused.

    Limits:
        The mean over samples is the caller's: divide by N. A float32 gradient whose squares
        underflow, below some 1e-23, has the direction 0 of "one_centered".
    """
    check_choice("kind", kind, KINDS)
    check_input("gradient", gradient)
    _check_per_sample("squares", squares, "gradient", gradient, (reference.wide_dtype(gradient),))
    if one_sided and kind != "one_centered":
        raise ValueError(
            f"one_sided=True with kind={kind!r}; accepted: only with kind='one_centered'"
        )
    for name, tensor in (("gradient", gradient), ("squares", squares)):
        check_constant(name, tensor, "penalty_direction")
    triton = runs_triton(gradient, backend, "penalty_direction") and kernels is not None
    if kind == "zero_centered":
        return gradient.detach()
    order = memory_order(gradient)
    arguments = (to_rows(gradient.detach(), order), squares.detach(), one_sided)
    if triton and kernels is not None:
        result = kernels.DIRECTION(*arguments)
    else:
        result = reference.direction(*arguments)
    return from_rows(result, gradient.shape, order)


def _check_same(name: str, t: Tensor, of: str, x: Tensor) -> None:
    """Raise unless ``t`` has the shape, dtype and device of x."""
    check_tensor(name, t)
    for what in ("shape", "dtype", "device"):
        got, want = getattr(t, what), getattr(x, what)
        if got != want:
            got, want = (tuple(s) if what == "shape" else s for s in (got, want))
            raise ValueError(f"{name} has {what} {got}; accepted: {want}, that of {of}")


def _check_per_sample(
    name: str, vector: Tensor, of: str, x: Tensor, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise unless ``vector`` is [N], of one of ``dtypes``, on x's device."""
    check_tensor(name, vector)
    if vector.shape != x.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}; accepted: [{x.shape[0]}], one for each "
            f"sample of {of}, which has shape {tuple(x.shape)}"
        )
    if vector.dtype not in dtypes:
        accepted = " or ".join(str(d) for d in dict.fromkeys(dtypes))
        raise ValueError(f"{name} has dtype {vector.dtype}; accepted: {accepted}")
    if vector.device != x.device:
        raise ValueError(f"{name} is on {vector.device}; accepted: {x.device}, where {of} is")
