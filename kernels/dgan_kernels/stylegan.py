"""bias_act and upfirdn2d with the signatures of StyleGAN2-ADA's and 3's `torch_utils.ops`.

For a codebase built on those: replace

    from torch_utils.ops import bias_act, upfirdn2d        # compiles C++ and CUDA at first use

by

    from dgan_kernels import stylegan as bias_act
    from dgan_kernels import stylegan as upfirdn2d

Names, defaults and results are those of the published contract (Karras et al. 2020, 2021), written
from its description. ``impl`` is "cuda" (kernels on a GPU, plain PyTorch elsewhere), "ref" (plain
PyTorch) or "triton" (kernels, or an error). `dgan_kernels.bias_act` and `upfirdn2d` do more.

Derivatives:
    As `dgan_kernels.bias_act` and `upfirdn2d`: second order in kernels, in forward mode too.

Limits:
    selu, and a leaky ReLU of another slope than 0.2, run in plain PyTorch. x has two dimensions at
    least. `conv2d_resample` and `grid_sample_gradfix` of the same folder are not here:
    `dgan_kernels.modulated_conv2d` resamples around a convolution.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import dgan_kernels as kernels
from dgan_kernels.checks import check_choice, check_clamp, check_input, check_number, check_vector
from dgan_kernels.reference import LEAKY_SLOPE, along

# The contract's names, what they are in dgan_kernels, and the gain where none is given.
ACTIVATIONS: dict[str, tuple[str | None, float]] = {
    "linear": ("linear", 1.0),
    "relu": ("relu", math.sqrt(2)),
    "lrelu": ("leaky_relu", math.sqrt(2)),
    "tanh": ("tanh", 1.0),
    "sigmoid": ("sigmoid", 1.0),
    "elu": ("elu", 1.0),
    "selu": (None, 1.0),
    "softplus": ("softplus", 1.0),
    "swish": ("silu", math.sqrt(2)),
}
IMPLEMENTATIONS = {"cuda": None, "ref": "reference", "triton": "triton"}

Factors = int | Sequence[int]


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> Tensor:
    """Return ``clamp(gain * act(x + b))``.

    Args:
        x: [N, C] or [N, C, *spatial].
        b: [C] for dimension ``dim`` of x, of x's dtype; or None.
        dim: which dimension of x the bias goes with.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: the slope of lrelu below 0, None for 0.2; no other activation has one.
        gain: a factor after the activation; None for √2 of relu, lrelu and swish, 1 of the others.
        clamp: a bound on the absolute value of the result; None or below 0: there is none.
        impl: see above.
    """
    check_choice("act", act, ACTIVATIONS)
    check_choice("impl", impl, IMPLEMENTATIONS)
    name, default = ACTIVATIONS[act]
    gain = default if gain is None else gain
    slope = LEAKY_SLOPE if alpha is None or act != "lrelu" else alpha
    check_number("alpha", slope)
    if not isinstance(clamp, Tensor) and clamp is not None and clamp < 0:
        clamp = None
    if name is None or slope != LEAKY_SLOPE:
        return _without_kernels(x, b, dim, act, slope, gain, clamp, impl)
    backend = IMPLEMENTATIONS[impl]
    return kernels.bias_act(x, b, act=name, gain=gain, clamp=clamp, dim=dim, backend=backend)


def _without_kernels(
    x: Tensor, b: Tensor | None, dim: int, act: str, slope: float, gain: float,
    clamp: float | None, impl: str,
) -> Tensor:  # fmt: skip
    """Compute selu and other slopes in plain PyTorch, which differentiates them to any order."""
    check_input("x", x)
    check_number("gain", gain)
    check_clamp(clamp)
    if impl == "triton":
        raise ValueError(f"impl='triton': act={act!r}, alpha={slope} has no kernel; accepted: cuda")
    if b is not None:
        check_vector("b", b, x, dim)
        x = x + along(b, x, dim)
    y = gain * (F.selu(x) if act == "selu" else F.leaky_relu(x, slope))
    return y if clamp is None else y.clamp(-clamp, clamp)


def setup_filter(
    f: Tensor | Sequence | float | None,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Return ``f`` as a float32 filter for `upfirdn2d`.

    Args:
        f: taps [rows, columns] or [taps]; a number is one tap, None the tap 1.
        device: where the result is to be.
        normalize: divide by the sum of the taps, so that it passes constants.
        flip_filter: reverse it along all its axes.
        gain: a factor on what the filter does to an image.
        separable: keep [taps] on one axis, to be applied along both; None: from eight taps on.
    """
    f = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32)
    f = f[None] if f.ndim == 0 else f
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"f has shape {tuple(f.shape)}; accepted: [taps] or [rows, columns]")
    separable = f.ndim == 1 and f.numel() >= 8 if separable is None else separable
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    if separable and f.ndim != 1:
        raise ValueError(f"f has shape {tuple(f.shape)}; accepted with separable=True: [taps]")
    f = f / f.sum() if normalize else f
    f = f.flip(list(range(f.ndim))) if flip_filter else f
    # Of one axis, the root: it is applied twice.
    return (f * gain ** (f.ndim / 2)).to(device)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Factors = 1,
    down: Factors = 1,
    padding: Factors = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Upsample x [N, C, H, W], pad, filter and downsample it; see `dgan_kernels.upfirdn2d`.

    ``up`` and ``down`` are numbers or (x, y), ``padding`` also (left, right, top, bottom).
    """
    return kernels.upfirdn2d(
        x, f, up=up, down=down, padding=padding, flip_filter=flip_filter, gain=gain,
        backend=_backend(impl),
    )  # fmt: skip


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: Factors = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Filter x and keep its size; ``padding`` is beside what that takes."""
    f = _one_tap(x) if f is None else f
    return kernels.filter2d(
        x, f, padding=padding, flip_filter=flip_filter, gain=gain, backend=_backend(impl)
    )


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Factors = 2,
    padding: Factors = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Return x larger, brightness kept and pixels centred."""
    return kernels.upsample2d(
        x, f, up=up, padding=padding, flip_filter=flip_filter, gain=gain, backend=_backend(impl)
    )


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Factors = 2,
    padding: Factors = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Return x smaller, pixels centred."""
    return kernels.downsample2d(
        x, f, down=down, padding=padding, flip_filter=flip_filter, gain=gain,
        backend=_backend(impl),
    )  # fmt: skip


def _backend(impl: str) -> str | None:
    check_choice("impl", impl, IMPLEMENTATIONS)
    return IMPLEMENTATIONS[impl]


def _one_tap(x: Tensor) -> Tensor:
    return torch.ones(1, dtype=torch.float32, device=x.device)
