"""What tests of bias_act share: cases, the float64 answer, and how close a kernel has to come."""

import torch

from dgan_kernels import bias_act
from dgan_kernels.reference import ACTIVATIONS

# Per dtype, relative to the largest value of the answer. A kernel computes in float32 and rounds
# once, on storing: half a unit in the last place of a float16 is 2⁻¹¹; of a bfloat16 2⁻⁸, a whole
# one 2⁻⁷, for the interpreter cuts where a GPU rounds. In float32, exp and division are good to
# some four units of 2⁻²³, and a formula chains up to four of them: 2⁻¹⁹.
TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-11, torch.float32: 2**-19}

# [N, C, ...] with odd sizes; the comment says which walk through memory each one takes.
SHAPES = {
    "vector": (5, 7),  # channel innermost
    "aligned": (6, 32),  # channel innermost, wide bias loads
    "sequence": (2, 5, 3),  # flat
    "image": (3, 5, 7, 3),  # flat
    "planes": (2, 3, 32, 34),  # planes, the second block of each partly masked
    "odd_plane": (1, 2, 33, 35),  # too large for one block, not aligned: flat
    "volume": (2, 3, 2, 3, 5),  # flat
    "one_channel": (3, 1, 4, 5),
}


def inputs(shape, dtype=torch.float32, device="cpu", dim=1, seed=0):
    """Return (x, bias, dy, v): x wide enough to reach every branch of every activation."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(s, generator=generator)  # noqa: E731
    x, bias, dy, v = 3 * draw(*shape), draw(shape[dim]), draw(*shape), draw(*shape)
    x.view(-1)[:2] = torch.tensor([30.0, -30.0])  # the flat ends
    return [t.to(dtype).to(device) for t in (x, bias, dy, v)]


def all_orders(x, bias, dy, v, **options):
    """Return what each order gives, by name, differentiating by torch.autograd."""
    x, dy = x.detach().requires_grad_(), dy.detach().requires_grad_()
    wanted = [x] if bias is None else [x, bias := bias.detach().requires_grad_()]
    y = bias_act(x, bias, **options)
    first = torch.autograd.grad(y, wanted, dy, create_graph=True)
    second = torch.autograd.grad(first[0], [dy, *wanted], v, allow_unused=True)
    names = ["y", "dx", "db", "d_dy", "d_x", "d_b"]
    if bias is None:
        names = ["y", "dx", "d_dy", "d_x"]
    results = dict(zip(names, [y, *first, *second]))
    return {k: torch.zeros(()) if t is None else t.detach() for k, t in results.items()}


def expected(x, bias, dy, v, **options):
    """Return the same in float64, by the reference."""
    options["backend"] = "reference"
    wide = [None if t is None else t.double() for t in (x, bias, dy, v)]
    return all_orders(*wide, **options)


# With scale and noise, [N, C, ...]; the comment says what tiles of 2,048 elements make of each.
SCALED_SHAPES = {
    "vector": (5, 7),  # one position
    "image": (3, 5, 7, 3),  # one tile a sample
    "tiles": (2, 70, 9, 8),  # six a sample, partly masked along either dimension
    "volume": (2, 17, 2, 3, 5),
    "one_channel": (3, 1, 4, 5),
}


def scaled_inputs(shape, dtype=torch.float32, device="cpu", dim=1, shared_noise=False):
    """Return x, and by name scale, noise, bias, dy and v."""
    x, bias, dy, v = inputs(shape, dtype, device, dim)
    generator = torch.Generator().manual_seed(1)
    size = list(shape)
    size[dim] = 1
    size[0] = 1 if shared_noise else size[0]
    scale, noise = (
        torch.randn(s, generator=generator).to(dtype).to(device)
        for s in ((shape[0], shape[dim]), size)
    )
    return x, {"scale": scale, "noise": noise, "bias": bias, "dy": dy, "v": v}


def scaled_orders(x, tensors, **options):
    """Return what each order gives, by name; the second takes every result of the first."""
    tensors = {k: None if t is None else t.detach() for k, t in tensors.items()}
    v, dy = tensors.pop("v"), tensors.pop("dy").requires_grad_()
    wanted = {"x": x.detach().requires_grad_()}
    wanted |= {k: t.requires_grad_() for k, t in tensors.items() if t is not None}
    y = bias_act(**wanted, **options)
    first = torch.autograd.grad(y, list(wanted.values()), dy, create_graph=True)
    directions = [torch.linspace(-1, 1, g.numel()).to(g).view(g.shape) for g in first[1:]]
    asked = {"dy": dy, **wanted}
    second = torch.autograd.grad(first, list(asked.values()), [v, *directions], allow_unused=True)
    results = {"y": y, **dict(zip([f"d{k}" for k in wanted], first))}
    results |= dict(zip([f"d_{k}" for k in asked], second))
    return {k: torch.zeros(()) if t is None else t.detach() for k, t in results.items()}


def scaled_expected(x, tensors, **options):
    """Return the same in float64, by the reference."""
    wide = {k: None if t is None else t.double() for k, t in tensors.items()}
    return scaled_orders(x.double(), wide, **(options | {"backend": "reference"}))


SUMS = ("db", "d_b", "dscale", "dnoise", "dbias", "d_scale", "d_noise", "d_bias")


def assert_close(got, want, dtype, terms=1):
    """Compare, where ``terms`` values were summed (in float32, or pairwise) into each result."""
    for name, answer in want.items():
        # A sum's error grows with the size of its terms, not of its result: allow root growth.
        count = terms if name in SUMS else 1
        scale = max(answer.abs().max().item() if answer.numel() else 0.0, 1.0) * count**0.5
        value = got[name].to(answer)
        assert value.shape == answer.shape or not answer.any(), name
        error = (value - answer).abs().max().item() if answer.numel() else 0.0
        assert error <= TOLERANCE[dtype] * scale, f"{name}: {error:.2e} at scale {scale:.1f}"


CURVED = [name for name, a in ACTIVATIONS.items() if a.second is not None]
