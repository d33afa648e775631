"""Video containers: the suffixes of their files, and the file size that the header of a file states.

Most decoders silently read a truncated file as a shorter video. The header of a container states the length of the file in a few bytes, so
that a truncated file can be detected. Some programs write files without a length in the header.
"""

from pathlib import Path
from typing import BinaryIO

DECORD_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".3gp")
# decord cannot open some of the files with these suffixes. From other files with these suffixes, decord returns wrong frames without an
# error if the video has B frames.
PYAV_SUFFIXES = (".avi", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".mts", ".m2ts", ".vob", ".ogv", ".gif")
VIDEO_SUFFIXES = DECORD_SUFFIXES + PYAV_SUFFIXES
_ISO_BRANDS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_ISO_NEEDED = (b"moov", b"mdat", b"moof")


def stated_size(path: Path) -> int | None:
    """Return the size in bytes that the file should have according to its header (MP4, MOV, AVI, Matroska, WebM). None if unknown."""
    with path.open("rb") as file:
        start = file.read(12)
        if start[4:8] in _ISO_BRANDS:
            return _iso_size(file, path.stat().st_size)
        if start[:4] == b"RIFF":
            size = int.from_bytes(start[4:8], "little")
            return size + 8 if 0 < size < 0xFFFFFFFF else None
        if start[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_size(file, path.stat().st_size)
    return None


def _iso_size(file: BinaryIO, size: int) -> int | None:
    """Return the end of the last box that is needed to read the frames. Padding after this box may be missing."""
    end, position = None, 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0: up to the end of the file; otherwise not a box
            break
        position += length
        if kind in _ISO_NEEDED:
            end = position
    return end


def _matroska_size(file: BinaryIO, size: int) -> int | None:
    """Return the end of the segment. The segment is the element after the header."""
    file.seek(4)
    header = _matroska_length(file)
    if header is None or header > size:
        return None
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return None
    segment = _matroska_length(file)
    return None if segment is None else file.tell() + segment


def _matroska_length(file: BinaryIO) -> int | None:
    """Read a number of 1 to 8 bytes. The leading zero bits of the first byte give the number of bytes.

    Return None if all value bits are ones, which means that the length is unknown.
    """
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(extra), "big") & ((1 << 7 * (extra + 1)) - 1)
    return None if value == (1 << 7 * (extra + 1)) - 1 else value
