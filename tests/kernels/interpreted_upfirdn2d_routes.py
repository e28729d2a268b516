"""upfirdn2d's derivatives in ways that `interpreted_matrix.py` does not take, and what they keep.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import gc

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch.func import vjp, vmap
from torch.multiprocessing.reductions import StorageWeakRef
from upfirdn2d_oracle import SMOOTH, SQUARE, draw

from dgan_kernels import upfirdn2d


@pytest.mark.parametrize("inputs", ["x", "bias", "both"])
def test_tangents_of_either_argument(inputs):
    x, bias, tx, tb = draw(1, 2, 3, 2), draw(2), draw(1, 2, 3, 2, seed=1), draw(2, seed=1)
    for no_grad in (False, True):
        tangents = []
        for backend in ("reference", "triton"):
            with fwd.dual_level(), torch.set_grad_enabled(not no_grad):
                a = x if inputs == "bias" else fwd.make_dual(x, tx)
                b = bias if inputs == "x" else fwd.make_dual(bias, tb)
                y = upfirdn2d(a, SMOOTH, up=2, padding=2, bias=b, act="gelu", backend=backend)
                tangents.append(fwd.unpack_dual(y)[1])
        torch.testing.assert_close(tangents[1], tangents[0])


def test_compiled_forward_mode_keeps_its_tangent():
    def tangent(x, t, backend):
        with fwd.dual_level():
            y = upfirdn2d(fwd.make_dual(x, t), SMOOTH, padding=2, act="silu", backend=backend)
            return fwd.unpack_dual(y)[1]

    torch._dynamo.reset()
    x, t = draw(1, 1, 3, 2), draw(1, 1, 3, 2, seed=1)
    got = torch.compile(tangent, backend="aot_eager")(x, t, "triton")
    torch.testing.assert_close(got, tangent(x, t, "reference"))


@pytest.mark.parametrize("dim", [0, 3])
def test_vmap(dim):
    x, bias = draw(2, 1, 2, 3, 2).movedim(0, dim), draw(2, 2)
    for options in ({}, {"act": "silu"}):

        def layer(backend, options=options):
            options = {"padding": 1, "backend": backend, **options}
            return lambda x, bias: upfirdn2d(x, SQUARE, bias=bias, **options)

        want, got = (vmap(layer(b), (dim, 0))(x, bias) for b in ("reference", "triton"))
        torch.testing.assert_close(got, want)
    filters, image = torch.stack([SMOOTH, SMOOTH.flip(0)]), draw(1, 1, 4, 4)
    with pytest.raises(NotImplementedError, match="vmap over filter"):
        vmap(lambda f: upfirdn2d(image, f, backend="triton"))(filters)


def test_a_filter_with_a_tangent_is_refused():
    with fwd.dual_level(), pytest.raises(NotImplementedError, match="filter has a tangent"):
        upfirdn2d(draw(1, 1, 4, 4), fwd.make_dual(SMOOTH, SMOOTH), backend="triton")


def by_autograd(layer, leaf):
    image = 2 * leaf
    return layer(image), StorageWeakRef(image.untyped_storage())


def by_torch_func(layer, leaf):
    seen = []

    def doubled(x):
        image = 2 * x
        seen.append(StorageWeakRef(torch._C._functorch.get_unwrapped(image).untyped_storage()))
        return layer(image)

    return vjp(doubled, leaf), seen[0]


def compiled(layer, leaf):
    torch._dynamo.reset()
    return by_autograd(torch.compile(layer, fullgraph=True, backend="aot_eager"), leaf)


@pytest.mark.parametrize("route", [by_autograd, by_torch_func, compiled])
@pytest.mark.parametrize(
    ("options", "kept"),
    [({}, False), ({"bias": draw(2), "act_gain": 2.0}, False), ({"act": "silu"}, True)],
)
def test_the_image_is_kept_only_where_the_slope_depends_on_it(options, kept, route):
    leaf = draw(1, 2, 3, 2).requires_grad_()
    layer = lambda x: upfirdn2d(x, SMOOTH, padding=2, backend="triton", **options)  # noqa: E731
    graph, memory = route(layer, leaf)
    gc.collect()  # the interpreter's frames are cycles
    assert memory.expired() != kept
    assert graph is not None
