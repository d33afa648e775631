"""The size of the frames of a video: resizing, and the limits for videos that may be hostile."""

from pathlib import Path

from classifiers.errors import InputError, refuse_if

MAX_PIXELS = 2**27  # of one frame, which is four times as many as a frame of an 8K video has
MAX_BYTES = 2**31 - 1  # of the frames that `FrameReader.get_frames` returns


class DecodeError(InputError):
    """Raised if a video cannot be read. The arguments of the error are the file and the reason. The error message names both."""

    def __str__(self) -> str:
        return "cannot read the video {}: {}".format(*self.args)


def resized(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return the (height, width) of a frame whose shorter side is resized to ``short_side``.

    The aspect ratio stays the same, except for rounding to whole pixels.
    """
    if short_side is None or min(height, width) == short_side:
        return height, width
    scale = short_side / min(height, width)
    return max(round(height * scale), short_side), max(round(width * scale), short_side)


def check_size(path: Path, height: int, width: int, count: int = 1) -> None:
    """Check the stated size of frames before memory for them is allocated. (A header of a few bytes can state any size.)

    Raises:
        DecodeError: if a frame has more than `MAX_PIXELS` pixels, or ``count`` RGB frames have more than `MAX_BYTES` bytes.
    """
    refuse_if(
        height * width > MAX_PIXELS,
        DecodeError(path, f"its frames must have at most {MAX_PIXELS:,} pixels, got {height:,} × {width:,}; convert it to a smaller size"),
    )
    refuse_if(
        count * height * width * 3 > MAX_BYTES,
        DecodeError(path, f"{count} frames of {height:,} × {width:,} pixels take more than {MAX_BYTES / 2**30:.0f} GiB; read fewer"),
    )
