"""Audio files as shards hold them: what a WAV or FLAC says of itself, and its samples."""

from __future__ import annotations

import io
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import DecodeError

AUDIO_EXTENSIONS = ("wav", "flac")
MAX_SAMPLES = 1 << 27  # over all channels: 512 MiB as float32, 46 minutes of mono at 48 kHz
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


class Waveform(NamedTuple):
    """Decoded audio.

    Attributes:
        samples: float32 `[channels, frames]`; whole numbers of n bits are divided by 2ⁿ⁻¹, so that
            they lie in [−1, 1).
        rate: frames a second.
    """

    samples: NDArray[np.float32]
    rate: int


def decode_wav(data: bytes) -> Waveform:
    """The samples of a WAV: PCM of 8, 16, 24 or 32 bits, or floating point of 32 or 64.

    Raises:
        DecodeError: if it is none of these, is cut off, or has more than `MAX_SAMPLES` samples.
    """
    return _decode("wav", data)


def decode_flac(data: bytes) -> Waveform:
    """The samples of a FLAC; its frames' checksums are compared.

    Raises:
        DecodeError: if it is none, is damaged, or has more than `MAX_SAMPLES` samples.
    """
    return _decode("flac", data)


def require_soundfile() -> Any:
    """The package that decodes audio; `ValueError` if it is not installed."""
    try:
        import soundfile
    except (ImportError, OSError):  # the latter if libsndfile itself is missing
        raise ValueError(".wav and .flac need soundfile: pip install 'dgan[audio]'") from None
    return soundfile


def has_soundfile() -> bool:
    """Whether audio can be decoded here."""
    try:
        return bool(require_soundfile())
    except ValueError:
        return False


def _decode(extension: str, data: bytes) -> Waveform:
    soundfile = require_soundfile()
    audio = read_audio(extension, data)
    if not audio.frames:
        raise DecodeError(f"the {extension.upper()} has no samples, or does not say how many")
    if audio.frames * audio.channels > MAX_SAMPLES:
        raise DecodeError(
            f"{audio.channels} × {audio.frames:,} samples are more than the limit of "
            f"{MAX_SAMPLES:,}",
            "too many samples",
        )
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples = file.read(audio.frames, dtype="float32", always_2d=True)
            found = file.samplerate, file.channels, len(samples)
    except soundfile.SoundFileError as error:
        raise DecodeError(f"the {extension.upper()} does not decode ({error})") from error
    if found != (audio.rate, audio.channels, audio.frames):
        raise DecodeError(f"the {extension.upper()} claims {audio.frames:,} frames of {audio}")
    return Waveform(np.ascontiguousarray(samples.T), audio.rate)


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
