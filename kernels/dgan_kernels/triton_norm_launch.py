"""Runs norm_act's kernels: which ones, in what tiles, and what is added up between two sweeps.

Tensors are the views of `reference_norm_act`, contiguous; weight and bias are float32 and may be
expanded. ``stats`` None means that groups fit on the chip, where statistics cost no memory traffic.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgan_kernels import triton_norm_resident as resident
from dgan_kernels import triton_norm_sweeps as sweeps
from dgan_kernels import triton_norm_sweeps_second as sweeps_second
from dgan_kernels.rank_mean import ranks_in, sum_over_ranks
from dgan_kernels.reference import ACTIVATIONS
from dgan_kernels.reference_norm_act import MaybeTensor, sums_shape
from dgan_kernels.triton_activations import OPTIONS

RESIDENT = 8192  # elements of a tile; the double backward pass spills registers from 16,384,
NARROW = 2  # bytes of an element at the most; in float32 from 8192 in several rows
WIDEST = 4096  # channels of a position; beyond it, sums for weight and bias spill too
TILE = 2048  # what a program takes where groups are smaller
SWEEP = 4096  # and where a group takes several programs,
SWEEP_ROWS = 256  # of so many rows at most: each has a dozen numbers of its own in registers,
ROWS = 32  # one to a thread
PROGRAMS = 512  # that sum over positions: enough to fill a GPU, few enough to add up cheaply
COMBINE = 1024  # chunks of a group that are combined at a time
ELEMENTS = 512  # of a tile to a warp, 16 to a thread


@dataclass(frozen=True)
class Tiles:
    """Tiles [rows, cols] over ``runs`` runs of ``positions`` rows of ``width`` elements."""

    rows: int
    cols: int
    runs: int
    positions: int
    width: int
    inner: int
    whole: bool = False

    def warps(self) -> int:
        """Return how many warps take a tile."""
        return min(32, max(1, self.rows * self.cols // ELEMENTS))

    def warps_summing(self) -> int:
        """Return the same where a program adds up sums; of more than 8, each has 128 registers."""
        return min(8, max(1, self.rows * self.cols * 2 // ELEMENTS))

    def programs(self, summing: bool) -> tuple[int, int]:
        """Return how many programs share a run, and how many tiles each takes."""
        total = _parts(self.positions, self.rows)
        if not summing:
            return total, 1
        tiles = _parts(total, max(1, min(total, PROGRAMS // self.runs)))
        return _parts(total, tiles), tiles


def resident_tiles(x: Tensor, over: str, affine: bool = True) -> Tiles | None:
    """Return the tiles that hold whole groups of x, or None where groups are too large."""
    n, g, d, s = x.shape
    if over == "channels":
        cols = _power(d)
        # Where rows interleave, 32 of them make a memory access of 64 bytes in 16 bits. A weight
        # and bias, with their sums, take registers too.
        rows = TILE // cols if s == 1 else min((SWEEP if affine else RESIDENT) // cols, 32)
        return Tiles(max(1, min(rows, _power(g * s))), cols, n, g * s, d, s)
    most = RESIDENT if d == 1 or x.element_size() <= NARROW else RESIDENT // 2
    if over == "batch" or _power(d) * _power(s) > most:
        return None
    if d > 1:
        return Tiles(_power(d), _power(s), n * g, d, s, 1, whole=True)
    return Tiles(max(1, min(TILE // _power(s), _power(n * g))), _power(s), 1, n * g, s, 1)


def _power(n: int) -> int:
    """Return the smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def _parts(n: int, size: int) -> int:
    """Return how many parts of ``size`` cover ``n``."""
    return -(-n // size)


def statistics(
    x: Tensor, over: str, centred: bool, act: str, eps: float, ranks: str | None
) -> Tensor:
    """Return [2, groups]: the mean and r of each group."""
    values = _values(x, None, None, None, over, centred, act, eps, ranks)
    partial = _sweep_sums(sweeps.statistics_kernel, 2, x, values)
    groups, per_group = values["groups"], partial[0].numel() // max(values["groups"], 1)
    stats = x.new_empty((2, groups), dtype=torch.float32)
    local = values["count"] / ranks_in(ranks)
    values |= {"stats_ptr": stats, "entries": per_group, "count": local, "BLOCK": COMBINE}
    _run(sweeps.combine_kernel, groups, 4, x, values)
    mean, variance = stats
    if ranks is not None:
        overall = sum_over_ranks(mean, ranks) / ranks_in(ranks)
        variance.add_((mean - overall).square_())
        variance.copy_(sum_over_ranks(variance, ranks) / ranks_in(ranks))
        mean.copy_(overall)
    variance.add_(eps).rsqrt_()
    return stats


def forward(
    x: Tensor, stats: MaybeTensor, weight: MaybeTensor, bias: MaybeTensor, *constants: Any
) -> Tensor:
    """Return y."""
    y = torch.empty_like(x)
    values = _values(x, stats, weight, bias, *constants) | {"y_ptr": y}
    if stats is None:
        _resident(resident.forward_kernel, x, values)
    else:
        _sweep(sweeps.forward_kernel, x, values)
    return y


def jvp(
    tx: Tensor, shift: MaybeTensor, x: Tensor, stats: MaybeTensor, weight: MaybeTensor,
    bias: MaybeTensor, *constants: Any,
) -> Tensor:  # fmt: skip
    """Return ẏ."""
    ty = torch.empty_like(x)
    values = _values(x, stats, weight, bias, *constants)
    values |= {"tx_ptr": tx.contiguous(), "ty_ptr": ty} | _shift(shift, x, values)
    if stats is None:
        _resident(resident.jvp_kernel, x, values)
    else:
        partial = _sweep_sums(sweeps.jvp_sums_kernel, 2, x, values)
        values["totals_ptr"] = _totals(partial, *constants)
        _sweep(sweeps.jvp_kernel, x, values)
    return ty


def backward(
    dy: Tensor,
    x: Tensor,
    stats: MaybeTensor,
    weight: MaybeTensor,
    bias: MaybeTensor,
    *constants: Any,
) -> tuple[Tensor, Tensor]:
    """Return dx and the sums [2, N, G, D] for weight and bias."""
    dx = torch.empty_like(x)
    values = _values(x, stats, weight, bias, *constants)
    values |= {"dy_ptr": dy.contiguous(), "dx_ptr": dx}
    if stats is None:
        return dx, _resident(resident.backward_kernel, x, values, summing=True)
    partial = _sweep_sums(sweeps.backward_sums_kernel, 2, x, values)
    sums = partial.sum(-1)  # ex̂ and e of each row; of a group, the weighted sum is that of q
    weighted = sums if weight is None else sums * weight.squeeze(-1)
    values["totals_ptr"] = _totals(weighted.unsqueeze(-1), *constants)
    _sweep(sweeps.backward_kernel, x, values)
    return dx, sums if _affine(values) else sums.new_empty(0)


def second(
    v: Tensor, shift: MaybeTensor, dy: Tensor, x: Tensor, stats: MaybeTensor, weight: MaybeTensor,
    bias: MaybeTensor, *constants: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return d_dy, d_x and the sums for weight and bias."""
    ddy, dx = torch.empty_like(x), torch.empty_like(x)
    values = _values(x, stats, weight, bias, *constants)
    values |= {"v_ptr": v.contiguous(), "dy_ptr": dy.contiguous(), "ddy_ptr": ddy, "dx_ptr": dx}
    values |= _shift(shift, x, values)
    if stats is None:
        return ddy, dx, _resident(resident.second_kernel, x, values, summing=True)
    count = sweeps_second.SUMS if values["CURVED"] else sweeps_second.SUMS_STRAIGHT
    partial = _sweep_sums(sweeps_second.second_sums_kernel, count, x, values)
    values["totals_ptr"] = _totals(partial, *constants)
    partial = _sweep_sums(sweeps_second.second_kernel, 2, x, values)
    return ddy, dx, partial.sum(-1) if _affine(values) else partial.new_empty(0)


def _values(
    x: Tensor, stats: MaybeTensor, weight: MaybeTensor, bias: MaybeTensor,
    over: str, centred: bool, act: str, eps: float, ranks: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Return what kernels take, by the names of their arguments."""
    n, g, d, s = x.shape
    groups = {"group": n * g, "channels": n * g * s, "batch": d}[over]
    count = {"group": d * s, "channels": d, "batch": n * s * ranks_in(ranks)}[over]
    values = {
        "x_ptr": x, "stats_ptr": stats, "R": n * g * d, "S": s, "D": d, "groups": groups,
        "C": d if over == "channels" else g * d, "count": float(count), "eps": eps, "ACT": act,
        "CURVED": ACTIVATIONS[act].second is not None, "CENTRED": centred,
        "ACROSS": over == "channels", "BATCH": over == "batch",
        "HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None,
    }  # fmt: skip
    for name, vector in (("w", weight), ("b", bias)):
        flat = None if vector is None else vector.flatten(1)  # [N, C]
        values[f"{name}_ptr"] = x if flat is None else flat
        values[f"{name}_n"], values[f"{name}_c"] = (0, 0) if flat is None else flat.stride()
    return values


def _affine(values: dict[str, Any]) -> bool:
    return values["HAS_WEIGHT"] or values["HAS_BIAS"]


def _shift(shift: MaybeTensor, x: Tensor, values: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of tangents or cotangents [2, N, G, D] that go with weight and bias."""
    if not _affine(values):
        return {"shift_ptr": x, "shift_size": 0}
    over = "channels" if values["ACROSS"] else ""
    if shift is None:
        shift = x.new_zeros(sums_shape(x, over, True), dtype=torch.float32)
    return {"shift_ptr": shift.contiguous(), "shift_size": shift[0].numel()}


def _resident(kernel: Any, x: Tensor, values: dict[str, Any], summing: bool = False) -> Tensor:
    """Run a kernel that holds groups on the chip; return its sums for weight and bias."""
    across, affine = values["ACROSS"], _affine(values)
    over = "channels" if across else "group"
    shape = sums_shape(x, over, summing and affine)
    if x.numel() == 0:
        return x.new_zeros(shape, dtype=torch.float32)
    tiles = resident_tiles(x, over, affine)
    assert tiles is not None, "groups too large for the chip need statistics"
    adds = across and summing and affine
    chunks, per_program = tiles.programs(adds)
    wanted = (2, tiles.runs, chunks, tiles.width) if adds else shape
    sums = x.new_empty(wanted, dtype=torch.float32)
    values |= {
        "positions": tiles.positions, "chunks": chunks, "tiles": per_program, "cols": tiles.width,
        "inner": tiles.inner, "WHOLE": tiles.whole, "ROWS": tiles.rows, "COLS": tiles.cols,
        "sums_ptr": sums, "size": sums.numel() // 2,
    }  # fmt: skip
    warps = tiles.warps_summing() if adds else tiles.warps()
    _run(kernel, tiles.runs * chunks, warps, x, values)
    return sums.sum(2).view(shape) if adds else sums


def _sweep_shape(x: Tensor) -> tuple[int, int, int, int]:
    """Return the rows and columns of a tile, and how many of each cover x."""
    n, g, d, s = x.shape
    cols = min(_power(s), SWEEP)
    rows = min(SWEEP // cols, SWEEP_ROWS, _power(n * g * d))
    return rows, cols, _parts(n * g * d, rows), _parts(s, cols)


def _sweep(kernel: Any, x: Tensor, values: dict[str, Any]) -> None:
    """Run one sweep over x."""
    rows, cols, blocks, chunks = _sweep_shape(x)
    values |= {"chunks": chunks, "ROWS": rows, "COLS": cols}
    _run(kernel, blocks * chunks, max(1, rows * cols // ELEMENTS, rows // ROWS), x, values)


def _sweep_sums(kernel: Any, count: int, x: Tensor, values: dict[str, Any]) -> Tensor:
    """Run one sweep that writes ``count`` sums for each chunk of each row: [count, N, G, D, K]."""
    chunks = _sweep_shape(x)[-1]
    partial = x.new_empty((count, *x.shape[:3], chunks), dtype=torch.float32)
    values |= {"sums_ptr": partial, "size": partial.numel() // count}
    _sweep(kernel, x, values)
    return partial


def _totals(
    partial: Tensor, over: str, centred: bool, act: str, eps: float, ranks: str | None
) -> Tensor:
    """Return [sums, groups]: sums [sums, N, G, D, K] added up over each group, and over ranks."""
    return sum_over_ranks(partial.sum((1, -1) if over == "batch" else (-2, -1)), ranks)


def _run(kernel: Any, programs: int, warps: int, x: Tensor, values: dict[str, Any]) -> None:
    if x.numel() == 0:
        return
    arguments = {name: values[name] for name in kernel.arg_names}
    with torch.cuda.device_of(x):
        kernel[(programs,)](**arguments, num_warps=warps, **OPTIONS)
