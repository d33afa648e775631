"""Readers return the frames of a video by index. A reader reads an encoded file (with decord or PyAV) or a folder of images.

Damaged files can hang or crash the process of a reader. The rest of the package therefore calls readers through
`adafocus_env.videos.decoding`. At the top, this module imports only NumPy, so that worker processes start fast.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adafocus_env.videos.containers import PYAV_SUFFIXES, stated_size
from adafocus_env.videos.frame_sampling import ORDERS, segment_indices
from adafocus_env.videos.frame_size import DecodeError, check_size, resized
from classifiers.errors import refuse_if

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class FrameReader(Protocol):
    """Any object that returns the frames of one video by index. `len` of the reader is the number of frames, at least 1.

    Attributes:
        fps: mean frame rate in frames per second; None if unknown.
        size: (height, width) of the frames in pixels, as displayed.
    """

    fps: float | None
    size: tuple[int, int]

    def __len__(self) -> int: ...

    def times(self) -> NDArray[np.float64] | None:
        """Return the display times (n,) of all frames in seconds from the first frame, in ascending order. None if unknown."""

    def get_frames(self, indices: Sequence[int] | NDArray[np.int64], short_side: int | None = None) -> NDArray[np.uint8]:
        """Return frames as RGB.

        Args:
            indices: indices (n,) of the frames, starting at 0. The indices may be in any order and may be repeated.
            short_side: length in pixels of the shorter side after resizing. Resizing preserves the aspect ratio. None: no resizing.

        Returns:
            (n, H, W, 3) uint8.

        Raises:
            DecodeError: if a frame cannot be read, or if the frames are too large; see `check_size`.
        """


def open_reader(path: Path, frame_name: str = "", num_frames: int | None = None) -> FrameReader:
    """Return a reader for a folder of images or a file.

    PyAV reads a file if decord is not installed, or if decord is not reliable for files of this kind.

    Args:
        path: the file or folder.
        frame_name: pattern of the names of images in a folder; see `FolderReader`.
        num_frames: number of images that a folder must have; None: any number.

    Raises:
        DecodeError: if the path is missing or empty, or cannot be read as a video.
    """
    if path.is_dir():
        return FolderReader(path, frame_name, num_frames)
    refuse_if(not path.exists(), DecodeError(path, "there is no such file"))
    size = path.stat().st_size
    refuse_if(size == 0, DecodeError(path, "the file is empty (zero bytes)"))
    refuse_if((stated := stated_size(path) or 0) > size, DecodeError(path, f"it is truncated: it has {size} of {stated} bytes"))
    if file_reader() == "decord" and path.suffix.lower() not in PYAV_SUFFIXES:
        with contextlib.suppress(DecodeError):  # PyAV reads some files that decord cannot, and also rejects damaged files
            reader = DecordReader(path)
            if not reader.turned:
                return reader
    return PyAVReader(path)


def file_reader() -> str:
    """Return the package that reads video files on this machine: ``decord`` or ``av``.

    Files with `PYAV_SUFFIXES` are always read by ``av``.
    """
    return "decord" if importlib.util.find_spec("decord") else "av"


def _from_first(times: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sort the times, and return them relative to the first time."""
    return np.sort(times).astype(np.float64) - times.min()


@contextlib.contextmanager
def _reading(path: Path, package: str) -> Iterator[None]:
    """Run the body of the ``with`` statement, and convert all errors of a package except `MemoryError` to `DecodeError`."""
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except Exception as problem:
        reason = str(problem).splitlines()[0].rpartition("Error: ")[2]
        raise DecodeError(path, f"it opens, but its frames cannot be read; is it truncated? ({package}: {reason})") from problem


class DecordReader:
    """A reader that uses decord, which also resizes frames while decoding.

    Attributes:
        turned: whether the video must be rotated for display, which is the case for many videos from phones. For videos that must be
            rotated, decord returns frames with four channels and cannot read frames in batches.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._video = self._open()
        refuse_if(len(self._video) < 1, DecodeError(self._path, "it has no frames"))
        with _reading(self._path, "decord"):
            height, width, channels = self._video[0].shape
            self.fps: float | None = float(self._video.get_avg_fps()) or None
        check_size(path, height, width)
        self.turned = channels != 3
        self.size = self._decoded_size = (int(height), int(width))

    def __len__(self) -> int:
        return len(self._video)

    def get_frames(self, indices: Sequence[int] | NDArray[np.int64], short_side: int | None = None) -> NDArray[np.uint8]:
        """See `FrameReader.get_frames`."""
        size = resized(*self.size, short_side)
        check_size(self._path, *size, len(indices))
        try:
            if size != self._decoded_size:
                self._video, self._decoded_size = self._open(*size), size
            with _reading(self._path, "decord"):
                frames = self._video.get_batch([int(i) for i in indices]).asnumpy()
        except DecodeError:  # at some widths (8, 12, 16, 24, 48, 72, …), decord treats the padding of rows as pixels
            return PyAVReader(self._path).get_frames(indices, short_side)
        refuse_if(
            frames.shape[1:3] != size,
            DecodeError(self._path, f"its frames must have {size} pixels, got {frames.shape[1:3]}"),
        )
        return frames

    def times(self) -> NDArray[np.float64] | None:
        """See `FrameReader.times`."""
        with _reading(self._path, "decord"):
            return _from_first(self._video.get_frame_timestamp(range(len(self)))[:, 0])

    def _open(self, height: int = -1, width: int = -1):  # type: ignore[no-untyped-def]  # decord has no types
        import decord

        decord.logging.set_level(decord.logging.QUIET)  # decord prints messages that it also raises
        try:
            return decord.VideoReader(str(self._path), ctx=decord.cpu(0), width=width, height=height, num_threads=1)
        except Exception as problem:
            streamless = "cannot find video stream" in str(problem)
            reason = "it has no video stream" if streamless else "it is truncated or not a video (decord cannot open it)"
            raise DecodeError(self._path, reason) from problem


class PyAVReader:
    """A reader that uses PyAV.

    The reader decodes all frames up to the last requested frame. PyAV is slower than decord, but correct for every codec.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _reading(path, "PyAV"):
            with self._open() as container:
                stream = container.streams.video[0]
                refuse_if(stream.codec_context is None, DecodeError(path, "PyAV has no decoder for its codec; convert it to H.264"))
                self.fps = float(stream.average_rate or stream.guessed_rate or 0) or None
                first = next(container.decode(stream), None)
            if first is None:
                raise DecodeError(path, "it has no frames")
            self._times = self._timestamps(interlaced=first.interlaced_frame)
        height, width = self.get_frames([0]).shape[1:3]
        self.size = height, width

    def __len__(self) -> int:
        return len(self._times)

    def times(self) -> NDArray[np.float64] | None:
        """See `FrameReader.times`."""
        return None if None in self._times else _from_first(np.array(self._times, np.float64))

    def get_frames(self, indices: Sequence[int] | NDArray[np.int64], short_side: int | None = None) -> NDArray[np.uint8]:
        """See `FrameReader.get_frames`."""
        numbers, found = [int(i) for i in indices], dict[int, NDArray[np.uint8]]()
        with _reading(self._path, "PyAV"), self._open() as container:
            for number, frame in zip(range(max(numbers) + 1), container.decode(video=0), strict=False):
                if number in numbers:
                    height, width = resized(frame.height, frame.width, short_side)
                    check_size(self._path, height, width, len(numbers))
                    image = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
                    found[number] = np.rot90(image, round(getattr(frame, "rotation", 0) / 90))  # rotate for display
        if missing := [number for number in numbers if number not in found]:
            raise DecodeError(self._path, f"frame {missing[0]} of {len(self)} cannot be read; is it truncated?")
        return np.stack([found[number] for number in numbers])

    def _timestamps(self, *, interlaced: bool) -> list[float | None]:
        """Return the time of every frame in stream order. (Many files do not state their length, and truncated files state a wrong one.)"""
        with self._open() as container:
            # In interlaced videos, such as those of camcorders, a packet may contain only half a frame.
            items = container.decode(video=0) if interlaced else (packet for packet in container.demux(video=0) if packet.size)
            return [None if item.pts is None else float(item.pts * item.time_base) for item in items]

    def _open(self):  # type: ignore[no-untyped-def]  # av's types change between the versions that are supported
        import av

        try:
            container = av.open(str(self._path))
        except MemoryError:
            raise
        except Exception as problem:
            raise DecodeError(self._path, "it is truncated or not a video (PyAV cannot open it)") from problem
        with contextlib.ExitStack() as closing:
            closing.callback(container.close)
            refuse_if(not container.streams.video, DecodeError(self._path, "it has no video stream"))
            if context := container.streams.video[0].codec_context:  # None if there is no decoder
                check_size(self._path, context.height, context.width)
            closing.pop_all()
        return container


class FolderReader:
    """A reader of a folder of image files, one per frame.

    Args:
        path: the folder.
        frame_name: pattern of the file names of frames, such as ``image_%05d.jpg``. The first frame has the number 1, and files that do not
            match are ignored. If ``frame_name`` is empty, all images are frames, sorted by name.
        num_frames: number of frames that the folder must have; None: any number.

    Raises:
        DecodeError: if there are no frames, if a frame is missing, or if the number of frames is not ``num_frames``.
    """

    fps: float | None = None

    def __init__(self, path: Path, frame_name: str = "", num_frames: int | None = None) -> None:
        self._path = path
        self._files = numbered_frames(path, frame_name) if frame_name else image_files(path)
        refuse_if(not self._files, DecodeError(path, f"the folder holds no image ({', '.join(IMAGE_SUFFIXES)})"))
        found = f"the folder holds {len(self._files)} (the last is {self._files[-1].name})"
        refuse_if(
            num_frames not in (None, len(self._files)),
            DecodeError(path, f"the list says {num_frames} frames, and {found}; extract them again, or correct the list"),
        )
        height, width, _ = self._image(self._files[0], None).shape
        self.size = height, width

    def __len__(self) -> int:
        return len(self._files)

    def get_frames(self, indices: Sequence[int] | NDArray[np.int64], short_side: int | None = None) -> NDArray[np.uint8]:
        """See `FrameReader.get_frames`. All requested images must have the same size."""
        files = [self._files[int(i)] for i in indices]
        check_size(self._path, *resized(*self.size, short_side), len(files))
        images = {file: self._image(file, short_side) for file in dict.fromkeys(files)}
        if others := [file.name for file, image in images.items() if image.shape != images[files[0]].shape]:
            raise DecodeError(self._path, f"its images differ in size: {files[0].name} and {others[0]}")
        return np.stack([images[file] for file in files])

    def times(self) -> NDArray[np.float64] | None:
        """See `FrameReader.times`. For a folder of images, the result is always None, because images have no display times."""
        return None

    def _image(self, file: Path, short_side: int | None) -> NDArray[np.uint8]:
        from PIL import Image

        try:
            with Image.open(file) as image:
                check_size(self._path, image.height, image.width)
                height, width = resized(image.height, image.width, short_side)
                check_size(self._path, height, width)
                return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        except DecodeError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:  # SyntaxError: some broken PNG files
            raise DecodeError(self._path, f"its image {file.name} cannot be read ({str(problem).splitlines()[0]})") from problem


def image_files(folder: Path) -> list[Path]:
    """Return the images in ``folder``, sorted by name. Subfolders are not searched, and hidden files are left out."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."))


def numbered_frames(folder: Path, frame_name: str) -> list[Path]:
    """Return the files in ``folder`` that match the pattern ``frame_name``, in the order of their numbers. Numbers start at 1.

    Raises:
        DecodeError: if no file matches, if a number is missing, or if the numbers start at 0.
    """
    before, _, after = re.fullmatch(r"(.*)%0(\d)d(.*)", frame_name).groups()  # type: ignore[union-attr]  # a constant of ours
    with os.scandir(folder) as entries:  # by far the fastest way to list thousands of names
        found = [re.fullmatch(f"{re.escape(before)}(\\d+){re.escape(after)}", entry.name) for entry in entries]
    numbers = {int(match[1]) for match in found if match and match[0] == frame_name % int(match[1])}
    refuse_if(not numbers, DecodeError(folder, f"the folder holds no frame named like {frame_name % 1}"))
    refuse_if(
        0 in numbers, DecodeError(folder, f"its frames must begin at {frame_name % 1}, got {frame_name % 0}; rename them")
    )
    if missing := [number for number in range(1, max(numbers)) if number not in numbers]:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise DecodeError(folder, f"the frame {frame_name % missing[0]}{more} missing before the last, {frame_name % max(numbers)}")
    return [folder / (frame_name % number) for number in range(1, max(numbers) + 1)]


@dataclass(frozen=True)
class DecodeRequest:
    """A request that a worker process should decode one clip.

    Attributes:
        path: the file or folder.
        num_frames: T, number of the focuser's frames.
        short_side: shorter side of the decoded frames in pixels; None: no resizing.
        seed: seed of the random frames for training; None: middle frames.
        glance_frames: number of separately sampled frames for the glancer.
        sampling: how random frames are sampled; see `adafocus_env.videos.frame_sampling.SAMPLING`.
        num_frames_stated: number of frames that a folder must have, as stated in a list file; None: any number.
        frame_name: pattern of the names of frames in a folder; see `FolderReader`.
        order: order of the frames in a clip, a name in `adafocus_env.videos.frame_sampling.ORDERS`.
    """

    path: Path
    num_frames: int
    short_side: int | None = None
    seed: tuple[int, ...] | None = None
    glance_frames: int = 0
    sampling: str = "segments"
    num_frames_stated: int | None = None
    frame_name: str = ""
    order: str = "time"


@dataclass(frozen=True)
class DecodedClip:
    """The frames (T,H,W,3) of a clip and their indices (T,) in the video. The other attributes describe the video: number of frames, frame
    rate and (height, width).

    If the glancer's frames are sampled separately, they follow the focuser's frames.
    """

    frames: NDArray[np.uint8]
    indices: NDArray[np.int64]
    num_frames: int
    fps: float | None
    size: tuple[int, int]


def decode_clip(request: DecodeRequest) -> DecodedClip:
    """Open the video, sample its frames and decode them. The same request always returns the same clip.

    Raises:
        DecodeError: if the video cannot be read.
    """
    reader = open_reader(request.path, request.frame_name, request.num_frames_stated)
    indices = _sample(len(reader), request, request.num_frames)
    if request.glance_frames:
        indices = np.concatenate([indices, _sample(len(reader), request, request.glance_frames, 1)])
    frames = np.ascontiguousarray(reader.get_frames(indices, request.short_side))
    return DecodedClip(frames, indices, len(reader), reader.fps, reader.size)


def _sample(length: int, request: DecodeRequest, count: int, *salt: int) -> NDArray[np.int64]:
    """Return the indices (count,) of sampled frames.

    The salt makes the sampling of the glancer's frames independent of the sampling of the focuser's frames.
    """
    rng = None if request.seed is None else np.random.default_rng((*request.seed, *salt))
    return segment_indices(length, count, rng, request.sampling)[ORDERS[request.order](count)]
