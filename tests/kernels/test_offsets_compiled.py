"""No kernel's integers leave their type at tensors of more than 2³¹ elements.

Launches on tensors without memory are compiled, and the range of every integer in their code is
computed: 32 bits are enough for each that has 32 bits.
"""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to compile")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("the interpreter is on: kernels are not compiled", allow_module_level=True)

import torch
from compiled import resources
from integer_ranges import overflows
from recorded import empty, every_order, recorded

from dgan_kernels import triton_attention_jvp_launch as attention
from dgan_kernels import triton_bias_act, triton_bias_act_scaled, triton_norm_act
from dgan_kernels import triton_gradient_penalty as penalty
from dgan_kernels import triton_minibatch_stddev as stddev
from dgan_kernels import triton_upfirdn2d as fir

G = 2**30
F32 = torch.float32


def bias_act(shape, last=False):
    bias = empty(1, shape[1], *[1] * (len(shape) - 2))
    layer = lambda x, b: triton_bias_act.FORWARD(x, b.expand_as(x), "silu", 1.0, 2.0, 1)  # noqa: E731
    return every_order(layer, empty(*shape, last=last), bias)


def scaled(n, c, p, last=False):
    x = empty(n, p, c).mT if last else empty(n, c, p)
    constants = ("silu", 1.0, 2.0)
    layer = lambda *layer: triton_bias_act_scaled.FORWARD(*layer, *constants)  # noqa: E731
    leaves = (x.detach().requires_grad_(), empty(n, c, 1), empty(n, 1, p), empty(1, c, 1))
    launches = every_order(layer, *leaves)
    with recorded() as more:
        forms = [t.detach() for t in leaves]
        triton_bias_act_scaled.TANGENT.run(*forms, *forms, *constants)
    return launches + more


def norm_act(over, *shape):
    n, g, d, _ = shape
    vectors = (n, 1 if over == "channels" else g, d, 1)
    x, w = empty(*shape), empty(*vectors, dtype=F32)
    constants = (over, True, "silu", 1e-5, None)
    launches = every_order(lambda x, w: triton_norm_act.launch(x, w, w, *constants), x, w)
    with recorded() as more:
        x, w = x.detach(), w.detach()
        stats = None
        if triton_norm_act.resident_tiles(x, over) is None:
            stats = triton_norm_act.STATISTICS.run(x, *constants)
        triton_norm_act.JVP.run(x, None, x, stats, w, w, *constants)
    return launches + more


def upfirdn2d(taps, *shape, last=False):
    constants = ((2, 2), (1, 1), (2, 1, 2, 1), False, 4.0, "leaky_relu", 1.0, 2.0)
    taps = torch.empty(taps, device="meta")
    layer = lambda x, b: fir.FUSED(x, taps, b, *constants)  # noqa: E731
    return every_order(layer, empty(*shape, last=last), empty(1, shape[1], 1, 1))


def rows(n, length):
    launches = every_order(penalty.SQUARED_NORM, empty(n, length))
    x, numbers = empty(n, length).detach(), empty(n, dtype=F32).detach()
    with recorded() as more:
        penalty.DOT.run(x, x, 2.0)
        penalty.DIRECTION.run(x, numbers, True)
        penalty.INTERPOLATE.run(x, x, numbers)
    return launches + more


def minibatch_stddev(*shape):
    launches = every_order(lambda x: stddev.FORWARD(x, 1e-8), empty(*shape))
    with recorded() as more:
        x = empty(*shape).detach()
        stddev.TANGENT.run(x, x, 1e-8)
    return launches + more


def attention_jvp(*shape, moved=False):
    n, heads, length, width = shape
    x = empty(n, length, heads, width).transpose(1, 2) if moved else empty(*shape)
    inputs = (x.detach(),) * 6
    with recorded() as launches:
        outputs = attention.forward(inputs, 0.1, True)
        attention.backward(*outputs[:2], inputs, outputs, 0.1, True)
    return launches


# Many small parts, and few that are large themselves; never an odd one out that fits in 32 bits.
CASES = {
    "bias_act, planes": lambda: bias_act((3, 5, G)),
    "bias_act, one plane": lambda: bias_act((2, 2, 3 * G)),
    "bias_act, small planes": lambda: bias_act((2**20, 2**10, 7)),
    "bias_act, channels_last": lambda: bias_act((2**11, 2**10, 2**6, 2**6), last=True),
    "bias_act, many channels": lambda: bias_act((3, G, 1, 1), last=True),
    "scaled": lambda: scaled(3, 5, G),
    "scaled, many channels": lambda: scaled(2, G, 7),
    "scaled, channels_last": lambda: scaled(2**9, 2**10, 2**14, last=True),
    "instance": lambda: norm_act("group", 2**10, 2**9, 1, 2**13),
    "group": lambda: norm_act("group", 2**17, 2**5, 2**4, 2**8),
    "layer": lambda: norm_act("channels", 2**10, 2**12, 2**10, 1),
    "layer of images": lambda: norm_act("channels", 2**4, 1, 2**6, 2**23),
    "two sweeps": lambda: norm_act("group", 2, 2, 3, G),
    # Some sums of rows lie beyond 2³¹, though their number itself is below it.
    "two sweeps, many rows": lambda: norm_act("group", 2**16, 1, 2**14, 4),
    "batch": lambda: norm_act("batch", 2**15, 1, 2**12, 2**5),
    "batch, many channels": lambda: norm_act("batch", 3, 1, G, 1),
    "upfirdn2d": lambda: upfirdn2d(4, 2**4, 3, 2**15, 2**15),
    "upfirdn2d, many planes": lambda: upfirdn2d(4, 2**20, 2**7, 5, 5),
    "upfirdn2d, channels_last": lambda: upfirdn2d(4, 2, 2**6, 2**13, 2**13, last=True),
    "upfirdn2d, square": lambda: upfirdn2d((1, 4, 4), 2**4, 3, 2**15, 2**15),
    "upfirdn2d, square, channels_last": lambda: upfirdn2d(
        (1, 4, 4), 2, 2**6, 2**13, 2**13, last=True
    ),
    "rows": lambda: rows(2**22, 2**10),
    "rows, long": lambda: rows(3, 3 * G),
    "minibatch_stddev": lambda: minibatch_stddev(4, 2**14, 2, 2**16),
    "minibatch_stddev, large images": lambda: minibatch_stddev(4, 2, 1, G),
    "attention_jvp": lambda: attention_jvp(2**8, 2**4, 2**14, 64),
    "attention_jvp, tokens first": lambda: attention_jvp(2**8, 2**4, 2**14, 64, moved=True),
    "attention_jvp, tokens far apart": lambda: attention_jvp(1, 2**20, 2**6, 64, moved=True),
}


@pytest.mark.parametrize("case", CASES)
def test_integers_stay_in_their_type(case):
    launches = CASES[case]()
    assert launches
    for launched in launches:
        name, programs = launched.kernel.__name__, launched.programs
        assert programs < 2**31, f"{name}: {programs} programs are more than a GPU starts"
        compiled = launched.compile(90)
        assert not overflows(compiled.asm["ttir"], name, launched.arguments, programs)
        assert resources(compiled.asm["cubin"])[1] == 0, f"{name} spills"
