"""StyleGAN's bias_act and upfirdn2d by their published contract, as test vectors.

    python benchmarks/kernels/stylegan.py                           dgan_kernels.stylegan
    python benchmarks/kernels/stylegan.py torch_utils.ops.bias_act torch_utils.ops.upfirdn2d
    python benchmarks/kernels/stylegan.py --device cuda --impl cuda

The definitions are in NumPy and float64, step by step and pixel by pixel. Any modules that have
functions of these names are compared with them: values, and the gradients by finite differences.
Ends with status 1 where one differs by more than float32's rounding.
"""

import argparse
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

ROOT2 = 2**0.5
GAINS = {"relu": ROOT2, "lrelu": ROOT2, "swish": ROOT2}
"""Where none is given; 1 of the others."""
SELU = 1.0507009873554805, 1.6732632423543772
"""λ and α of Klambauer et al. 2017."""
STEP = 1e-6
TOLERANCE = 3e-5
"""Of float32 results of a few tens of products, and of central differences in float64."""

ACTIVATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "linear": lambda u, a: u,
    "relu": lambda u, a: np.maximum(u, 0),
    "lrelu": lambda u, a: np.where(u >= 0, u, a * u),
    "tanh": lambda u, a: np.tanh(u),
    "sigmoid": lambda u, a: 1 / (1 + np.exp(-u)),
    "elu": lambda u, a: np.where(u >= 0, u, np.expm1(u)),
    "selu": lambda u, a: SELU[0] * np.where(u >= 0, u, SELU[1] * np.expm1(u)),
    "softplus": lambda u, a: np.log1p(np.exp(u)),
    "swish": lambda u, a: u / (1 + np.exp(-u)),
}


def bias_act(
    x: np.ndarray,
    b: np.ndarray | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> np.ndarray:
    """clamp(gain · act(x + b))."""
    if b is not None:
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    y = ACTIVATIONS[act](x, 0.2 if alpha is None else alpha)
    y = y * (GAINS.get(act, 1.0) if gain is None else gain)
    return y if clamp is None or clamp < 0 else np.clip(y, -clamp, clamp)


def setup_filter(
    f: Any,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> np.ndarray:
    """The filter as upfirdn2d takes it; a number is one tap, eight taps stay one axis."""
    f = np.atleast_1d(np.asarray(1.0 if f is None else f, np.float64))
    separable = f.ndim == 1 and f.size >= 8 if separable is None else separable
    f = np.outer(f, f) if f.ndim == 1 and not separable else f
    f = f / f.sum() if normalize else f
    return (np.flip(f) if flip_filter else f) * gain ** (f.ndim / 2)


def pair(value: Any) -> tuple[int, int]:
    """(x, y)."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def sides(padding: Any) -> list[int]:
    """Left, right, top, bottom."""
    flat = np.ravel(padding).tolist()
    return flat * 4 if len(flat) == 1 else np.repeat(flat, 2).tolist() if len(flat) == 2 else flat


def upfirdn2d(
    x: np.ndarray,
    f: np.ndarray | None,
    up: Any = 1,
    down: Any = 1,
    padding: Any = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> np.ndarray:
    """Put up − 1 zeros after each pixel, pad, filter, keep each down-th."""
    (up_x, up_y), (down_x, down_y) = pair(up), pair(down)
    left, right, top, bottom = sides(padding)
    f = np.ones((1, 1)) if f is None else np.asarray(f, np.float64)
    f = np.outer(f, f) if f.ndim == 1 else f
    rows, columns = f.shape
    _, _, height, width = x.shape

    def at(image: np.ndarray, row: int, column: int) -> float:
        """The pixel of the upsampled, padded image; zero between pixels and outside."""
        row, column = row - top, column - left
        inside = 0 <= row < height * up_y and 0 <= column < width * up_x
        if not inside or row % up_y or column % up_x:
            return 0.0
        return float(image[row // up_y, column // up_x])

    result = []
    for image in x.reshape(-1, height, width):
        for r in range(0, height * up_y + top + bottom - rows + 1, down_y):
            for c in range(0, width * up_x + left + right - columns + 1, down_x):
                total = 0.0
                for i, j in itertools.product(range(rows), range(columns)):
                    # A convolution: the first tap meets the last pixel.
                    tap = f[i, j] if flip_filter else f[rows - 1 - i, columns - 1 - j]
                    total += tap * at(image, r + i, c + j)
                result.append(gain * total)
    size_y = (height * up_y + top + bottom - rows) // down_y + 1
    return np.array(result).reshape(*x.shape[:2], size_y, -1)


def centred(x: np.ndarray, f: np.ndarray | None, around: Any, options: Any) -> np.ndarray:
    """upfirdn2d with the padding that centres the filter beside the caller's."""
    columns, rows = (1, 1) if f is None else (f.shape[-1], f.shape[0 if f.ndim > 1 else -1])
    padding = [more + own for more, own in zip(around(columns, rows), sides(options["padding"]))]
    return upfirdn2d(x, f, **options | {"padding": padding})


def filter2d(x: np.ndarray, f: np.ndarray | None, padding: Any = 0, **options: Any) -> np.ndarray:
    """The same size."""
    around = lambda w, h: (w // 2, (w - 1) // 2, h // 2, (h - 1) // 2)  # noqa: E731
    return centred(x, f, around, {"padding": padding, **options})


def upsample2d(
    x: np.ndarray,
    f: np.ndarray | None,
    up: Any = 2,
    padding: Any = 0,
    gain: float = 1,
    **options: Any,
) -> np.ndarray:
    """Larger; the gain makes up for the zeros."""
    a, b = pair(up)
    around = lambda w, h: ((w + a - 1) // 2, (w - a) // 2, (h + b - 1) // 2, (h - b) // 2)  # noqa: E731
    return centred(x, f, around, {"up": up, "padding": padding, "gain": gain * a * b, **options})


def downsample2d(
    x: np.ndarray, f: np.ndarray | None, down: Any = 2, padding: Any = 0, **options: Any
) -> np.ndarray:
    """Smaller."""
    a, b = pair(down)
    around = lambda w, h: ((w - a + 1) // 2, (w - a) // 2, (h - b + 1) // 2, (h - b) // 2)  # noqa: E731
    return centred(x, f, around, {"down": down, "padding": padding, **options})


@dataclass(frozen=True)
class Vector:
    """Arguments of one function; arrays by name are differentiated, `constants` are not."""

    function: str
    arrays: dict[str, np.ndarray]
    constants: dict[str, np.ndarray | None] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = {**self.arrays, **self.constants}
        shapes = [f"{k} {None if v is None else v.shape}" for k, v in given.items()]
        return f"{self.function} {', '.join(shapes)} {self.options or ''}".strip()

    def defined(self, **changed: np.ndarray) -> np.ndarray:
        """The result by the contract."""
        return globals()[self.function](
            **{**self.arrays, **self.constants, **self.options, **changed}
        )


FILTERS = {
    "none": None,
    "the usual": setup_filter([1, 3, 3, 1]),
    "separable": setup_filter([1, 2, 3, 5], separable=True),
    "not symmetric": setup_filter([[1, 2, 0], [4, -1, 3]], normalize=False),
}
RESAMPLED: list[dict[str, Any]] = [
    {},
    {"up": 2, "padding": [2, 1, 2, 1], "gain": 4},
    {"down": 2, "padding": [1, 1, 1, 1]},
    {"up": (3, 1), "down": (1, 2), "padding": (4, 2)},
    {"padding": [3, 0, 1, 2], "gain": 0.3},
    {"up": 2, "padding": [-1, 3, 2, -2]},
    {"up": (1, 2), "padding": 3, "flip_filter": True},
]


def vectors() -> Iterator[Vector]:
    """Every activation, gain, clamp and slope; every filter and option."""
    numbers = np.random.default_rng(0)
    x, b = numbers.normal(size=(2, 3, 4, 5)), np.array([0.5, -1.0, 2.0])
    for act, gain, clamp in itertools.product(ACTIVATIONS, (None, 0.5), (None, -1, 0.7)):
        options = {"act": act, "gain": gain, "clamp": clamp}
        yield Vector("bias_act", {"x": x, "b": b}, options=options)
    yield Vector("bias_act", {"x": x}, options={"act": "lrelu"})
    yield Vector("bias_act", {"x": x, "b": b}, options={"act": "lrelu", "alpha": 0.05})
    last = {"x": np.moveaxis(x, 1, 3), "b": b}
    yield Vector("bias_act", last, options={"act": "swish", "dim": 3})
    image = x[:1, :2]
    for f, options in itertools.product(FILTERS.values(), RESAMPLED):
        yield Vector("upfirdn2d", {"x": image}, {"f": f}, options)
    functions = ("filter2d", "upsample2d", "downsample2d")
    for function, f, padding in itertools.product(functions, FILTERS.values(), (0, 1)):
        yield Vector(function, {"x": image}, {"f": f}, {"padding": padding, "gain": 0.5})


def errors(vector: Vector, function: Callable[..., Any], device: str, **more: Any) -> list[float]:
    """How far value and gradients of `function` are from the contract's, relative to theirs."""
    tensor = lambda a: torch.tensor(a, dtype=torch.float32, device=device)  # noqa: E731
    leaves = {name: tensor(a).requires_grad_() for name, a in vector.arrays.items()}
    constants = {k: None if f is None else tensor(f) for k, f in vector.constants.items()}
    y = function(**leaves, **constants, **vector.options, **more)
    want = vector.defined()
    dy = np.cos(np.arange(want.size)).reshape(want.shape)
    grads = torch.autograd.grad(y, list(leaves.values()), tensor(dy))
    found = [np.abs(y.detach().cpu().numpy() - want).max() / max(np.abs(want).max(), 1)]
    for (name, a), grad in zip(vector.arrays.items(), grads):
        v = np.sin(1 + np.arange(a.size)).reshape(a.shape)
        ahead, behind = (vector.defined(**{name: a + s * STEP * v}) for s in (1, -1))
        slope = (dy * (ahead - behind)).sum() / (2 * STEP)
        inner = (grad.detach().cpu().numpy() * v).sum()
        found.append(abs(inner - slope) / max(np.abs(v).sum(), abs(slope), 1))
    return [float(error) for error in found]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare with StyleGAN's contract.")
    parser.add_argument("modules", nargs="*", default=["dgan_kernels.stylegan"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--impl", default="cuda", help="what is passed on as `impl`")
    options = parser.parse_args()
    modules = [importlib.import_module(name) for name in options.modules]
    worst, count = 0.0, 0
    for vector in vectors():
        having = [m for m in modules if hasattr(m, vector.function)]
        for module in having:
            function = getattr(module, vector.function)
            error = max(errors(vector, function, options.device, impl=options.impl))
            worst, count = max(worst, error), count + 1
            if not error <= TOLERANCE:
                print(f"{module.__name__}: {vector}: differs by {error:.1e}")
    print(f"{count} vectors, the worst differs by {worst:.1e}; accepted: {TOLERANCE:.0e}")
    sys.exit(not worst <= TOLERANCE)


if __name__ == "__main__":
    main()
