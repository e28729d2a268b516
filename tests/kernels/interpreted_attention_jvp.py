"""attention_jvp's Triton kernels against float64: blocks, masks, dtypes, layouts, absent tangents.

Not collected by name: `test_interpreted.py` runs it with TRITON_INTERPRET=1.
"""

import pytest
import torch
from attention_jvp_oracle import TOLERANCE, assert_close, errors, expected, inputs, results

from dgan_kernels import attention_jvp
from dgan_kernels import triton_attention_jvp_launch as launch

SMALL = launch.Config(16, 16, 4, 1)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    # So that few programs already meet every boundary.
    monkeypatch.setattr(launch, "configs", lambda _: (SMALL,) * 3)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("length", "keys", "width"), [(33, 33, 16), (20, 37, 24), (37, 20, 8), (1, 17, 16), (17, 1, 3)]
)
def test_lengths_and_widths(length, keys, width, is_causal):
    tensors, cotangents = inputs(length, keys, width, (1, 2), dtype=torch.float32)
    assert_close(tensors, cotangents, TOLERANCE[torch.float32], "triton", is_causal=is_causal)


def test_blocks_that_are_not_square(monkeypatch):
    monkeypatch.setattr(launch, "configs", lambda _: (launch.Config(32, 16, 4, 1),) * 3)
    for length, keys in ((50, 40), (40, 50)):
        tensors, cotangents = inputs(length, keys, 8, (1,), dtype=torch.float32)
        assert_close(tensors, cotangents, TOLERANCE[torch.float32], "triton", is_causal=True)
    monkeypatch.setattr(launch, "configs", lambda _: (launch.Config(16, 64, 4, 1),) * 3)
    tensors, cotangents = inputs(40, 50, 8, (1,), dtype=torch.float32)
    assert_close(tensors, cotangents, TOLERANCE[torch.float32], "triton", is_causal=True)


@pytest.mark.parametrize("mask", range(1, 7))
def test_absent_tangents(mask):
    tangents = tuple(bool(mask >> i & 1) for i in range(3))
    case = inputs(20, 18, 8, (1, 1), tangents, dtype=torch.float32)
    assert_close(*case, TOLERANCE[torch.float32], "triton", scale=0.7)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dtypes_and_a_head_in_two_halves(dtype):
    # In float32 heads end where the halves begin.
    width = 56 if dtype == torch.float32 else 72
    assert_close(*inputs(20, 37, width, (2,), dtype=dtype), TOLERANCE[dtype], "triton")


def test_layouts():
    tensors, cotangents = inputs(18, 20, 8, (2, 2), dtype=torch.float32)
    inside = lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    part = lambda t: torch.cat([t, t], -1)[..., t.shape[-1] :]  # noqa: E731
    outside = lambda t: t.mT.contiguous().mT  # noqa: E731
    got = attention_jvp(*[inside(t) for t in tensors], backend="triton")
    assert all(t.stride() == inside(t).stride() for t in got)
    mixed = [inside(tensors[0]), part(tensors[1]), outside(tensors[2]), *tensors[3:]]
    for case in ([inside(t) for t in tensors], mixed):
        assert_close(case, [part(t) for t in cotangents], TOLERANCE[torch.float32], "triton")


def test_16_bit_products_see_the_logits_tangent_about_its_mean():
    # Ṡ of about 300 ± 1: rounded to bfloat16 as it is, it would be wrong by as much as what counts.
    tensors, cotangents = inputs(20, 40, 16, (1,), dtype=torch.bfloat16)
    tensors[0][..., 0], tensors[4][..., 0] = 4.0, 300.0
    got = results(attention_jvp, tensors, cotangents, backend="triton")
    found = errors(got, expected(tensors, cotangents))
    del found["dQ"]  # the sum of K̇ = 300 with weights that add up to 0: lost in 16 bits, however
    assert max(found.values()) <= TOLERANCE[torch.bfloat16], found


def test_large_logits_do_not_overflow():
    tensors, cotangents = inputs(20, 40, 16, (1,), dtype=torch.float32)
    # Logits of some ±500, of which exp would be infinite; float32 gives them to 500 · 2⁻²³.
    assert_close(tensors, cotangents, 500 * TOLERANCE[torch.float32], "triton", scale=30.0)


def test_the_same_bit_for_bit():
    case = inputs(20, 37, 16, (2,), dtype=torch.float32)
    first, second = (results(attention_jvp, *case, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_empty():
    tensors, cotangents = inputs(5, 6, 8, (0, 2), dtype=torch.float32)
    got = results(attention_jvp, tensors, cotangents, backend="triton")
    assert got["dK"].shape == (0, 2, 6, 8)
    tensors, cotangents = inputs(0, 6, 8, (1, 2), dtype=torch.float32)
    got = results(attention_jvp, tensors, cotangents, backend="triton")
    assert not got["dK"].any()
