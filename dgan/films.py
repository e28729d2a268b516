"""What a person sees of clips: a sheet of frames, and a film in which all of them move."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from dgan.laboratory.picture import save_animation
from dgan.pictures import Images, Sheet
from dgan.run import arranged, save_grid
from dgan.visible import visible

FRAME_S = 0.1
"""How long a frame is seen."""


class Films(Images):
    """Clips, a row of frames each; and side by side in a GIF, of conditional ones a row a class.

    Args: as `dgan.pictures.Images`.
    """

    def sheet(self, samples: Tensor) -> Sheet:
        """See `Images`."""
        clips = visible(samples)
        frames, length = _rows(clips)

        def write(path: Path) -> None:
            save_film(clips, path.with_suffix(".gif"), self.columns)

        return Sheet(frames, length, write)


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
