"""What tests of norm_act share: cases, the float64 answer, and how close a kernel has to come."""

import torch

from dgan_kernels import norm_act

# Per dtype, relative to the largest value of the answer. A kernel computes in float32 and rounds
# once, on storing: half a unit in the last place of a float16 is 2⁻¹¹; of a bfloat16 2⁻⁸, a whole
# one 2⁻⁷, for the interpreter cuts where a GPU rounds. In float32 the double backward pass chains
# up to eight operations good to some four units of 2⁻²³ and cancels part of what it adds: 2⁻¹⁷.
TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-11, torch.float32: 2**-17}

# name: (shape, options); sizes are odd so that no block divides them.
CASES = {
    "instance": ((3, 5, 7, 3), {"norm": "instance"}),
    "instance of one channel": ((3, 1, 4, 5), {"norm": "instance"}),
    "instance of volumes": ((2, 3, 2, 3, 5), {"norm": "instance"}),
    "group": ((2, 6, 5, 3), {"norm": "group", "groups": 2}),
    "group of 17 channels": ((2, 17, 3, 3), {"norm": "group", "groups": 1}),
    "group of vectors": ((3, 6), {"norm": "group", "groups": 2}),
    "layer": ((2, 5, 17), {"norm": "layer"}),
    "layer of vectors": ((5, 33), {"norm": "layer"}),
    "layer of images": ((2, 5, 3, 7), {"norm": "layer", "dim": 1}),
    "rms": ((3, 3, 32), {"norm": "rms"}),
    "pixel": ((2, 17, 3, 5), {"norm": "pixel"}),
    "batch": ((4, 5, 3, 7), {"norm": "batch"}),
    "batch of vectors": ((7, 3), {"norm": "batch"}),
}
AFFINE = ("none", "shared", "per_sample", "weight_only", "bias_only")


def channel_dim(shape, options):
    last = options["norm"] in ("layer", "rms") and "dim" not in options
    return len(shape) - 1 if last else options.get("dim", 1)


def inputs(shape, options, affine="shared", dtype=torch.float32, device="cpu", seed=0):
    """Return x, weight, bias, dy, and cotangents of dx, dweight and dbias."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(s, generator=generator)  # noqa: E731
    channels = shape[channel_dim(shape, options)]
    vector = (shape[0], channels) if affine == "per_sample" else (channels,)
    x, dy, v = 2 * draw(*shape) + 1, draw(*shape), draw(*shape)
    weight, bias, vw, vb = (draw(*vector) for _ in range(4))
    if affine in ("none", "bias_only"):
        weight = vw = None
    if affine in ("none", "weight_only"):
        bias = vb = None
    tensors = (x, weight, bias, dy, v, vw, vb)
    return [None if t is None else t.to(dtype).to(device) for t in tensors]


def all_orders(x, weight, bias, dy, v, vw, vb, **options):
    """Return what each order gives, by name, differentiating by torch.autograd."""
    leaves = {"x": x, "weight": weight, "bias": bias}
    leaves = {k: t.detach().requires_grad_() for k, t in leaves.items() if t is not None}
    dy = dy.detach().requires_grad_()
    x, weight, bias = (leaves.get(k) for k in ("x", "weight", "bias"))
    y = norm_act(x, weight, bias, **options)
    first = torch.autograd.grad(y, tuple(leaves.values()), dy, create_graph=True)
    cotangents = [t for t in (v, vw, vb) if t is not None]
    second = torch.autograd.grad(first, (dy, *leaves.values()), cotangents, allow_unused=True)
    names = ["y", *(f"d{k}" for k in leaves), "second dy", *(f"second {k}" for k in leaves)]
    results = dict(zip(names, [y, *first, *second]))
    return {k: torch.zeros(()) if t is None else t.detach() for k, t in results.items()}


def expected(tensors, **options):
    """Return the same in float64, by the reference."""
    wide = [None if t is None else t.double() for t in tensors]
    return all_orders(*wide, **(options | {"backend": "reference"}))


def assert_close(got, want, dtype, terms=1):
    """Compare, where up to ``terms`` values were summed in float32 into a gradient of weight."""
    for name, answer in want.items():
        # A sum's error grows with the size of its terms, not of its result: allow root growth.
        count = terms if name.endswith(("weight", "bias")) else 1
        largest = answer.abs().max().item() if answer.numel() else 0.0
        value = got[name].to(answer)
        assert value.shape == answer.shape or not answer.any(), name
        error = (value - answer).abs().max().item() if answer.numel() else 0.0
        limit = TOLERANCE[dtype] * max(largest, 1.0) * count**0.5
        assert error <= limit, f"{name}: {error:.2e} of {largest:.1f}, accepted {limit:.2e}"
