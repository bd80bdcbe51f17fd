"""DICOM films to the grey levels that a viewer shows, without ever parsing who the patient is."""

import itertools
import re
import struct

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.encaps import get_frame
from pydicom.filereader import read_sequence
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, apply_voi, get_decoder, pixel_array
from pydicom.pixels.utils import get_expected_length

from pneumo_lib.errors import ImageError
from pneumo_lib.guards import Rationed, check_scans

_FACTS = ("Modality", "BodyPartExamined", "ViewPosition", "PresentationIntentType", "BurnedInAnnotation")
_HEADER = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel")
_DISPLAY = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
_PIXELS = ("PhotometricInterpretation", "HighBit", "PlanarConfiguration", "NumberOfFrames", "PixelData", "SOPClassUID")
_TAGS = [*_FACTS, *_HEADER, *_DISPLAY, *_PIXELS, "VOILUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit"]
_TABLES = ("ModalityLUTSequence", "VOILUTSequence")
# How the elements of a few words or numbers begin that pydicom converts, on our request or unasked.
_UNASKED = ("SpecificCharacterSet", "TransferSyntaxUID", "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID")
_SHORT = [tag_for_keyword(name) for name in {*_TAGS, *_UNASKED} - {*_FACTS, *_TABLES, "PixelData"}]
_SHORT_MARKS = tuple(struct.pack(f"{order}HH", *divmod(tag, 2**16)) for tag in _SHORT for order in "<>")
_CONTROL = re.compile(rb"[\0-\x1f]")
_CODE_STRING = re.compile(rb" *[A-Z0-9_][A-Z0-9_ ]{0,15}\0?")
# UIDs of what is DICOM but no picture: directories, structured reports, encapsulated documents.
_DOCUMENTS = ("1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.104.")
_PILLOW_SYNTAXES = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000, uid.JPEG2000Lossless)
_MAX_FRAGMENTS, _MAX_SHORT = 10_000, 512  # honest files need less; the second in bytes


class _Elements(Rationed):
    """DICOM elements; a wrong length makes one value of all that follows, which pydicom would quote in a warning."""

    _short = False

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        if size == 8:  # the head of an element
            self._short = piece.startswith(_SHORT_MARKS)
        elif self._short and size and size > 8:
            self._left -= size
            if size > _MAX_SHORT or _CONTROL.search(piece.rstrip(b"\0 ")):
                raise ImageError("the DICOM header is out of step", code="bad_header")
        return piece


def open_dataset(data: bytes) -> pydicom.FileDataset:
    """Read the tags needed for display from a whole file; the others, the names among them, are never parsed.

    Returns:
        A data set with one still undecoded frame, whose header does not contradict itself.

    Raises:
        ImageError: no picture inside, several frames, an unknown colour model or a header that cannot be true.
    """
    if uid.DeflatedExplicitVRLittleEndian.encode() in data:  # pydicom would unpack it without any limit
        raise ImageError("found a deflated DICOM file, which is not read", code="codec")
    dataset = pydicom.dcmread(_Elements(data, portion=4096), specific_tags=_TAGS)
    _open_tables(dataset)
    kind = uid.UID(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind.startswith(_DOCUMENTS):
        raise ImageError(f"found a DICOM file of the type '{kind.name[:64]}', which is no picture", code="not_a_film")
    if "PixelData" not in dataset:
        raise ImageError("the DICOM file holds no pixel data, or ends before it", code="no_pixels")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ImageError(f"found a DICOM file of {dataset.NumberOfFrames} frames", code="several_frames")
    _check_header(dataset)
    return dataset


def facts(dataset: pydicom.FileDataset) -> dict[str, str]:
    """Return modality, body part and view as far as they are DICOM code strings, which identify nobody."""
    raw = {tag: getattr(dataset.get_item(tag), "value", None) for tag in _FACTS}  # as they stand
    found = {tag: text for tag, text in raw.items() if isinstance(text, bytes) and _CODE_STRING.fullmatch(text)}
    return {tag: text.decode().strip(" \0") for tag, text in found.items()}


def grey_levels(dataset: pydicom.FileDataset, notes: list[str]) -> np.ndarray:
    """Decode a film and show it: modality transform, window, inversion of MONOCHROME1 (DICOM PS3.3 C.11.1, C.11.2).

    The first window is used, else the VOI table, else minimum to maximum without the padding. Padding is black.
    Colour becomes ITU-R BT.601 luma.

    Args:
        dataset: as :func:`open_dataset` returns it.
        notes: what was done is appended here.

    Returns:
        float32 (Rows, Columns) in [0, 1].

    Raises:
        ImageError: truncated or contradictory pixel data, or no decoder for its compression.
    """
    stored = _decode(dataset)
    if stored.ndim == 3:
        pixels = stored @ np.float32([0.299, 0.587, 0.114]) / (2**dataset.BitsStored - 1)
        notes.append("colour converted to luminance")
    else:
        with np.errstate(all="ignore"):  # absurd numbers in the header are reported below, as an error
            pixels = _display(stored, dataset, notes)
    if facts(dataset).get("BurnedInAnnotation") == "YES":
        notes.append("text burned into the picture may name the patient")
    if not np.isfinite(pixels).all():
        raise ImageError("the rescale or window numbers of the header lead to no finite grey level", code="bad_header")
    return np.clip(pixels, 0, 1).astype(np.float32)


def _open_tables(dataset: pydicom.FileDataset) -> None:
    # pydicom would open them later, from a stream of its own that has no limit.
    for name in _TABLES:
        raw = dataset.get_item(name)
        if isinstance(raw, RawDataElement) and raw.value:
            stream, order = _Elements(raw.value, portion=4096), (raw.is_implicit_VR, raw.is_little_endian)
            setattr(dataset, name, read_sequence(stream, *order, len(raw.value), "iso8859"))


def _check_header(dataset: pydicom.FileDataset) -> None:
    if unusable := [tag for tag in _HEADER if not isinstance(dataset.get(tag), int)]:
        raise ImageError(f"the DICOM header has no usable {', '.join(unusable)}", code="bad_header")
    if not (dataset.Rows and dataset.Columns and 1 <= dataset.BitsStored <= dataset.BitsAllocated):
        found = f"{dataset.Columns} x {dataset.Rows} pixels, {dataset.BitsStored} of {dataset.BitsAllocated} bits"
        raise ImageError(f"the DICOM header says {found}", code="bad_header")
    colours = str(dataset.get("PhotometricInterpretation"))
    if not colours.startswith(("MONOCHROME", "RGB", "YBR")):
        found = colours if _CODE_STRING.fullmatch(colours.encode()) else "unknown"
        raise ImageError(f"found {found} pixels", code="photometric")
    if dataset.SamplesPerPixel != (1 if colours.startswith("MONOCHROME") else 3):
        found = f"{dataset.SamplesPerPixel} samples per pixel, yet {colours}"
        raise ImageError(f"the DICOM header says {found}", code="bad_header")


def _decode(dataset: pydicom.FileDataset) -> np.ndarray:
    """Return stored values, (H, W) or, for colour, (H, W, 3)."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise ImageError("the DICOM header names no transfer syntax", code="bad_header")
    if not syntax.is_encapsulated:
        _check_length(dataset)
        return pixel_array(dataset, index=0)
    if syntax.is_private or not get_decoder(syntax).is_available:
        raise ImageError(f"no decoder is installed for '{syntax.name}'", code="codec")
    if syntax in _PILLOW_SYNTAXES:
        _check_frame(dataset)
    elif syntax == uid.RLELossless:
        _check_runs(dataset)
    try:
        return pixel_array(dataset, index=0)
    except RuntimeError as error:
        if "does not support" in str(error):
            raise ImageError(f"the installed decoders cannot read this '{syntax.name}'", code="codec") from error
        raise


def _check_length(dataset: pydicom.FileDataset) -> None:
    declared = getattr(dataset.get_item("PixelData"), "length", 0)  # of the element as it stood in the file
    expected, present = get_expected_length(dataset), len(dataset.PixelData)
    found = f"the header promises {dataset.Columns} x {dataset.Rows} pixels in {expected:,} bytes, found {present:,}"
    if present < min(declared, expected):
        raise ImageError(found, code="incomplete")
    if not expected <= present < 2 * expected:  # pydicom would return the excess as further frames
        raise ImageError(found, code="bad_header")


def _frame(dataset: pydicom.FileDataset) -> bytes:
    if dataset.PixelData.count(b"\xfe\xff\0\xe0") > _MAX_FRAGMENTS:
        raise ImageError(f"found a compressed picture in more than {_MAX_FRAGMENTS:,} fragments", code="damaged")
    return get_frame(dataset.PixelData, 0, number_of_frames=1)


def _check_frame(dataset: pydicom.FileDataset) -> None:
    # The compressed frame carries its own size, and the decoder believes that one.
    coded = _frame(dataset)
    check_scans(coded)
    with Image.open(Rationed(coded, portion=250), formats=("JPEG", "JPEG2000")) as frame:
        if frame.size != (dataset.Columns, dataset.Rows):
            found = f"the header says {dataset.Columns} x {dataset.Rows} pixels, the compressed picture {frame.size}"
            raise ImageError(found, code="bad_header")


def _check_runs(dataset: pydicom.FileDataset) -> None:
    # Two bytes of RLE may stand for 128, and pydicom unpacks them all before it counts (PS3.5 Annex G).
    coded = _frame(dataset)
    count, *starts = struct.unpack_from("<16L", coded)
    parts = [*starts[:count], len(coded)]
    limit = 2 * dataset.Rows * dataset.Columns  # some writers pad
    if parts != sorted(parts) or any(_unpacked(coded, *ends, limit) > limit for ends in itertools.pairwise(parts)):
        raise ImageError("the compressed picture holds more than the header promises", code="bad_header")


def _unpacked(coded: bytes, at: int, end: int, limit: int) -> int:
    length = 0
    while at < end and length <= limit:
        head = coded[at]
        step = 2 if head > 128 else head + 2 if head < 128 else 1
        length += 257 - head if head > 128 else max(step - 1, 1)  # 128 stands for nothing, but there may be many
        at += step
    return length


def _display(stored: np.ndarray, dataset: pydicom.FileDataset, notes: list[str]) -> np.ndarray:
    """Return the grey levels in [0, 1] that a viewer shows for stored values of a MONOCHROME1 or MONOCHROME2 film."""
    padding = _padding(stored, dataset)
    pixels = _window(_rescale(stored, dataset), padding, dataset, notes)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 1 - pixels
        notes.append("inverted (MONOCHROME1)")
    if padding.any():
        pixels = np.where(padding, 0, pixels)
        notes.append("padding set to black")
    return pixels


def _padding(stored: np.ndarray, dataset: pydicom.FileDataset) -> np.ndarray:
    value = _number(dataset, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    other = _number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if other is None else other))
    return (stored >= low) & (stored <= high)


def _rescale(stored: np.ndarray, dataset: pydicom.FileDataset) -> np.ndarray:
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset)
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if slope == 0:
        raise ImageError("the rescale slope of the DICOM header is 0, which leaves no picture", code="bad_header")
    return stored.astype(np.float32) * (slope or 1) + (intercept or 0)


def _window(values: np.ndarray, padding: np.ndarray, dataset: pydicom.FileDataset, notes: list[str]) -> np.ndarray:
    """Return values on [0, 1] by the first window, else the VOI table, else their own range (PS3.3 C.11.2)."""
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    shape = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if center is not None and width is not None and width > 0 and (width >= 1 or shape != "LINEAR"):
        notes.append(f"window {center:g} / {width:g} applied")
        if shape == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -80, 80)))
        if shape == "LINEAR":  # the standard counts whole grey levels: half a level less, one level narrower
            center, width = center - 0.5, max(width - 1, 1e-6)
        return np.clip((values - center) / width + 0.5, 0, 1)
    if dataset.get("VOILUTSequence"):
        notes.append("VOI table applied")
        depth = dataset.VOILUTSequence[0].LUTDescriptor[2]
        return apply_voi(np.rint(values).astype(np.int32), dataset) / np.float32(2**depth - 1)
    notes.append("no window in the file: darkest pixel black, brightest white")
    inside = values[~padding] if not padding.all() else values
    low, span = inside.min(), np.ptp(inside)
    return np.zeros_like(values) if span == 0 else np.clip((values - low) / span, 0, 1)


def _number(dataset: pydicom.FileDataset, tag: str) -> float | None:
    value = dataset.get(tag)
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return float(value) if value not in (None, "") and np.isfinite(float(value)) else None
