"""Spectral norms of many weights at once, by power iteration in batched matrix products."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from dgan_kernels.checks import check_tensor
from dgan_kernels.reference_gradient_penalty import wide

# Reading this many elements takes a GPU about as long as starting a kernel. Smaller matrices of
# equal shape are copied side by side and go into one product; larger ones stay where they are.
MAX_STACKED = 2**20


def spectral_norm_power_iteration(
    weights: Sequence[Tensor], vectors: Sequence[Tensor], iterations: int = 1
) -> list[Tensor]:
    """Return each weight's spectral norm, and advance the vectors that it is estimated with.

    Algorithm 1 of Miyato et al. 2018 for all layers of a network together:
    v = Wᵀu/‖Wᵀu‖, u = Wv/‖Wv‖, ``iterations`` times, then σ = uᵀWv, whose derivative is
    dσ/dW = uvᵀ: u and v are constants to it (their section 2.1). Divide by it:
    ``[w / s for w, s in zip(weights, sigmas)]``.

    Args:
        weights: each [rows, ...], seen as the matrix [rows, columns] of `flatten(1)`; pass
            ``w.transpose(0, 1)`` for a transposed convolution. Any floating dtype.
        vectors: u of each weight, [rows], of any floating dtype (float32 keeps its digits where
            weights are of 16 bits), on the weight's device. Overwritten. Draw them from a normal
            distribution and run some 15 iterations once.
        iterations: how many steps of the power iteration; 1 in training. 0 leaves the vectors as
            they are, and σ = ‖Wᵀu‖, for evaluation and for a second pass of the same step.

    Returns:
        One scalar for each weight, in the order given; float32, float64 for float64 weights.
        Computed in these dtypes also under autocast.

    Derivatives:
        Any order, forward and reverse mode, in the weights; by PyTorch, for σ is linear in W.

    Limits:
        Plain PyTorch on every device, no Triton. Products are batched over weights of equal
        shape of up to 2²⁰ elements, which are copied for it: 16 kernels for each distinct shape,
        where PyTorch's parametrization takes 12 for each layer. A network whose shapes all differ
        gains nothing.
        The iterations write to ``vectors``, which torch.func's transforms do not allow: inside
        them ask for 0. Sharded weights (DTensor) are to be gathered first.
        Weights of equal shape share one graph: one backward pass for all of them, or
        retain_graph=True.
        A vector that would become 0 or not finite (a weight of zeros, of NaN) stays what it was,
        so that the estimate recovers with the weight; σ is then 0 or NaN.
    """
    _check(weights, vectors, iterations)
    sigmas: dict[int, Tensor] = {}
    advanced: dict[int, Tensor] = {}
    for indices in _groups(weights):
        with _full_precision(weights[indices[0]].device.type):
            matrices = wide(_stack([weights[i].flatten(1) for i in indices]))
            u = _stack([vectors[i].detach() for i in indices]).to(matrices.dtype)
            u, v = _iterate(matrices.detach(), u, iterations)
            # Row vectors first: the product that autograd keeps nothing of W for.
            group = torch.bmm(torch.bmm(u.unsqueeze(1), matrices), v.unsqueeze(2)).flatten()
        sigmas.update(zip(indices, group.unbind()))
        advanced.update(zip(indices, u.unbind()))
    if iterations and vectors:
        with torch.no_grad():
            torch._foreach_copy_(list(vectors), [advanced[i] for i in range(len(vectors))])
    return [sigmas[i] for i in range(len(weights))]


@torch.no_grad()
def _iterate(w: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return u [B, rows] and v [B, columns] after the power iteration on w [B, rows, columns]."""
    v = _normalised_product(w.mT, start)
    if not iterations:
        return start.clone(), v  # what autograd keeps must not be the caller's vector
    u = _normalised_product(w, v)
    for _ in range(iterations - 1):
        v = _normalised_product(w.mT, u)
        u = _normalised_product(w, v)
    # 0 would stay 0 for ever, and so would NaN, whatever becomes of the weight.
    usable = torch.linalg.vector_norm(u, dim=1, keepdim=True) > 0
    return torch.where(usable, u, start), v


def _normalised_product(w: Tensor, vector: Tensor) -> Tensor:
    return F.normalize(torch.bmm(w, vector.unsqueeze(2)).squeeze(2), dim=1, eps=1e-12)


def _stack(tensors: list[Tensor]) -> Tensor:
    """Return the tensors side by side; one alone is not copied."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _groups(weights: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the indices of weights whose products can be one."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for i, w in enumerate(weights):
        alone = i if w.numel() > MAX_STACKED else None
        alike[w.shape[0], w.shape[1:].numel(), w.dtype, w.device, alone].append(i)
    yield from alike.values()


@contextmanager
def _full_precision(kind: str) -> Iterator[None]:
    """Keep autocast, which would round a power iteration to 16 bits, off devices of this kind."""
    if kind != "meta" and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            yield
    else:
        yield


def _check(weights: Sequence[Tensor], vectors: Sequence[Tensor], iterations: int) -> None:
    if len(weights) != len(vectors):
        raise ValueError(
            f"vectors has {len(vectors)} tensors; accepted: {len(weights)}, one for each weight"
        )
    if not (isinstance(iterations, int) and iterations >= 0):
        raise ValueError(f"iterations={iterations!r}; accepted: an integer of at least 0")
    for i, (w, u) in enumerate(zip(weights, vectors)):
        check_tensor(f"weights[{i}]", w)
        check_tensor(f"vectors[{i}]", u)
        if w.ndim < 2:
            raise ValueError(
                f"weights[{i}] has shape {tuple(w.shape)}; accepted: [rows, ...], two or more "
                f"dimensions"
            )
        for name, t in ((f"weights[{i}]", w), (f"vectors[{i}]", u)):
            if not t.is_floating_point():
                raise ValueError(f"{name} has dtype {t.dtype}; accepted: a floating dtype")
        if u.shape != w.shape[:1]:
            raise ValueError(
                f"vectors[{i}] has shape {tuple(u.shape)}; accepted: [{w.shape[0]}], the rows of "
                f"its weight, which has shape {tuple(w.shape)}"
            )
        if u.device != w.device:
            raise ValueError(
                f"vectors[{i}] is on {u.device}; accepted: {w.device}, where its weight is"
            )
