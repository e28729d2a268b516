"""The upfirdn2d kernel compiled for GPUs that are not here: spills, registers, width of loads."""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed: there is nothing to compile")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("the interpreter is on: kernels are not compiled", allow_module_level=True)

from compiled import BOUNDS, compile_for, resources, widths

from dgan_kernels import triton_upfirdn2d
from dgan_kernels.reference import ACTIVATIONS

pytestmark = BOUNDS

POINTERS = ["x_ptr", "f_ptr", "b_ptr", "y_ptr"]
SIZES = ["H", "W", "OH", "OW", "C", "CHANNELS"]
FACTORS = [(1, 1), (2, 1), (1, 2)]  # up, down


def compile_kernel(dtype, layout, up, down, taps, separable, arch, act="leaky_relu"):
    """Return (PTX, registers, stack bytes), specialised as a launch with those shapes would be."""
    kernel = triton_upfirdn2d.upfirdn2d_kernel
    last = layout == "channels_last"
    constants = {
        "UPX": up, "UPY": up, "DOWNX": down, "DOWNY": down, "TX": taps, "TY": taps, "FLIP": False,
        "SEPARABLE": separable, "ACT": act, "HAS_BIAS": True, "HAS_CLAMP": True, "b_stride": 1,
        **triton_upfirdn2d.blocks(128 if last else 1, 128, 128, separable),
    }  # fmt: skip
    if not last:
        constants["C"] = 1
    signature = dict.fromkeys(POINTERS, f"*{dtype}") | {"f_ptr": "*fp32"}
    signature |= dict.fromkeys([*SIZES, "AX", "AY", "SX", "SY"], "i32")
    signature |= dict.fromkeys(["gain", "act_gain", "clamp"], "fp32")
    aligned = [*POINTERS, *SIZES]
    warps = triton_upfirdn2d.WARPS
    compiled = compile_for(arch, kernel, signature, constants, aligned, num_warps=warps)
    assert compiled.metadata.shared == 0  # nothing moves between lanes
    return compiled.asm["ptx"], *resources(compiled.asm["cubin"])


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("layout", ["planes", "channels_last"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_nothing_spills(dtype, layout, separable, arch):
    for up, down in FACTORS if arch == 90 else FACTORS[:1]:
        ptx, registers, stack = compile_kernel(dtype, layout, up, down, 4, separable, arch)
        assert stack == 0
        # A program is one warp: 168 registers a lane let an SM hold twelve of them.
        assert registers <= 168
        wide, narrow = widths(ptx, "ld")
        stores = widths(ptx, "st")
        if layout == "channels_last":
            # Four taps of a row (all rows', where the filter does not separate), for each of 16
            # bytes a lane has; the bias. Narrow: the taps, once each.
            rows = 1 if separable else triton_upfirdn2d.SQUARE_ROWS
            words = 2 if dtype == "fp32" else 1
            assert wide == (4 // up * rows + 1) * words
            assert narrow <= 8
            assert stores[1] == 0
        else:
            assert stores[0] == 0  # neighbouring lanes store neighbouring pixels


@pytest.mark.parametrize("layout", ["planes", "channels_last"])
@pytest.mark.parametrize(("up", "down"), [(2, 1), (1, 2), (4, 1), (3, 2)])
def test_twelve_taps_do_not_spill(up, down, layout):
    # StyleGAN3's filters: separable, six taps for each factor.
    _, registers, stack = compile_kernel("bf16", layout, up, down, 12, True, 90)
    assert (stack, registers <= 255) == (0, True)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_epilogue_compiles_without_spills(act):
    for layout in ("planes", "channels_last"):
        _, _, stack = compile_kernel("bf16", layout, 2, 1, 4, True, 90, act)
        assert stack == 0
