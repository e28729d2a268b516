"""attention_jvp's kernels on a real GPU."""

import pytest
import torch
from attention_jvp_oracle import TOLERANCE, assert_close, inputs, results

from dgan_kernels import attention_jvp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [8, 64, 72, 128, 256])
@pytest.mark.parametrize("is_causal", [False, True])
def test_values_and_gradients(width, dtype, is_causal):
    if width > 64 and dtype == torch.float32:
        pytest.skip("float32 has kernels up to 64 channels")
    for length, keys in ((300, 300), (77, 300), (300, 77), (1, 1)):
        case = inputs(length, keys, width, dtype=dtype, device="cuda")
        assert_close(*case, 2 * TOLERANCE[dtype], "triton", is_causal=is_causal)


@pytest.mark.parametrize("mask", range(1, 7))
def test_absent_tangents(mask):
    tangents = tuple(bool(mask >> i & 1) for i in range(3))
    case = inputs(200, 180, 64, tangents=tangents, dtype=torch.bfloat16, device="cuda")
    assert_close(*case, TOLERANCE[torch.bfloat16], "triton")


def test_tf32_where_it_is_allowed():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        case = inputs(200, 180, 64, dtype=torch.float32, device="cuda")
        assert_close(*case, TOLERANCE[torch.float16], "triton")  # as many digits as float16
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_same_bit_for_bit():
    case = inputs(500, 700, 64, dtype=torch.bfloat16, device="cuda")
    first, second = (results(attention_jvp, *case, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_memory_is_linear_in_the_length():
    peaks = []
    for length in (4096, 8192):
        case = inputs(length, length, 64, (1, 4), dtype=torch.bfloat16, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results(attention_jvp, *case, backend="triton")
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= 2.1 * peaks[0]
