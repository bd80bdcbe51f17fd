"""What is asked of a file before a decoder sees it: what it is, and that it will not keep the decoder for minutes."""

import re
from io import BytesIO

from pneumo_lib.errors import ImageError

_MAX_SCANS, _MAX_SEGMENTS = 32, 1000  # honest files need less
_MARKER = re.compile(rb"\xff[^\0\x01\xd0-\xd7\xff]")  # the markers of a JPEG that end a scan
_FOREIGN = {
    (b"GIF8",): "a GIF picture",
    (b"II*\0", b"MM\0*"): "a TIFF picture",
    (b"BM",): "a Windows bitmap",
    (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"): "a JPEG 2000 picture",
    (b"%PDF",): "a PDF document",
    (b"PK\x03\x04", b"\x1f\x8b"): "a ZIP or gzip archive, or an Office document",
    (b"\x7fELF", b"MZ"): "a program",
    (b"\x08\x00",): "perhaps a DICOM file without its 128-byte preamble",
    (b"version https://git-lfs",): "a Git LFS pointer instead of the file itself",
}
_MARKUP = {b"<svg": "an SVG drawing", b"<!doctype html": "a web page", b"<html": "a web page"}


def kind(data: bytes) -> str:
    """JPEG, PNG or DICOM, from the first bytes of a file (512 suffice); ImageError (``not_an_image``) for others."""
    for name, start, mark in (("DICOM", 128, b"DICM"), ("PNG", 0, b"\x89PNG"), ("JPEG", 0, b"\xff\xd8\xff")):
        if data.startswith(mark, start):
            return name
    raise ImageError(f"found {_describe(data[:512])}", code="not_an_image")


def _describe(head: bytes) -> str:
    for prefixes, words in _FOREIGN.items():
        if head.startswith(prefixes):
            return words
    if head[8:12] == b"WEBP":
        return "a WebP picture"
    if head[4:8] == b"ftyp":
        return "a HEIC or AVIF picture, or a film clip"
    for mark, words in _MARKUP.items():
        if mark in head.lower():
            return words
    if not any(byte < 9 or 13 < byte < 32 for byte in head):
        return "plain text"
    return f"unknown content that starts with the bytes {head[:8].hex(' ')}"


def is_whole(data: bytes, kind: str) -> bool:
    """Whether the mark with which files of this kind end stands near the end."""
    return {"PNG": b"IEND", "JPEG": b"\xff\xd9", "DICOM": b""}[kind] in data[-1024:]


class Rationed(BytesIO):
    """A file in memory that gives a limited number of portions: 10,000, and one more per `portion` bytes of its length.

    Decoders loop over chunks, segments and elements in Python, for minutes where a file consists of nothing else.
    """

    def __init__(self, data: bytes, *, portion: int):
        super().__init__(data)
        self._left = 10_000 + len(data) // portion

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, or raise ImageError (``damaged``) when nothing is left of the ration."""
        self._left -= 1
        if self._left < 0:
            raise ImageError("the file consists of too many small pieces", code="damaged")
        return super().read(size)


def check_scans(jpeg: bytes) -> None:
    """Raise ImageError (``damaged``) for a JPEG of very many scans, since each goes over the whole picture."""
    if jpeg.count(b"\xff\xda") <= _MAX_SCANS:  # those in metadata included, but this is fast
        return
    scans = at = 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(jpeg, at + 2)
        if found is None or found.group() == b"\xff\xd9":
            return
        scans += found.group() == b"\xff\xda"
        if scans > _MAX_SCANS:
            break
        at = found.start() + int.from_bytes(jpeg[found.end() : found.end() + 2])
    raise ImageError(f"found a JPEG of more than {_MAX_SCANS} scans or {_MAX_SEGMENTS:,} segments", code="damaged")
