"""Any film file to grey levels: the only way a picture enters the project, in training, service and batch alike.

JPEG, PNG and DICOM are told apart by their content, never by their name. Sizes are checked in the header, before a
pixel is decoded. Whatever cannot be read raises :class:`~pneumo_lib.errors.ImageError` with one of the codes of
:data:`HINTS`; whatever was changed on the way to grey levels is said in :attr:`Film.notes`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps, JpegImagePlugin, PngImagePlugin

from pneumo_lib import dicom, guards
from pneumo_lib.errors import ImageError, UsageError

MAX_PIXELS = 40_000_000  # above any chest detector (about 16 million), low enough for a small server
# Pixels; long side over short side. Wide limits, since training reads its films through them too: some slices of
# COVID-CT have a side of less than 64 pixels, down to 26, and who trains on MedMNIST may send films of 28 x 28. They
# keep out what is no picture; whether it shows a chest is for `novelty` to say.
MIN_SIDE, MAX_ASPECT = 16, 4
BYTES_PER_PIXEL = 8  # the largest sample layout that is read: 16-bit RGBA without compression

Source = str | Path | bytes | bytearray | memoryview | BinaryIO

# The code of every fault that `open_film` raises, and what the sender of the file can do about it.
HINTS: dict[str, str] = {
    "missing": "Check the path and the spelling of the name",
    "directory": "Give one file, not a folder",
    "unreadable": "Check the permissions of the file and that it is a regular file",
    "empty": "Copy or upload the file again",
    "too_many_bytes": "Send a single film, exported without extra data",
    "too_many_pixels": "Export the film at a smaller size, or raise max_pixels",
    "too_small": f"At least {MIN_SIDE} x {MIN_SIDE} pixels are needed; send the original film, not a thumbnail",
    "odd_shape": f"The long side may be at most {MAX_ASPECT} times the short one; send the whole film, not a strip",
    "not_an_image": "JPEG, PNG and DICOM are read, by content and not by name; export the film as one of them",
    "incomplete": "Copy or download the file again: its end is missing",
    "damaged": "Export the film again from the viewer it came from",
    "several_frames": "Export the one frame that is meant as a single JPEG, PNG or DICOM picture",
    "not_a_film": "Send the DICOM file of the picture itself, one that belongs to the same study",
    "no_pixels": "Send the DICOM file that holds the picture itself, whole",
    "bad_header": "Export the film again: its header cannot be trusted",
    "photometric": "Export the film as MONOCHROME1, MONOCHROME2 or RGB",
    "codec": "Install the optional codecs with `pip install -e '.[dicom-codecs]'` (JPEG 2000 family), "
    "or export the film uncompressed (for other compressions)",
}

_OPENERS = {"JPEG": JpegImagePlugin.JpegImageFile, "PNG": PngImagePlugin.PngImageFile}


@dataclass(frozen=True, eq=False)
class Film:
    """One picture as grey levels, with what was done to get them.

    Attributes:
        pixels: float32 (H, W) in [0, 1]; 0 is black (air), 1 is white (bone).
        kind: ``JPEG``, ``PNG`` or ``DICOM``, from the content.
        bits: bits per sample in the file.
        notes: one short sentence per change that the reader of a result should know of.
        facts: DICOM code strings that identify nobody (modality, body part, view).
    """

    pixels: np.ndarray
    kind: str
    bits: int
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def read(source: Source, *, name: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the grey levels of a film, float32 (H, W) in [0, 1]; like :func:`open_film` without notes."""
    return _open(source, name, max_pixels, noted=False).pixels


def open_film(source: Source, *, name: str = "", max_pixels: int = MAX_PIXELS) -> Film:
    """Read a JPEG, PNG or DICOM film.

    Colour becomes ITU-R BT.601 luma, which of a JPEG is read as it is stored. A 16-bit PNG is divided by 2^b - 1, b
    being the smallest of 8, 10, 12, 14, 16 bits that holds its brightest pixel, because 12-bit films are often stored
    in 16-bit files. DICOM pixels are shown as a viewer shows them, see :func:`pneumo_lib.dicom.grey_levels`.

    Args:
        source: path, the bytes of a file, or a binary file object read from its current position.
        name: what messages call the picture; the path, or "the picture", by default.
        max_pixels: largest width x height that is decoded.

    Raises:
        ImageError: the file is no readable film; ``code`` is a key of :data:`HINTS`.
        UsageError: the source is none of these, or a file object that yields text.
    """
    return _open(source, name, max_pixels, noted=True)


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scale a film to ``size`` x ``size`` without cropping, bilinear and antialiased.

    Args:
        pixels: float (H, W) in [0, 1].
        size: side of the result in pixels.

    Returns:
        float32 (size, size) in [0, 1], a new array.
    """
    import torch  # here, so that who only reads films needs no gigabytes of address space
    from torch import nn

    film = torch.from_numpy(np.require(pixels, np.float32, "W"))[None, None]
    scaled = nn.functional.interpolate(film, (size, size), mode="bilinear", antialias=True)
    return np.clip(scaled[0, 0].numpy(), 0, 1)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Round grey levels in [0, 1] (clipped) to uint8 in 0..255, same shape; undoes the reading of an 8-bit file."""
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _open(source: Source, name: str, max_pixels: int, *, noted: bool) -> Film:
    name = name or (str(source) if isinstance(source, str | Path) else "the picture")
    try:
        return _film(_load(source, max_pixels), max_pixels, noted)
    except ImageError as fault:
        raise ImageError(f"{name}: {fault}. {HINTS[fault.code]}.", code=fault.code) from fault.__cause__


def _load(source: Source, max_pixels: int) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_stream(BytesIO(source), max_pixels)
    if not isinstance(source, str | Path):
        if not hasattr(source, "read"):
            raise UsageError(f"Got {type(source).__name__}; expected a path, bytes or a binary file object")
        return _read_stream(source, max_pixels)
    try:
        path = Path(source)
        if path.is_dir():
            raise ImageError("found a folder instead of a file", code="directory")
        if path.exists() and not path.is_file():
            raise ImageError("found a device or a pipe instead of a file", code="unreadable")
        with path.open("rb") as stream:
            return _read_stream(stream, max_pixels)
    except FileNotFoundError as error:
        raise ImageError("there is no such file", code="missing") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"the file cannot be opened ({error})", code="unreadable") from error


def _read_stream(stream: BinaryIO, max_pixels: int) -> bytes:
    head = stream.read(512)
    if isinstance(head, str):
        raise UsageError("The file object yields text; open it in binary mode, open(path, 'rb')")
    if not head:
        raise ImageError("the file is empty (0 bytes)", code="empty")
    guards.kind(head)  # a large foreign file is refused before it is read
    limit = BYTES_PER_PIXEL * max_pixels + 2**20
    data = head + stream.read(limit)
    if len(data) > limit:
        raise ImageError(f"the file is larger than {limit:,} bytes, the limit", code="too_many_bytes")
    return data


def _film(data: bytes, max_pixels: int, noted: bool) -> Film:
    kind = guards.kind(data)
    try:
        return _dicom(data, max_pixels) if kind == "DICOM" else _picture(data, kind, max_pixels, noted)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"there is not enough memory to decode the {kind}", code="too_many_pixels") from error
    except Exception as error:  # decoders meet hostile bytes with whatever exception is nearest
        code = "damaged" if guards.is_whole(data, kind) and "truncated" not in str(error) else "incomplete"
        said = type(error).__name__ if kind == "DICOM" else f"{type(error).__name__}: {error}"[:200]  # pydicom quotes
        raise ImageError(f"the {kind} cannot be decoded ({said})", code=code) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    found = f"the header says {width} x {height} pixels"
    if width * height > max_pixels:
        raise ImageError(f"{found}, {width * height:,} in all; the limit is {max_pixels:,}", code="too_many_pixels")
    if min(width, height) < MIN_SIDE:
        raise ImageError(found, code="too_small")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(found, code="odd_shape")


def _opened(data: bytes, kind: str) -> Image.Image:
    # Image.open would also try other decoders, and only warn of sizes that `_check_size` refuses.
    return _OPENERS[kind](guards.Rationed(data, portion=250))


def _picture(data: bytes, kind: str, max_pixels: int, noted: bool) -> Film:
    with _opened(data, kind) as image:
        _check_size(*image.size, max_pixels)
        notes: list[str] = []
        if kind == "JPEG":
            guards.check_scans(data)
            if noted and image.mode == "RGB":
                notes += _colour_of(data)
            image.draft("L", None)
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise ImageError(f"found an animated {kind} of {frames} frames", code="several_frames")
        image.load()
        bits = data[24] if kind == "PNG" else 8  # IHDR: 8 signature, 8 chunk head, 8 width and height, then the depth
        return Film(_grey(_upright(image, notes), notes, bits), kind, bits, tuple(notes))


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9):
            return image
        turned = ImageOps.exif_transpose(image)
    except Exception:  # the pixels are sound without their EXIF block
        notes.append("unreadable EXIF block ignored")
        return image
    notes.append("rotated by its EXIF tag")
    return turned


def _grey(image: Image.Image, notes: list[str], bits: int) -> np.ndarray:
    if image.mode.startswith("I"):
        return _deep_grey(image, notes)
    for applies, convert, note in _CONVERSIONS:
        if applies(image):
            image = convert(image)
            notes.append(note)
    if bits == 1:
        notes.append("only two grey levels (1 bit per pixel)")
    elif bits == 16:
        notes.append("16-bit samples reduced to 8 bits (colour or alpha)")
    return np.divide(image.convert("L"), np.float32(255), dtype=np.float32)


def _deep_grey(image: Image.Image, notes: list[str]) -> np.ndarray:
    values = np.asarray(image)
    if "transparency" in image.info:
        values = np.where(values == image.info["transparency"], 0, values)
        notes.append("transparent areas composited on black")
    used = next(bits for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
    notes.append(f"16-bit file, {used} bits used: grey levels divided by {2**used - 1}")
    return values.astype(np.float32) / (2**used - 1)


def _from_cmyk(image: Image.Image) -> Image.Image:
    # Pillow inverts every CMYK JPEG; only Adobe's are stored inverted (ITU-T T.872), and they carry its marker.
    return (image if "adobe" in image.info else ImageChops.invert(image)).convert("RGB")


def _see_through(image: Image.Image) -> bool:
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def _on_black(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.composite(layer.convert("RGB"), Image.new("RGB", image.size), layer.getchannel("A"))


def _colour_of(jpeg: bytes) -> list[str]:
    """The note on colour, from an eighth of the resolution: the whole would take longer than the film itself."""
    with _opened(jpeg, "JPEG") as small:
        small.draft("RGB", tuple(side // 8 for side in small.size))
        return [_COLOUR] if _coloured(small) else []


def _coloured(image: Image.Image) -> bool:
    if image.mode not in ("RGB", "RGBA"):
        return False
    red, green, blue = image.split()[:3]
    return any(ImageChops.difference(green, other).getextrema()[1] > 16 for other in (red, blue))


_COLOUR = "colour converted to luminance"
# In order, since each works on the result of the one before: (applies, convert, note).
_CONVERSIONS: tuple[tuple[Callable[[Image.Image], bool], Callable[[Image.Image], Image.Image], str], ...] = (
    (lambda image: image.mode == "CMYK", _from_cmyk, "printing inks (CMYK) converted to grey levels"),
    (_see_through, _on_black, "transparent areas composited on black"),
    (lambda image: image.mode == "P", lambda image: image.convert("RGBA"), "palette converted to grey levels"),
    (_coloured, lambda image: image, _COLOUR),
)


def _dicom(data: bytes, max_pixels: int) -> Film:
    dataset = dicom.open_dataset(data)
    _check_size(dataset.Columns, dataset.Rows, max_pixels)
    notes: list[str] = []
    pixels = dicom.grey_levels(dataset, notes)
    return Film(pixels, "DICOM", dataset.BitsStored, tuple(notes), dicom.facts(dataset))
