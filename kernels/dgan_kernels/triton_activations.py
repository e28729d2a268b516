"""The activations of `reference.ACTIVATIONS` and their derivatives, for use inside Triton kernels.

Arguments are float32 blocks. Only exp, log and erf of ``tl`` are used, which every backend and the
interpreter have; the rest is written so that nothing cancels where the result is small. NaN passes.
A constant stands to the right of a block: the interpreter takes it only there.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - Triton gives annotations a meaning of its own

import triton
import triton.language as tl

from dgan_kernels.reference import GELU_A, GELU_K, LEAKY_SLOPE

# For every launch: said explicitly because Triton's default is about to change. Formulas do not
# depend on it: nothing subtracts two products that should cancel exactly.
OPTIONS = {"enable_fp_fusion": True}

_SLOPE = tl.constexpr(LEAKY_SLOPE)
_K = tl.constexpr(GELU_K)
_A = tl.constexpr(GELU_A)
_ROOT_HALF = tl.constexpr(0.7071067811865476)
_INV_ROOT_TAU = tl.constexpr(0.3989422804014327)


@triton.jit
def _expm1(u):  # u <= 0
    series = u * (1 + u / 2 * (1 + u / 3 * (1 + u / 4 * (1 + u / 5 * (1 + u / 6)))))
    return tl.where(u > -0.25, series, tl.exp(u) - 1)


@triton.jit
def _log1p(e):  # 0 <= e <= 1; dividing by the rounded w - 1 undoes the rounding of w
    w = 1 + e
    return tl.where(w == 1, e, tl.log(w) * (e / tl.where(w == 1, 1.0, w - 1)))


@triton.jit
def _sigmoid(u):
    e = tl.exp(-tl.abs(u))
    return tl.where(u < 0, e, 1.0) / (1 + e)


@triton.jit
def _tanh(u):
    m = _expm1(-2 * tl.abs(u))
    return tl.where(u < 0, m, -m) / (2 + m)


@triton.jit
def _sech2(u):  # 1 - tanh²
    e = tl.exp(-2 * tl.abs(u))
    return 4 * e / ((1 + e) * (1 + e))


@triton.jit
def _density(u):
    return tl.exp(-0.5 * u * u) * _INV_ROOT_TAU


@triton.jit
def _inner(u):  # what gelu_tanh takes the tanh of
    return (u + u * u * u * _A) * _K


@triton.jit
def _inner_first(u):
    return (1 + u * u * (3 * _A)) * _K


@triton.jit
def value(u, ACT: tl.constexpr):
    """s(u)."""
    if ACT == "relu":
        return tl.where(u < 0, 0.0, u)
    elif ACT == "leaky_relu":
        return tl.where(u < 0, u * _SLOPE, u)
    elif ACT == "silu":
        return u * _sigmoid(u)
    elif ACT == "gelu":
        return 0.5 * u * (1 + tl.erf(u * _ROOT_HALF))
    elif ACT == "gelu_tanh":
        return 0.5 * u * (1 + _tanh(_inner(u)))
    elif ACT == "tanh":
        return _tanh(u)
    elif ACT == "sigmoid":
        return _sigmoid(u)
    elif ACT == "softplus":
        return tl.where(u < 0, 0.0, u) + _log1p(tl.exp(-tl.abs(u)))
    elif ACT == "elu":
        return tl.where(u > 0, u, _expm1(tl.where(u > 0, 0.0, u)))
    else:
        tl.static_assert(ACT == "linear")
        return u


@triton.jit
def first(u, ACT: tl.constexpr):
    """s'(u)."""
    if ACT == "relu":
        return tl.where(u > 0, 1.0, 0.0)
    elif ACT == "leaky_relu":
        return tl.where(u > 0, 1.0, _SLOPE)
    elif ACT == "silu":
        return _sigmoid(u) * (1 + u * _sigmoid(-u))
    elif ACT == "gelu":
        return 0.5 * (1 + tl.erf(u * _ROOT_HALF)) + u * _density(u)
    elif ACT == "gelu_tanh":
        z = _inner(u)
        return 0.5 * (1 + _tanh(z)) + 0.5 * u * _sech2(z) * _inner_first(u)
    elif ACT == "tanh":
        return _sech2(u)
    elif ACT == "sigmoid":
        return _sigmoid(u) * _sigmoid(-u)
    elif ACT == "softplus":
        return _sigmoid(u)
    elif ACT == "elu":
        return tl.where(u > 0, 1.0, tl.exp(tl.where(u > 0, 0.0, u)))
    else:
        tl.static_assert(ACT == "linear")
        return tl.full(u.shape, 1.0, tl.float32)


@triton.jit
def second(u, ACT: tl.constexpr):
    """s''(u), of the activations that curve."""
    if ACT == "silu":
        p = _sigmoid(u)
        q = _sigmoid(-u)
        return p * q * (2 + u * (q - p))
    elif ACT == "gelu":
        return _density(u) * (2 - u * u)
    elif ACT == "gelu_tanh":
        z = _inner(u)
        slope = _inner_first(u)
        bend = u * (6 * _K * _A)
        return _sech2(z) * (slope + 0.5 * u * bend - u * _tanh(z) * slope * slope)
    elif ACT == "tanh":
        return -2 * _tanh(u) * _sech2(u)
    elif ACT == "sigmoid":
        p = _sigmoid(u)
        q = _sigmoid(-u)
        return p * q * (q - p)
    elif ACT == "softplus":
        return _sigmoid(u) * _sigmoid(-u)
    else:
        tl.static_assert(ACT == "elu")
        return tl.where(u > 0, 0.0, tl.exp(tl.where(u > 0, 0.0, u)))
