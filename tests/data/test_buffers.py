"""Memory is used again, but never while anybody can see it."""

import gc
from itertools import islice

import numpy as np
import pytest
import torch

from dgan.data import ShardStream
from dgan.data.buffers import Buffers

SHAPE = (4, 32, 32, 3)


def test_memory_is_used_again_once_its_tensor_is_gone():
    buffers = Buffers(keep=2)
    first = buffers.take(SHAPE)
    address = first.data_ptr()
    assert buffers.take(SHAPE).data_ptr() != address  # and gone at once
    del first
    assert address in {tensor.data_ptr() for tensor in (buffers.take(SHAPE), buffers.take(SHAPE))}


@pytest.mark.parametrize(
    "refer",
    [
        lambda tensor: tensor[1:2, 3],
        lambda tensor: tensor.permute(0, 3, 1, 2),
        lambda tensor: tensor.numpy()[2][::-1],
        lambda tensor: tensor.detach().numpy().reshape(-1)[5:],
        lambda tensor: torch.from_numpy(tensor.numpy())[0],
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: {"image": [tensor.view(-1)]},
    ],
)
def test_whatever_refers_to_the_memory_keeps_it(refer):
    buffers = Buffers(keep=8)
    tensor = buffers.take(SHAPE)
    address = tensor.data_ptr()
    held = refer(tensor)
    del tensor
    gc.collect()
    others = [buffers.take(SHAPE) for _ in range(4)]
    assert address not in [other.data_ptr() for other in others]
    del held
    assert buffers.take(SHAPE).data_ptr() == address


def test_no_more_is_kept_than_asked_for():
    buffers = Buffers(keep=3)
    many = [buffers.take(SHAPE) for _ in range(10)]
    del many
    assert [len(free) for free in buffers._free.values()] == [3]
    none = Buffers()
    none.take(SHAPE)
    assert [len(free) for free in none._free.values()] == [0]


def test_other_shapes_are_other_memory():
    buffers = Buffers(keep=2)
    buffers.take(SHAPE)
    assert buffers.take((1, 8, 8, 1)).shape == (1, 8, 8, 1)
    assert buffers.take(SHAPE).shape == SHAPE


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_held_stay_as_they_were(shards, workers):
    with ShardStream(shards, batch_size=10, workers=workers) as stream:
        held, copies = [], []
        for batch in islice(stream, 40):
            held.append(batch["image"][3:7])
            copies.append(held[-1].clone())
        assert all(torch.equal(a, b) for a, b in zip(held, copies))


def test_batches_that_are_let_go_share_a_few_buffers(shards):
    with ShardStream(shards, batch_size=10, workers=2, prefetch=2) as stream:
        addresses = set()
        for _ in range(60):
            addresses.add(next(stream)["image"].data_ptr())
    assert len(addresses) <= 5  # three on their way, one handed out, one just let go


def test_a_stream_that_is_put_back_does_not_write_into_what_it_handed_out(shards):
    with ShardStream(shards, batch_size=10, workers=2) as stream:
        state = stream.state_dict()
        first = next(stream)
        copy = first["image"].clone()
        for _ in range(5):
            stream.load_state_dict(state)
            again = next(stream)["image"]
            assert torch.equal(again, copy)
        assert torch.equal(first["image"], copy)


def test_images_are_channels_last_in_memory(tmp_path, shards):
    with ShardStream(shards, batch_size=10, channels=3, resolution=8) as stream:
        image = next(stream)["image"]
    assert image.shape == (10, 3, 8, 8)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert (image == torch.from_numpy(np.ascontiguousarray(image.numpy()))).all()


def test_devices_that_there_are_not(shards):
    with pytest.raises(ValueError, match="not to meta"):
        ShardStream(shards, batch_size=10, device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="not to cuda"):
            ShardStream(shards, batch_size=10, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_the_gpu_as_they_are(shards, workers):
    with (
        ShardStream(shards, batch_size=10, workers=workers, device="cuda") as stream,
        ShardStream(shards, batch_size=10, workers=0) as expected,
    ):
        state = stream.state_dict()
        for step in range(30):
            batch, other = next(stream), next(expected)
            assert batch["image"].device.type == batch["label"].device.type == "cuda"
            assert batch["__key__"] == other["__key__"]
            assert stream.position == 10 * (step + 1)  # the one copied ahead is not counted
            assert torch.equal(batch["image"].cpu(), other["image"])
            assert torch.equal(batch["label"].cpu(), other["label"])
        stream.load_state_dict(state)
        first = next(stream)["__key__"]
    with ShardStream(shards, batch_size=10, workers=0) as expected:
        assert first == next(expected)["__key__"]
