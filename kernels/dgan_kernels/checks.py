"""What every operator asks of its arguments, and where its tensors can run."""

import difflib
import importlib.util
import math
import os
from collections.abc import Mapping

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn import Parameter

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
"""Whether Triton kernels run on CPU tensors; decided once, as Triton decides it at decoration."""

TRITON = (
    INTERPRETED or torch.version.cuda is not None or torch.version.hip is not None
) and importlib.util.find_spec("triton") is not None
"""Whether to load the Triton kernels. A CPU build of PyTorch never pays for the import."""

SIXTEEN_BITS = (torch.float16, torch.bfloat16)
KERNEL_DTYPES = (*SIXTEEN_BITS, torch.float32)
DTYPES = (*KERNEL_DTYPES, torch.float64)

_BACKENDS = (None, "triton", "reference")

SMALLEST: dict[str, int] = {}
"""By operator, the elements of x below which backend=None takes plain PyTorch on a GPU, for
starting kernels would take longer; 0 for what is not here. None is yet: no GPU has been measured.
`benchmarks/kernels/run.py` ends with what belongs here."""


def check_choice(name: str, value: object, choices: Mapping[str, object]) -> None:
    """Raise unless ``value`` is one of ``choices``; the message names the nearest."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{name}={value!r}: {hint}accepted: {', '.join(choices)}")


def check_tensor(name: str, value: object) -> None:
    """Raise unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; accepted: a torch.Tensor")


def check_number(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number; a tensor's gradient would be lost."""
    if isinstance(value, Tensor) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{name} is a {type(value).__name__}; accepted: a number, which has no gradient"
        )
    if not -math.inf < value < math.inf:  # math.isfinite breaks a compiler's graph
        raise ValueError(f"{name}={value}; accepted: a finite number")


def check_clamp(clamp: object) -> None:
    """Raise unless ``clamp`` is None or a number of at least 0."""
    if isinstance(clamp, Tensor) or not isinstance(clamp, (int, float, type(None))):
        raise TypeError(f"clamp is a {type(clamp).__name__}; accepted: None, or a number")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp={clamp}; accepted: None, or a number of at least 0")


def check_constant(name: str, tensor: Tensor, operator: str) -> None:
    """Raise where a gradient or tangent is asked for in ``tensor``, to which there is none."""
    if has_tangent(tensor) or (tensor.requires_grad and torch.is_grad_enabled()):
        raise ValueError(
            f"{name} requires a gradient, and {operator} has none for it; accepted: a constant: "
            f"pass {name}.detach()"
        )


def has_tangent(tensor: Tensor) -> bool:
    """Return whether forward mode follows ``tensor``."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def check_input(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is a tensor of a supported dtype and at least two dimensions."""
    check_tensor(name, x)
    if x.dtype not in DTYPES:
        accepted = ", ".join(str(d) for d in DTYPES)
        raise ValueError(f"{name} has dtype {x.dtype}; accepted: {accepted}")
    if x.ndim < 2:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; accepted: [N, C] or [N, C, *spatial], two or more "
            f"dimensions"
        )


def check_vector(name: str, vector: Tensor, x: Tensor, dim: int) -> None:
    """Raise unless ``vector`` is [C] for dimension ``dim`` of x, of x's dtype and device."""
    check_tensor(name, vector)
    if vector.shape != x.shape[dim : dim + 1 or None]:
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}; accepted: [{x.shape[dim]}], the size of "
            f"dimension {dim} of x, which has shape {tuple(x.shape)}"
        )
    check_like(name, vector, x)


def check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise unless ``tensor`` has x's dtype and device."""
    if tensor.dtype != x.dtype:
        raise ValueError(
            f"{name} has dtype {tensor.dtype}; accepted: {x.dtype}, that of x: pass "
            f"{name}.to(x.dtype)"
        )
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}; accepted: {x.device}, where x is")


def runs_triton(x: Tensor, backend: str | None, operator: str) -> bool:
    """Return whether Triton serves ``x`` to that operator; raise where asked for and it cannot."""
    if backend == "reference":
        return False
    if backend not in _BACKENDS:
        raise ValueError(f"backend={backend!r}; accepted: None, 'triton', 'reference'")
    if backend is None and (not TRITON or x.numel() < SMALLEST.get(operator, 0)):
        return False
    obstacle = _obstacle(x)
    if obstacle and backend == "triton":
        raise ValueError(f"backend='triton': {obstacle}; accepted: backend=None or 'reference'")
    return obstacle is None


def is_plain_eager(x: Tensor) -> bool:
    """Return whether x meets no more than autograd in reverse mode: what a ctx-style Function can.

    Forward mode would lose, without a word, terms that a reverse pass over it needs; a compiler
    those of a Function's second derivative; torch.func refuses it. Subclasses (a DTensor) do not
    know every operator that works in place. A FakeTensor goes where the real one would: plans are
    made with it.
    """
    return (
        (type(x) is Tensor or type(x) is Parameter or type(x) is FakeTensor)
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
    )


def _obstacle(x: Tensor) -> str | None:
    if not (x.is_cuda or (INTERPRETED and x.device.type == "cpu")):
        return f"x is on {x.device}, and kernels run on a GPU, or anywhere if TRITON_INTERPRET=1"
    if not TRITON:
        return "triton is not installed"
    if x.dtype not in KERNEL_DTYPES:
        return f"x has dtype {x.dtype}, and kernels compute in float32"
    # A subclass (a DTensor, a FakeTensor) is not the memory that a kernel would be pointed at.
    if type(x) is not Tensor and type(x) is not Parameter:
        return f"x is a {type(x).__name__}, and kernels take plain tensors"
    return None
