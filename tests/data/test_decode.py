import io
import pickle

import numpy as np
import pytest
from PIL import Image
from shard_helpers import png

from dgan.data import decode
from dgan.data.decode import DecodeError, decode_field, decode_label, open_image
from dgan.data.images import decode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes, height: int, width: int, channels: int) -> np.ndarray:
    row = np.empty((height, width, channels), np.uint8)
    decode_image(data, row, key="k")
    return row


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_images_come_back_as_they_were(format, options):
    data = encode(Image.fromarray(PIXELS), format, **options)
    assert (decoded(data, 6, 5, 3) == PIXELS).all()


def test_jpeg_and_conversions():
    grey = Image.fromarray(np.full((6, 5), 77, np.uint8))
    assert (decoded(encode(grey, "JPEG"), 6, 5, 3) == 77).all()
    data = encode(Image.fromarray(PIXELS), "JPEG")
    assert (decoded(data, 6, 5, 1)[..., 0] == Image.open(io.BytesIO(data)).convert("L")).all()
    transparent = Image.fromarray(np.dstack([PIXELS, np.zeros((6, 5), np.uint8)]))
    assert (decoded(encode(transparent, "PNG"), 6, 5, 3) == PIXELS).all()


def test_16_bit_grey_keeps_its_upper_byte():
    deep = Image.fromarray(np.full((4, 4), 0x1234, np.uint16))
    assert (decoded(encode(deep, "PNG"), 4, 4, 1) == 0x12).all()


@pytest.mark.parametrize("data", [b"", b"x", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(50)])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(DecodeError, match="not a readable"):
        decoded(data, 4, 4, 1)


def test_a_truncated_image_is_refused():
    data = encode(Image.fromarray(PIXELS), "PNG")
    with pytest.raises(DecodeError):
        decoded(data[:-40], 6, 5, 3)


def test_a_decompression_bomb_is_refused_before_its_pixels_are(monkeypatch):
    data = png(np.zeros((20, 20)))
    monkeypatch.setattr(decode, "MAX_PIXELS", 399)
    with pytest.raises(DecodeError, match="more than the limit") as error:
        open_image(data)
    assert error.value.reason == "too many pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="bomb"):
        open_image(data)


def test_labels_are_numbers_and_nothing_else():
    assert decode_label(b"12\n") == 12
    for bad in (b"cat", b"", b"-1", b"1.5", b"99999999999"):
        with pytest.raises(DecodeError):
            decode_label(bad)


def test_other_fields():
    array = io.BytesIO()
    np.save(array, np.arange(4))
    assert decode_field("npy", array.getvalue()).tolist() == [0, 1, 2, 3]
    assert decode_field("txt", "γ".encode()) == "γ"
    assert decode_field("meta.json", b'{"a": 1}') == {"a": 1}
    for field, data in (("json", b"{"), ("txt", b"\xff"), ("npy", b"no")):
        with pytest.raises(DecodeError):
            decode_field(field, data)


def npy(header: str, data: bytes = bytes(64), version: bytes = b"\1\0") -> bytes:
    text = header.encode("latin1")
    size = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + text + data


@pytest.mark.parametrize("descr", ["<f8", "|u1", "|V0", "|O"])
@pytest.mark.parametrize(
    "shape", ["(10**12,)", "(2**62, 2**62)", f"({10**30},)", "(-(10**6), -(10**6))", "(-1,)"]
)
@pytest.mark.parametrize("version", [b"\1\0", b"\2\0"])
def test_an_array_is_bounded_by_its_bytes_before_memory_is_taken(descr, shape, version):
    shape = str(eval(shape))
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n"
    with pytest.raises(DecodeError):
        decode_field("npy", npy(header, version=version))


def test_headers_of_arrays_that_are_none():
    for header in ("-" * 9000 + "1", "[" * 3000, "{}", "x" * 20_000, "{'shape': 1}"):
        with pytest.raises(DecodeError):
            decode_field("npy", npy(header))
    empty = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**30}, 0)}}\n"
    with pytest.raises(DecodeError):
        decode_field("npy", npy(empty))
    with pytest.raises(DecodeError, match="version"):
        decode_field("npy", npy("{}", version=b"\3\0"))
    archive = io.BytesIO()
    np.savez(archive, a=np.arange(3))
    with pytest.raises(DecodeError):
        decode_field("npy", archive.getvalue())


def test_arrays_of_every_shape():
    for array in (np.float32(3.0), np.zeros((0, 4)), np.asfortranarray(np.ones((2, 3), ">i2"))):
        file = io.BytesIO()
        np.save(file, array)
        found = decode_field("npy", file.getvalue())
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)


def test_pickles_are_never_read(tmp_path):
    canary = tmp_path / "canary"
    objects = io.BytesIO()
    np.save(objects, np.array([Touch(str(canary))], object), allow_pickle=True)
    with pytest.raises(DecodeError):
        decode_field("npy", objects.getvalue())
    for field in ("pyd", "pickle", "pkl", "pth"):
        with pytest.raises(ValueError, match="no decoder"):
            decode_field(field, pickle.dumps(Touch(str(canary))))
    assert not canary.exists()


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")
