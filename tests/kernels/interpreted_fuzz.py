"""Random sizes, strides and options of every operator; memory that may not be touched beside it.

Tensors, and what kernels allocate, end or begin at a page that the system protects: an access out
of bounds ends the process. Not collected by name: `test_interpreted.py` runs it with
TRITON_INTERPRET=1; the seed is in the name of the test.
"""

import ctypes
import mmap
import os
import random
import signal
from itertools import zip_longest

import pytest
import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode

import dgan_kernels as k
from dgan_kernels.reference import ACTIVATIONS

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
EMPTY = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
TOLERANCE = {torch.float32: 2**-14, torch.bfloat16: 2**-5, torch.float16: 2**-8}
"""Of the largest value: chains of results that are stored between, see each operator's own test."""
SEEDS = range(12)


class Guarded(TorchDispatchMode):
    """Gives every new tensor its own memory, between two protected pages and against one."""

    def __init__(self, chance):
        super().__init__()
        self.chance = chance

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return self.guard(result) if func.overloadpacket.__name__ in EMPTY else result

    def guard(self, t):
        """Return a copy of a dense tensor in memory of that kind."""
        size = t.numel() * t.element_size()
        room = -(-size // PAGE) * PAGE
        memory = mmap.mmap(-1, room + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (start, start + PAGE + room):
            assert LIBC.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0
        at = PAGE + (room - size if self.chance.random() < 0.75 else 0)
        if size == 0:
            return t
        flat = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=at)
        # What a kernel does not write shows as NaN.
        return flat.fill_(torch.nan).as_strided(t.shape, t.stride())

    def draw(self, *shape, dtype=torch.float32):
        """Return normal values in a random order of memory."""
        order = self.chance.sample(range(len(shape)), len(shape))
        if self.chance.random() < 0.5:
            order = range(len(shape))
        with self:
            t = torch.empty([shape[d] for d in order], dtype=dtype)
        t.copy_(torch.randn(t.shape))
        return t.permute([list(order).index(d) for d in range(len(shape))])


def bias_act(c, draw, dtype):
    shape = [c.randint(1, 9) for _ in range(c.randint(2, 4))]
    shape[-1] *= c.choice([1, 1, 1, 300])
    dim = c.randrange(len(shape))
    # elu has no second derivative at 0, where sums of bfloat16 often are.
    act = c.choice([name for name in ACTIVATIONS if name != "elu"])
    options = {"act": act, "clamp": c.choice([None, 1.3]), "dim": dim}
    tensors = [draw(*shape, dtype=dtype), draw(shape[dim], dtype=dtype)]
    more = {}
    if dim and c.random() < 0.4:
        more["scale"] = draw(shape[0], shape[dim], dtype=dtype)
    if c.random() < 0.4:
        sizes = [1 if d == dim else size for d, size in enumerate(shape)]
        sizes[0] = c.choice([1, sizes[0]])
        more["noise"] = draw(*sizes, dtype=dtype)
    if more:
        layer = lambda x, b, *t, **o: k.bias_act(x, b, **dict(zip(more, t)), **options, **o)  # noqa: E731
        return [*tensors, *more.values()], layer
    return tensors, lambda x, b, **o: k.bias_act(x, b, **options, **o)


def norm_act(c, draw, dtype):
    norm = c.choice(["group", "instance", "layer", "rms", "pixel", "batch"])
    groups = c.randint(1, 3)
    channels = groups * c.randint(1, 6) if c.random() < 0.8 else groups * c.randint(30, 70)
    shape = [c.randint(1, 3), channels, c.randint(1, 6), c.choice([1, 3, 17])]
    options = {"norm": norm, "groups": groups if norm == "group" else None, "eps": 0.1}
    options |= {"act": c.choice(["linear", "silu", "leaky_relu"]), "dim": 1}
    vector = (shape[0], channels) if c.random() < 0.5 else (channels,)
    tensors = [draw(*shape, dtype=dtype), draw(*vector, dtype=dtype), draw(*vector, dtype=dtype)]
    return tensors, lambda x, w, b, **o: k.norm_act(x, w, b, **options, **o)


def upfirdn2d(c, draw, dtype):
    taps = draw(*c.choice([1, 2]) * [c.randint(1, 6)])
    up, down = ([c.randint(1, 3) for _ in range(2)] for _ in range(2))
    width = c.randint(1, 12)
    x = draw(1, c.choice([1, 2, 5]), c.randint(1, 6), width, dtype=dtype)
    # At least the filter's size, most of it negative on the left now and then.
    padding = [c.randint(-3, 5), c.randint(9, 12), c.randint(-3, 5), c.randint(9, 12)]
    options = {"up": up, "down": down, "padding": padding, "flip_filter": c.random() < 0.5}
    if c.random() < 0.5:
        options |= {"act": c.choice(["silu", "leaky_relu"]), "clamp": 2.0}
        bias = draw(x.shape[1], dtype=dtype)
        return [x, bias], lambda x, b, **o: k.upfirdn2d(x, taps, bias=b, **options, **o)
    return [x], lambda x, **o: k.upfirdn2d(x, taps, **options, **o)


def squared_norm(c, draw, dtype):
    x = draw(c.randint(1, 3), c.choice([1, 7, 2049, 8193]), c.randint(1, 3), dtype=dtype)
    return [x], lambda x, **o: k.squared_norm(x, **o)


def minibatch_stddev(c, draw, dtype):
    sets = c.randint(1, 3)
    x = draw(c.randint(1, 9), sets * c.randint(1, 3), *[c.choice([1, 3, 40])] * 2, dtype=dtype)
    group = c.randint(1, 9)
    return [x], lambda x, **o: k.minibatch_stddev(x, group, sets, 0.1, **o)


def penalty_points(c, draw, dtype):
    shape = [c.randint(1, 4), c.choice([1, 5, 2047, 2049]), c.randint(1, 2)]
    real, fake = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)
    mix, one_sided = draw(shape[0]).sigmoid(), c.random() < 0.5

    def layer(real, fake, **o):
        between = k.interpolate(real.detach(), fake.detach(), mix, **o)
        squares = k.squared_norm(between, **o)
        options = {"kind": "one_centered", "one_sided": one_sided}
        return (real + fake) * k.penalty_direction(between, squares, **options, **o)

    return [real, fake], layer


def attention_jvp(c, draw, dtype):
    batch, queries, keys, width = (
        c.randint(1, 2),
        c.randint(1, 40),
        c.randint(1, 40),
        c.randint(1, 20),
    )
    lengths = [queries, keys, keys] * 2
    options = {"is_causal": c.random() < 0.5}
    tensors = [draw(batch, length, width, dtype=dtype) for length in lengths]
    return tensors, lambda *t, **o: torch.cat(k.attention_jvp(*t, **options, **o), -1)


def modulated_conv2d(c, draw, dtype):
    # Of one channel a demodulated style has no effect: its gradients would be rounding alone.
    inputs, outputs, size = c.randint(2, 4), c.randint(1, 5), c.choice([1, 3])
    x = draw(c.randint(1, 3), inputs, c.randint(3, 6), c.randint(3, 6), dtype=dtype)
    options = {"up": c.choice([1, 2]), "padding": size // 2, "resample_filter": draw(4).abs()}
    # Smooth: rounding in the convolutions would put sums on the other side of a kink.
    options |= {"act": "silu", "demodulate": c.random() < 0.7}
    weight, styles = draw(outputs, inputs, size, size, dtype=dtype), draw(len(x), inputs)
    tensors = [x, weight, styles.to(dtype), draw(outputs, dtype=dtype)]
    return tensors, lambda x, w, s, b, **o: k.modulated_conv2d(x, w, s, bias=b, **options, **o)


OPERATORS = [
    bias_act, norm_act, upfirdn2d, squared_norm, minibatch_stddev, penalty_points, attention_jvp,
    modulated_conv2d,
]  # fmt: skip


def derivatives(layer, tensors, twice, backend):
    """Return the result and gradients, to the second order where there is one."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = layer(*leaves, backend=backend)
    torch.manual_seed(0)
    found = list(torch.autograd.grad(y, leaves, torch.randn(y.shape).to(y), create_graph=twice))
    if twice:
        loss = sum((g * torch.randn(g.shape).to(g)).sum() for g in found)
        if loss.requires_grad:
            found += torch.autograd.grad(loss, leaves, allow_unused=True)
    return [y, *found]


@triton.jit
def copy_kernel(x_ptr, y_ptr, start, BLOCK: tl.constexpr):
    at = start + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at))


@pytest.mark.parametrize("start", [-4, 0, 4])
def test_the_guard_ends_a_process_that_leaves_its_memory(start):
    """A kernel whose offsets are wrong by a float32 or four: what the tests below rely on."""
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).signal(signal.SIGSEGV, None)  # pytest's would print, and live on
        guarded = Guarded(random.Random(0 if start > 0 else 1))
        x, y = (guarded.guard(torch.empty(PAGE // 4)) for _ in range(2))
        copy_kernel[(1,)](x, y, start, BLOCK=PAGE // 4)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == (-signal.SIGSEGV if start else 0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda f: f.__name__)
def test_within_its_memory(operator, seed):
    torch.manual_seed(seed)
    guarded = Guarded(random.Random(seed))
    dtype = guarded.chance.choice(list(TOLERANCE))
    tensors, layer = operator(guarded.chance, guarded.draw, dtype)
    twice = operator is not attention_jvp
    want = derivatives(layer, [t.double() for t in tensors], twice, "reference")
    with guarded:
        got = derivatives(layer, tensors, twice, "triton")
    # What is absent, or None, is a zero: a second derivative of something linear.
    for a, b in zip_longest(got, want):
        a, b = (torch.zeros(()) if t is None else t for t in (a, b))
        error = (a - b).abs().max() if b.numel() else torch.zeros(())
        chain = 8 if operator is modulated_conv2d else 1  # its convolutions round, too
        assert error <= chain * TOLERANCE[dtype] * max(b.abs().max(), 1.0)
