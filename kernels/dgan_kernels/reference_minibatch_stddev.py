"""The mean standard deviation over groups of samples, in plain PyTorch.

x is [G, M, F, K]: M groups of G samples, and F sets of K features; more dimensions may come first
(a batch of batches, under vmap). With a = x − ⟨x⟩ over G, σ = √(⟨a²⟩ + ε):

    s  = 1/K Σ_k σ                       its jvp   1/(KG) Σ_k Σ_g a·ẋ/σ
    dx = ds/(KG) · a/σ                   for a cotangent v of dx:
    d_ds = 1/(KG) Σ_k Σ_g v·a/σ          d_x = ds/(KG) · ((v − ⟨v⟩)/σ − a·⟨v·a⟩/σ³)
"""

from torch import Tensor

from dgan_kernels.reference_gradient_penalty import wide

_GROUP = -4


def group_stddev(x: Tensor, eps: float) -> Tensor:
    """Return s, [M, F], in at least float32."""
    return _spread(x, eps)[1].mean(-1)


def group_stddev_backward(ds: Tensor, x: Tensor, eps: float) -> Tensor:
    """Return dx, of x's shape and dtype; ds [M, F]."""
    a, deviation = _spread(x, eps)
    return (_share(ds, x) * a / deviation.unsqueeze(_GROUP)).to(x.dtype)


def group_stddev_tangent(v: Tensor, x: Tensor, eps: float) -> Tensor:
    """Return the jvp, [M, F], of a tangent v of x."""
    a, deviation = _spread(x, eps)
    return ((wide(v) * a).mean(_GROUP) / deviation).mean(-1)


def group_stddev_second(v: Tensor, ds: Tensor, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return what a cotangent v of dx sends to ds and to x."""
    a, deviation = (t.unsqueeze(_GROUP) if i else t for i, t in enumerate(_spread(x, eps)))
    centred = wide(v) - wide(v).mean(_GROUP, keepdim=True)
    along = (wide(v) * a).mean(_GROUP, keepdim=True)
    to_x = _share(ds, x) * (centred / deviation - a * along / deviation**3)
    return group_stddev_tangent(v, x, eps), to_x.to(x.dtype)


def _spread(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return a, [G, M, F, K], and σ, [M, F, K]."""
    a = wide(x) - wide(x).mean(_GROUP, keepdim=True)
    return a, (a.square().mean(_GROUP) + eps).sqrt()


def _share(ds: Tensor, x: Tensor) -> Tensor:
    """Return ds/(KG), to broadcast against x."""
    return ds[..., None, :, :, None] / (x.shape[-1] * x.shape[_GROUP])
