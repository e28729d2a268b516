"""What a recipe for clips must say, and what is of images alone."""

from dgan.config import Recipe


def check_video(recipe: Recipe) -> None:
    """Raise `ValueError` for keys that clips do not know, or that only clips know."""
    data = recipe.data
    if data.kind != "video":
        for key, value, default in (
            ("frames", data.frames, 0),
            ("frame_stride", data.frame_stride, 1),
        ):
            if value != default:
                raise ValueError(
                    f"--data.{key} {value} is for --data.kind video, not {data.kind}: leave it at "
                    f"{default}"
                )
        return
    for key, value in (("frames", data.frames), ("frame_stride", data.frame_stride)):
        if value < 1:
            raise ValueError(f"--data.{key} is {value}; --data.kind video takes at least 1")
    of_images = {
        "data.crop": data.crop != "none",
        "augment.kind": recipe.augment.kind != "none",
        "regularizers.bcr": recipe.regularizers.bcr,
        "judges.scales": recipe.judges.scales > 1,
        "judges.extractor": recipe.judges.extractor,
    }
    for key in (key for key, is_set in of_images.items() if is_set):
        raise ValueError(f"--{key} is of images, and --data.kind is video: leave it out")
