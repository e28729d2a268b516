"""JPEGs through simplejpeg are what Pillow makes of them: pixels, errors and all."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from shard_helpers import write_tar

from dgan.data import ShardDataset, ShardStream, decode, jpeg
from dgan.data.decode import DecodeError
from dgan.data.images import View, decode_image
from dgan.data.mixture import order_of
from dgan.data.order import flips

simplejpeg = pytest.importorskip("simplejpeg", reason="the fast decoder is not installed")


def photograph(height: int, width: int) -> Image.Image:
    """Smooth colours with an edge and some noise: something to upsample and to round."""
    y, x = np.mgrid[:height, :width]
    levels = np.stack([5 * x + y, 3 * y, 255 - 2 * x - 2 * y], axis=-1) % 256
    levels[y > x] //= 2
    noise = np.random.default_rng(0).integers(0, 20, levels.shape)
    return Image.fromarray((levels + noise).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 85, **options})
    return buffer.getvalue()


def by_pillow(data: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def outcome(data: bytes, size: tuple[int, int] = (48, 40)) -> tuple[str, bytes]:
    """The reason of an error, or the pixels."""
    row = np.empty((*size, 3), np.uint8)
    try:
        decode_image(data, row, key="k")
    except DecodeError as error:
        return error.reason, b""
    return "", row.tobytes()


@pytest.mark.parametrize("size", [(48, 40), (17, 31), (8, 1), (1, 7)])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"subsampling": 2, "progressive": True},
        {"restart_marker_blocks": 1},
        {"keep_rgb": True, "quality": 95},
    ],
)
def test_pixels_are_pillows(size, mirror, options):
    data = encode(photograph(*size), **options)
    row = np.empty((*size, 3), np.uint8)
    assert jpeg.decode_jpeg(data, row, mirror=mirror)
    assert (row == by_pillow(data)[:, :: -1 if mirror else 1]).all()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_files_are_pillows_too(mirror, channels):
    data = encode(photograph(24, 20).convert("L"))
    row = np.empty((24, 20, channels), np.uint8)
    assert jpeg.decode_jpeg(data, row, mirror=mirror)
    mode = "L" if channels == 1 else "RGB"
    expected = by_pillow(data, mode).reshape(24, 20, channels)
    assert (row == expected[:, :: -1 if mirror else 1]).all()


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (photograph(24, 20).convert("CMYK"), 3),  # its conversion differs by a level
        (photograph(24, 20), 1),  # and so do Y and Pillow's grey
    ],
)
def test_what_would_differ_is_left_to_pillow(image, channels):
    data, row = encode(image), np.empty((24, 20, channels), np.uint8)
    assert not jpeg.decode_jpeg(data, row)
    assert jpeg.open_jpeg(data, channels, 1 << 20) is None
    decode_image(data, row, key="k", view=View(mirror=True))
    mode = "L" if channels == 1 else "RGB"
    assert (row == by_pillow(data, mode).reshape(row.shape)[:, ::-1]).all()


def test_another_size_is_not_decoded():
    data = encode(photograph(24, 20))
    for size in ((20, 24), (24, 21), (12, 40), (10, 10)):
        assert not jpeg.decode_jpeg(data, np.empty((*size, 3), np.uint8))


@pytest.mark.parametrize("size", [(64, 16), (16, 64), (16, 16), (32, 8)])
def test_another_form_of_as_many_bytes_or_fewer_is_not_taken_for_the_row(size):
    assert not jpeg.decode_jpeg(encode(photograph(*size)), np.empty((32, 32, 3), np.uint8))


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_is_judged_by_pillow_alone(monkeypatch, progressive):
    """Cut off, with flipped bits, zeroed, or followed by something else: the same either way."""
    data = encode(photograph(48, 40), progressive=progressive)
    random = np.random.default_rng(1)
    damaged = [data[:n] for n in random.integers(0, len(data), 60)] + [data[:-1], data[:-2], b""]
    for _ in range(150):
        bits = bytearray(data)
        bits[random.integers(len(bits))] ^= 1 << random.integers(8)
        damaged.append(bytes(bits))
    for begin in random.integers(0, len(data), 30):
        damaged.append(data[:begin] + bytes(20) + data[begin + 20 :])
    damaged += [data + b"more", data + bytes(100), data[:-2] + bytes(100)]
    sizes = [(48, 40)] * len(damaged)
    fast = []
    for found, size in zip(damaged, sizes):
        try:
            fast.append(outcome(found, size))
        except ValueError as error:  # a flipped bit of the size
            fast.append(type(error))
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    slow = []
    for found, size in zip(damaged, sizes):
        try:
            slow.append(outcome(found, size))
        except ValueError as error:
            slow.append(type(error))
    assert fast == slow
    assert ("corrupt", b"") in slow
    assert len(set(slow)) > 10  # some decode to something else, as they do in Pillow


def test_a_claim_of_too_many_pixels_is_refused_before_they_are_decoded():
    data = bytearray(encode(photograph(24, 20)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    row = np.empty((24, 20, 3), np.uint8)
    for crop in ("none", "centre"):
        with pytest.raises(DecodeError) as error:
            decode_image(bytes(data), row, key="k", crop=crop)
        assert error.value.reason == "too many pixels"


def test_the_limit_holds_for_what_is_cropped(monkeypatch):
    data = encode(photograph(24, 20))
    monkeypatch.setattr(decode, "MAX_PIXELS", 24 * 20 - 1)
    with pytest.raises(DecodeError, match="more than the limit"):
        decode_image(data, np.empty((8, 8, 3), np.uint8), key="k", crop="centre")


def test_pictures_that_are_decoded_together_are_those_that_are_decoded_alone(tmp_path):
    """JPEGs, a PNG, one that is cut off and one that is no picture, mirrored and not."""
    pictures = [photograph(24, 20).rotate(10 * i) for i in range(8)]
    members = [(f"{i}.jpg", encode(picture)) for i, picture in enumerate(pictures)]
    drawn = io.BytesIO()
    pictures[2].save(drawn, "PNG")
    members[2:5] = [("2.png", drawn.getvalue()), ("3.jpg", members[3][1][:300]), ("4.jpg", b"x")]
    labels = [(f"{i}.cls", str(i).encode()) for i in range(8)]
    members = [member for both in zip(members, labels) for member in both]
    shard = write_tar(tmp_path / "x.tar", members)
    alone = ShardDataset(shard, labels=True)
    with ShardStream(shard, batch_size=8, flip=True, workers=2, max_skipped=1.0) as stream:
        order = order_of(stream.dataset, (), 0)
        for position in range(0, 40, 8):
            batch = next(stream)
            mirrored = flips(0, np.arange(position, position + 8))
            for row, i in enumerate(order.take(position, 8).tolist()):
                if i in (3, 4):  # another one stands in for it
                    assert batch["__key__"][row] not in ("3", "4")
                    continue
                want = alone[i]["image"].flip(2) if mirrored[row] else alone[i]["image"]
                assert torch.equal(batch["image"][row], want)
                assert (batch["__key__"][row], batch["label"][row]) == (str(i), i)
    assert stream.skipped.total() >= 10  # two in each of five epochs


_STREAM = """
import hashlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "simplejpeg" and {blocked}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from dgan.data import ShardStream, jpeg
assert (jpeg.simplejpeg is None) == {blocked}
with ShardStream({shard!r}, batch_size=8, flip=True, **{options}) as stream:
    print(hashlib.sha256(next(stream)["image"].contiguous().numpy().tobytes()).hexdigest())
"""


@pytest.mark.parametrize("options", [{}, {"resolution": 16, "crop": "random"}])
def test_without_the_fast_decoder_a_stream_shows_the_same(tmp_path, options):
    pictures = [encode(photograph(24, 24).rotate(40 * i)) for i in range(8)]
    shard = write_tar(tmp_path / "x.tar", [(f"{i}.jpg", data) for i, data in enumerate(pictures)])
    shown = []
    for blocked in (True, False):
        code = _STREAM.format(blocked=blocked, shard=str(shard), options=options)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout)
    assert shown[0] == shown[1] != ""
