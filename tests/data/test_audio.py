"""WAV and FLAC become float32 [channels, frames], whatever they are made of."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from shard_helpers import write_tar

from dgan.data import ShardDataset, ShardStream, audio
from dgan.data.decode import DecodeError, decode_field

soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")

RANDOM = np.random.default_rng(0)
EXTENSIBLE = bytes.fromhex("000000001000800000aa00389b71")  # the rest of the GUID of a subformat


def wav(samples: np.ndarray, code: int, bits: int, rate: int = 16_000, extensible=False) -> bytes:
    """A WAV from `[frames, channels]` of the type that is stored; 24 bits come as int32."""
    channels, width = samples.shape[1], bits // 8
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    if bits == 24:
        data = samples.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    form = struct.pack(
        "<HHIIHH", 0xFFFE if extensible else code, channels, rate, rate * channels * width,
        channels * width, bits,
    )  # fmt: skip
    if extensible:
        form += struct.pack("<HHIH", 22, bits, 0, code) + EXTENSIBLE
    chunks = b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"LIST" + struct.pack("<I", 3) + b"abc\0"  # an odd chunk that nobody asked for
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


CASES = {
    "8 bit": (RANDOM.integers(0, 256, (50, 2)).astype(np.uint8), 1, 8),
    "16 bit": (RANDOM.integers(-(2**15), 2**15, (50, 2)).astype(np.int16), 1, 16),
    "24 bit": (RANDOM.integers(-(2**23), 2**23, (50, 1)).astype(np.int32), 1, 24),
    "32 bit": (RANDOM.integers(-(2**31), 2**31, (50, 3)).astype(np.int32), 1, 32),
    "float": (RANDOM.normal(size=(50, 2)).astype(np.float32), 3, 32),
    "double": (RANDOM.normal(size=(50, 2)), 3, 64),
}


def expected(samples: np.ndarray, code: int, bits: int) -> np.ndarray:
    values = samples.astype(np.float64)
    if code == 1:
        values = (values - 128) / 128 if bits == 8 else values / 2.0 ** (bits - 1)
    return values.astype(np.float32).T


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("extensible", [False, True])
def test_every_kind_of_wav(name, extensible):
    samples, code, bits = CASES[name]
    found = decode_field("wav", wav(samples, code, bits, rate=22_050, extensible=extensible))
    assert found.rate == 22_050
    assert found.samples.dtype == np.float32
    assert found.samples.flags.c_contiguous
    assert found.samples.shape == samples.T.shape
    np.testing.assert_allclose(found.samples, expected(samples, code, bits), rtol=2e-7, atol=0)


def flac(samples: np.ndarray, rate: int = 8_000, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype=subtype)
    return buffer.getvalue()


def test_flac():
    samples = RANDOM.integers(-(2**15), 2**15, (5000, 2)).astype(np.int16)
    found = decode_field("mix.flac", flac(samples))
    assert found.rate == 8_000
    assert (found.samples == samples.T.astype(np.float64) / 2**15).all()


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_damage_is_an_error(extension):
    samples, code, bits = CASES["16 bit"]
    data = wav(samples, code, bits) if extension == "wav" else flac(np.tile(samples, (40, 1)))
    for cut in (1, 2, 60, len(data) // 2, len(data) - 30, len(data) - 3, len(data)):
        with pytest.raises(DecodeError):
            decode_field(extension, data[: len(data) - cut])
    with pytest.raises(DecodeError):
        decode_field(extension, b"no audio at all, but long enough for a header of some kind")
    if extension == "flac":  # its frames carry checksums
        with pytest.raises(DecodeError, match="does not decode"):
            decode_field("flac", data[:2000] + bytes([data[2000] ^ 8]) + data[2001:])


def test_a_claim_of_endless_audio_is_refused_before_memory_is_taken(monkeypatch):
    data = bytearray(flac(RANDOM.integers(-9, 9, (3000, 1)).astype(np.int16)))
    (packed,) = struct.unpack_from(">Q", data, 18)
    for frames, reason in ((2**36 - 1, "too many samples"), (4000, "corrupt"), (0, "corrupt")):
        struct.pack_into(">Q", data, 18, packed >> 36 << 36 | frames)
        with pytest.raises(DecodeError) as error:
            decode_field("flac", bytes(data))
        assert error.value.reason == reason
    monkeypatch.setattr(audio, "MAX_SAMPLES", 99)
    with pytest.raises(DecodeError, match="more than the limit of 99"):
        decode_field("wav", wav(*CASES["16 bit"]))


def test_audio_is_streamed(tmp_path):
    members, sounds = [], {}
    for i in range(6):
        sounds[str(i)] = RANDOM.integers(-(2**15), 2**15, (10 + i, 1)).astype(np.int16)
        members.append((f"{i}.wav", wav(sounds[str(i)], 1, 16)))
    shard = write_tar(tmp_path / "x.tar", members)
    with ShardStream(shard, batch_size=6, fields=("wav",)) as stream:
        batch = next(stream)
    for key, found in zip(batch["__key__"], batch["wav"], strict=True):
        assert found.rate == 16_000
        assert (found.samples == sounds[key].T / np.float32(2**15)).all()
    assert ShardDataset(shard, fields=("wav",))[2]["wav"].samples.shape == (1, 12)


def test_a_missing_package_is_named_when_the_shards_are_opened(tmp_path):
    shard = write_tar(tmp_path / "x.tar", [("0.wav", wav(*CASES["16 bit"]))])
    code = (
        "import sys; sys.modules['soundfile'] = None\n"
        "from dgan.data import ShardStream\n"
        f"ShardStream({str(shard)!r}, batch_size=1, fields=('wav',))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ValueError: .wav and .flac need soundfile: pip install 'dgan[audio]'" in done.stderr
    with pytest.raises(ValueError, match=r"no decoder for field 'mp3'; known.*wav, flac"):
        ShardDataset(shard, fields=("mp3",))
