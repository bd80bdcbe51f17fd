"""DICOM films to the grey levels that a viewer shows, without ever parsing who the patient is."""

import re
from io import BytesIO

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, apply_voi, get_decoder, pixel_array
from pydicom.pixels.utils import get_expected_length

from pneumo_lib.errors import ImageError

_FACTS = ("Modality", "BodyPartExamined", "ViewPosition", "PresentationIntentType", "BurnedInAnnotation")
_HEADER = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel")
_DISPLAY = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
_PIXELS = ("PhotometricInterpretation", "HighBit", "PlanarConfiguration", "NumberOfFrames", "PixelData", "SOPClassUID")
_TAGS = [*_FACTS, *_HEADER, *_DISPLAY, *_PIXELS, "VOILUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit"]
# UIDs of what is DICOM but no picture: directories, structured reports, encapsulated documents.
_DOCUMENTS = ("1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.104.")
_PILLOW_SYNTAXES = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000, uid.JPEG2000Lossless)


def open_dataset(data: bytes) -> pydicom.FileDataset:
    """Read the tags needed for display; the others, the names among them, are never parsed.

    Args:
        data: a whole DICOM file, with its preamble.

    Returns:
        A data set with one still undecoded frame, whose header does not contradict itself.

    Raises:
        ImageError: no picture inside, several frames, an unknown colour model or a header that cannot be true.
    """
    if uid.DeflatedExplicitVRLittleEndian.encode() in data:  # pydicom would unpack it without any limit
        raise ImageError("found a deflated DICOM file, which is not read", code="codec")
    dataset = pydicom.dcmread(BytesIO(data), specific_tags=_TAGS)
    kind = uid.UID(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind.startswith(_DOCUMENTS):
        raise ImageError(f"found a DICOM file of the type '{kind.name}', which is no picture", code="not_a_film")
    if "PixelData" not in dataset:
        raise ImageError("the DICOM file holds no pixel data, or ends before it", code="no_pixels")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ImageError(f"found a DICOM file of {dataset.NumberOfFrames} frames", code="several_frames")
    _check_header(dataset)
    return dataset


def facts(dataset: pydicom.FileDataset) -> dict[str, str]:
    """Return modality, body part and view as far as they are DICOM code strings, which identify nobody."""
    found = {tag: str(dataset.get(tag) or "") for tag in _FACTS}
    return {tag: text for tag, text in found.items() if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text)}


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


def _check_header(dataset: pydicom.FileDataset) -> None:
    unusable = [tag for tag in _HEADER if not isinstance(dataset.get(tag), int)]
    if unusable:
        raise ImageError(f"the DICOM header has no usable {', '.join(unusable)}", code="bad_header")
    if not (dataset.Rows and dataset.Columns and 1 <= dataset.BitsStored <= dataset.BitsAllocated):
        found = f"{dataset.Columns} x {dataset.Rows} pixels, {dataset.BitsStored} of {dataset.BitsAllocated} bits"
        raise ImageError(f"the DICOM header says {found}", code="bad_header")
    colours = str(dataset.get("PhotometricInterpretation"))
    if not colours.startswith(("MONOCHROME", "RGB", "YBR")):
        raise ImageError(f"found {colours} pixels", code="photometric")
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
        return pixel_array(dataset)
    if syntax.is_private or not get_decoder(syntax).is_available:
        raise ImageError(f"no decoder is installed for '{syntax.name}'", code="codec")
    if syntax in _PILLOW_SYNTAXES:
        _check_frame(dataset)
    try:
        return pixel_array(dataset)
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
    if present < expected:
        raise ImageError(found, code="bad_header")


def _check_frame(dataset: pydicom.FileDataset) -> None:
    # The compressed frame carries its own size, and the decoder believes that one.
    coded = BytesIO(get_frame(dataset.PixelData, 0, number_of_frames=1))
    with Image.open(coded, formats=("JPEG", "JPEG2000")) as frame:
        if frame.size != (dataset.Columns, dataset.Rows):
            found = f"the header says {dataset.Columns} x {dataset.Rows} pixels, the compressed picture {frame.size}"
            raise ImageError(found, code="bad_header")


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
