"""Flat ranges of tensors in checkpoints of whole shapes."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from dgan.parallel.pieces import LoadPlanner, Piece, SavePlanner, boxes
from dgan.parallel.staging import Staging

SHAPES = [(), (1,), (5,), (3, 4), (4, 1, 3), (2, 3, 4), (3, 2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_the_range_in_order(shape: tuple[int, ...]) -> None:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    for start, stop in itertools.combinations_with_replacement(range(numbers.size + 1), 2):
        found = list(boxes(shape, start, stop))
        inside = [
            numbers[tuple(slice(o, o + s) for o, s in zip(offsets, sizes))].ravel()
            for offsets, sizes in found
        ]
        assert [*itertools.chain(*inside)] == list(range(start, stop))
        assert len(found) <= max(1, 2 * len(shape) - 1)


def test_a_checkpoint_of_pieces_is_one_of_whole_tensors(tmp_path: Path) -> None:
    """Written whole and read as pieces; written as a piece and read whole."""
    whole = torch.randn(3, 4, 5)
    dcp.save({"w": whole}, checkpoint_id=tmp_path / "whole", no_dist=True)
    for start, stop in ((0, 60), (7, 7), (3, 58), (21, 24), (20, 40)):
        values = torch.zeros(stop - start)
        read = {"w": Piece(whole.shape, start, values)}
        dcp.load(read, checkpoint_id=tmp_path / "whole", planner=LoadPlanner(), no_dist=True)
        assert torch.equal(values, whole.flatten()[start:stop])
    piece = {"w": Piece(whole.shape, 0, whole.flatten().clone()), "other": torch.ones(2)}
    folder = tmp_path / "pieces"
    dcp.save(piece, checkpoint_id=folder, planner=SavePlanner(), no_dist=True)
    found = {"w": torch.zeros(3, 4, 5), "other": torch.zeros(2)}
    dcp.load(found, checkpoint_id=folder, no_dist=True)
    assert torch.equal(found["w"], whole)
    assert torch.equal(found["other"], torch.ones(2))


def test_a_staged_piece_stays_as_it_was() -> None:
    values, staging = torch.arange(4.0), Staging()
    staged = staging.copy({"w": Piece((2, 3), 1, values)})["w"]
    values.zero_()
    assert staged.values.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert staged.start == 1
    # The next copy lies where this one did.
    again = staging.copy({"w": Piece((2, 3), 1, values)})["w"]
    assert again.values.data_ptr() == staged.values.data_ptr()
    assert again.values.tolist() == [0.0, 0.0, 0.0, 0.0]
