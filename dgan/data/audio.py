"""Audio files as shards hold them: what a WAV or FLAC says of itself, and whether it is whole."""

from __future__ import annotations

import struct
from typing import NamedTuple

from .decode import DecodeError

AUDIO_EXTENSIONS = ("wav", "flac")
_WAV_CODES = {1: "integer", 3: "float", 0xFFFE: "extensible"}


class Audio(NamedTuple):
    """What the header of an audio file says."""

    rate: int
    channels: int
    bits: int
    frames: int

    def __str__(self) -> str:
        return (
            f"{self.rate} Hz, {self.channels} channel{'s' * (self.channels != 1)}, {self.bits} bit"
        )


def read_audio(extension: str, data: bytes) -> Audio:
    """The header of a `wav` or `flac`, after checking that a WAV's samples are all there.

    Raises:
        DecodeError: if it is no such file, is cut off, or its header makes no sense.
    """
    try:
        audio = _read_wav(data) if extension == "wav" else _read_flac(data)
    except struct.error as error:
        raise DecodeError(f"the {extension.upper()} is cut off in its header") from error
    if not (audio.rate and audio.channels and audio.bits):
        raise DecodeError(f"the {extension.upper()} claims {audio}")
    return audio


def _read_wav(data: bytes) -> Audio:
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise DecodeError("it is no WAV: it does not begin with RIFF … WAVE")
    position, form = 12, None
    while position < len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"fmt ":
            code, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", data, position)
            if code not in _WAV_CODES or block == 0:
                raise DecodeError(f"its WAV encoding {code} is not PCM")
            form = channels, rate, block, bits
        elif name == b"data":
            if form is None:
                raise DecodeError("its samples come before the WAV's format")
            if position + size > len(data):
                raise DecodeError(f"it is cut off: {position + size - len(data):,} bytes missing")
            channels, rate, block, bits = form
            return Audio(rate, channels, bits, size // block)
        position += size + size % 2  # chunks begin at even bytes
    raise DecodeError("the WAV holds no samples")


def _read_flac(data: bytes) -> Audio:
    if data[:4] != b"fLaC" or data[4] & 0x7F != 0:
        raise DecodeError("it is no FLAC: it does not begin with fLaC and its stream's description")
    (packed,) = struct.unpack_from(">Q", data, 18)
    # 20 bits of rate, 3 of channels, 5 of bits, 36 of length, as the format has them.
    audio = Audio(packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1, packed & 2**36 - 1)
    if len(data) <= 42:
        raise DecodeError("the FLAC holds no samples")
    return audio
