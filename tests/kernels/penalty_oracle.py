"""What tests of the penalty's operators share: cases, the float64 answer, and how close to come."""

import torch

from dgan_kernels import interpolate, minibatch_stddev, penalty_direction, squared_norm

# A kernel computes in float32 and rounds once, on storing: half a unit in the last place of a
# float16 is 2⁻¹¹; of a bfloat16 a whole one, 2⁻⁷, for the interpreter cuts where a GPU rounds. In
# float32 up to eight operations of half a unit, 2⁻²⁴, stand behind an element.
STORED = {torch.bfloat16: 2**-7, torch.float16: 2**-11, torch.float32: 2**-21}
# A sum is float32 whatever x's dtype: 4 additions a thread, 11 levels of a tree within a program,
# one for each chunk, half a unit each, relative to the sum of magnitudes.
SUMMED = 2**-20

SHAPES = {
    "one": (2, 1),
    "vector": (5, 7),
    "one_channel": (3, 1, 5, 3),
    "image": (2, 3, 7, 5),
    "seventeen": (3, 17, 3, 3),
    "aligned": (2, 16, 8, 8),
    "two_blocks": (2, 3, 29, 31),  # 2,697: no block divides it
    "two_chunks": (2, 3, 53, 61),  # 9,699: nor does a chunk
    "volume": (2, 3, 2, 3, 5),
}
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "batch_inside": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


def draw(*shape, dtype=torch.float32, seed=0, device="cpu"):
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return t.to(dtype).to(device)


def penalty_orders(x, v, backend):
    """Return s = ‖x‖², dx, and what a cotangent v of dx sends to x and to ds, and a third order."""
    x = x.detach().requires_grad_()
    ds = torch.linspace(-1, 2, len(x), device=x.device).to(torch.promote_types(x.dtype, v.dtype))
    s = squared_norm(x, backend=backend)
    ds = ds.to(s.dtype).requires_grad_()
    (dx,) = torch.autograd.grad(s, x, ds, create_graph=True)
    d_ds, d_x = torch.autograd.grad(dx, (ds, x), v, create_graph=True)
    (third,) = torch.autograd.grad(d_ds, x, torch.ones_like(d_ds))
    return {"s": s, "dx": dx, "d_ds": d_ds, "d_x": d_x, "third": third}


def check_squared_norm(x, v, got):
    """Compare every order with its formula in float64."""
    wide, w = x.double().flatten(1), v.double().flatten(1)
    ds = torch.linspace(-1, 2, len(x), device=x.device).double()[:, None]
    assert got["s"].dtype == got["d_ds"].dtype == torch.float32
    near(got["s"], wide.square().sum(1), SUMMED, wide.square().sum(1))
    near(got["d_ds"], 2 * (wide * w).sum(1), SUMMED, 2 * (wide * w).abs().sum(1))
    for name, want in (("dx", 2 * ds * wide), ("d_x", 2 * ds * w), ("third", 2 * w)):
        assert got[name].dtype == x.dtype
        near(got[name].flatten(1), want, STORED[x.dtype], want.abs())


def near(got, want, tolerance, scale):
    """Compare elementwise: |got - want| <= tolerance·scale, below which nothing is stored."""
    assert got.shape == want.shape
    excess = (got.double() - want).abs() - tolerance * scale
    assert (excess <= 1e-7).all(), f"{excess.max():.2e}"


def stddev_orders(x, v, backend, **options):
    """Return y = minibatch_stddev(x), dx, and what a cotangent v of dx sends to dy and to x."""
    x = x.detach().requires_grad_()
    y = minibatch_stddev(x, backend=backend, **options)
    dy = draw(*y.shape, dtype=x.dtype, seed=5, device=x.device).requires_grad_()
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    d_dy, d_x = torch.autograd.grad(dx, (dy, x), v.to(dx.dtype))
    return {"y": y, "dx": dx, "d_dy": d_dy, "d_x": d_x}


def check_stddev(x, v, got, **options):
    """Compare every order with the reference in float64."""
    want = stddev_orders(x.double(), v.double(), "reference", **options)
    for name, answer in want.items():
        value = got[name]
        assert value.dtype == x.dtype
        # Roundings of a sum grow with its terms: relative to the largest. Up to four roundings to
        # x's dtype: of dy, of the deviation's cotangent summed over positions, of its share in dx,
        # and of the sum of that with dy's.
        scale = answer.abs().max().item() if answer.numel() else 0.0
        near(value, answer, 4 * STORED[x.dtype], torch.full_like(answer, max(scale, 1.0)))


def point_and_direction(x, backend):
    """Return interpolate's and penalty_direction's results for a batch like x."""
    fake = x.roll(1, 0) * 0.5 + 1
    mix = torch.linspace(0, 1, len(x), device=x.device)
    squares = squared_norm(x, backend="reference")
    results = {"between": interpolate(x, fake, mix, backend=backend)}
    for one_sided in (False, True):
        results[f"one_sided={one_sided}"] = penalty_direction(
            x, squares, "one_centered", one_sided=one_sided, backend=backend
        )
    return results


def check_point_and_direction(x, got):
    """Compare with the formulas in float64."""
    wide = x.double().flatten(1)
    fake = (x.roll(1, 0) * 0.5 + 1).double().flatten(1)
    mix = torch.linspace(0, 1, len(x), device=x.device).double()[:, None]
    near(
        got["between"].flatten(1),
        fake + mix * (wide - fake),
        STORED[x.dtype],
        fake.abs() + wide.abs(),
    )
    norm = wide.norm(dim=1, keepdim=True)
    for one_sided in (False, True):
        weight = torch.where(norm > 0, 2 * (norm - 1) / norm, 0.0)
        weight = weight.clamp(min=0) if one_sided else weight
        # 1 - 1/‖g‖ cancels near 1: relative to its terms.
        scale = 2 * (1 + 1 / norm.clamp(min=1e-30)) * wide.abs()
        result = got[f"one_sided={one_sided}"]
        near(result.flatten(1), weight * wide, STORED[x.dtype], scale)
