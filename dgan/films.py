"""What a person sees of clips: a sheet of frames, and a film in which all of them move."""

from pathlib import Path

from PIL import Image
from torch import Tensor, nn

from dgan.evaluation import to_uint8
from dgan.laboratory.picture import save_animation
from dgan.pictures import Images, Sheet
from dgan.run import arranged, save_grid

FRAME_S = 0.1
"""How long a frame is seen."""


class Films(Images):
    """Clips, a row of frames each; and side by side in a GIF, of conditional ones a row a class.

    Args: as `dgan.pictures.Images`.
    """

    def of_samples(self, generator: nn.Module, judge: nn.Module) -> Sheet:
        """See `Pictures`."""
        with self.world.autocast():
            return shown(to_uint8(generator(self.latents, self.labels)), self.columns)

    def of_reals(self) -> Sheet:
        """The first clips of the shards; `ValueError` if none decodes."""
        return shown(self._reals(), self.columns)


def shown(clips: Tensor, columns: int) -> Sheet:
    """Clips uint8 `[K, C, T, H, W]` as a sheet, a row each, and a GIF of `columns` side by side."""
    frames, length = _rows(clips)
    return Sheet(frames, length, lambda path: save_film(clips, path.with_suffix(".gif"), columns))


def save_film(clips: Tensor, path: Path, columns: int) -> None:
    """Write a GIF without end of clips uint8 `[K, C, T, H, W]`, `columns` of them side by side."""
    frames = [Image.fromarray(arranged(frame, columns)) for frame in clips.unbind(2)]
    save_animation(frames, path, seconds=FRAME_S * len(frames), rest=0)


def save_films(clips: Tensor, out: Path, columns: int) -> None:
    """Write clips uint8 `[K, C, T, H, W]` as a GIF or, if `out` is named so, the PNG of a sheet.

    Raises:
        ValueError: `out` has another ending.
    """
    if out.suffix == ".gif":
        save_film(clips, out, columns)
    elif out.suffix == ".png":
        frames, length = _rows(clips)
        save_grid(frames, out, length)
    else:
        raise ValueError(f"--out is {out}; clips are a GIF, or the PNG of a sheet: name it so")


def _rows(clips: Tensor) -> tuple[Tensor, int]:
    """The frames of all clips `[K·T, C, H, W]`, and how many make a row: those of one."""
    return clips.transpose(1, 2).flatten(0, 1), clips.shape[2]
