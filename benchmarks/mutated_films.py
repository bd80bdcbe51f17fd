"""Small valid films of every kind the reader knows, and what a hostile or broken sender may do to them.

A case is a function of (seed, number) and of the encoders' versions, nothing else.
"""

import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import pairwise
from random import Random

import numpy as np
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

KINDS = ("PNG", "JPEG", "DICOM")
LENGTHS = (0, 1, 2, 3, 7, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
SIDES = (0, 1, 15, 16, 17, 63, 65, 255, 1000, 6000, 6324, 40000, 65535, 2**31 - 1, 2**32 - 1)
LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
VRS = (*LONG_VRS, b"AE", b"AT", b"CS", b"DS", b"FD", b"IS", b"LO", b"PN", b"SL", b"SS", b"UI", b"UL", b"US", b"zz")
SIZE_MARKS = {"PNG": rb"IHDR(?:....)?", "JPEG": rb"\xff[\xc0-\xc2]...(?:..)?", "DICOM": rb"\x28\0[\x10\x11]\0...."}

Mutation = Callable[[Random, bytes, str], bytes]


@dataclass(frozen=True)
class Case:
    """One mutated film: the kind it was, what was done to it, and its bytes."""

    kind: str
    done: tuple[str, ...]
    data: bytes


def make_case(seed: int, number: int) -> Case:
    """Return the case of this number; the kinds take turns."""
    chance, kind = Random(f"{seed}/{number}"), KINDS[number % len(KINDS)]
    data, done = chance.choice(samples()[kind]), []
    for mutation in chance.choices(MUTATIONS, k=chance.choice((1, 1, 1, 2, 2, 3, 5))):
        data = mutation(chance, data, kind) if data else data
        done.append(mutation.__name__)
    return Case(kind, tuple(done), data)


def _encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    picture.save(stream := BytesIO(), kind, **options)
    return stream.getvalue()


def _dicom(stored: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **tags: object) -> bytes:
    film = Dataset()
    film.SOPClassUID, film.SOPInstanceUID, film.PatientName = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3", "Secret^Person"
    film.SpecificCharacterSet, film.Modality, film.BodyPartExamined = ["ISO_IR 100", "ISO 2022 IR 58"], "DX", "CHEST"
    film.Rows, film.Columns, film.SamplesPerPixel = *stored.shape[:2], 3 if stored.ndim == 3 else 1
    film.PhotometricInterpretation, film.PlanarConfiguration = "RGB" if stored.ndim == 3 else "MONOCHROME2", 0
    bits = 12 if stored.dtype == np.uint16 else 8 * stored.itemsize
    film.BitsAllocated, film.BitsStored, film.HighBit = 8 * stored.itemsize, bits, bits - 1
    film.PixelRepresentation, film.PixelData = int(stored.dtype.kind == "i"), stored.tobytes()
    for tag, value in tags.items():
        setattr(film, tag, value)
    film["PixelData"].VR = "OW" if stored.itemsize == 2 else "OB"
    film["PixelData"].is_undefined_length = "PixelData" in tags
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if syntax == uid.RLELossless else syntax
    if syntax == uid.RLELossless:
        film.compress(syntax, generate_instance_uid=False)
    film.save_as(stream := BytesIO(), enforce_file_format=True)
    return stream.getvalue()


def _table(levels: Iterable[int], *, undefined_length: bool) -> list[Dataset]:
    item = Dataset()
    item.LUTData = list(levels)
    item.LUTDescriptor = [len(item.LUTData), 0, 16]
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    item.is_undefined_length_sequence_item = undefined_length
    return [item]


@cache
def samples() -> dict[str, list[bytes]]:
    """Return the valid films of each kind; no picture of anybody is in them."""
    waves = 127.5 + 60 * np.sin(np.arange(64) / 9) + 60 * np.cos(np.arange(48) / 7)[:, None]
    levels = np.clip(waves + np.random.default_rng(0).normal(0, 5, waves.shape), 0, 255).astype(np.uint8)
    deep, grey = levels.astype(np.uint16) * 16, Image.fromarray(levels)
    rgb, palette = Image.merge("RGB", (grey, grey.rotate(180), grey)), grey.convert("P")
    rgba = Image.merge("RGBA", (*rgb.split(), grey))
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x010F], exif[0x9286] = 6, "Maker", b"ASCII\0\0\0" + bytes(200)
    text.add_text("Comment", "words " * 500, zip=True)
    text.add_itxt("Description", "more words", zip=True)
    extra = {"exif": exif.tobytes(), "icc_profile": bytes(range(256)) * 2}
    shallow = {"PixelData": encapsulate([_encode(grey, "JPEG")])}
    wavelets = {"PixelData": encapsulate([_encode(grey, "JPEG2000", no_jp2=True)])}
    windows = {"WindowCenter": [2000, 1500.5], "WindowWidth": [1500, 9], "RescaleSlope": 1.5, "RescaleIntercept": -3}
    voi = {"VOILUTSequence": _table(range(0, 65536, 16), undefined_length=True)}
    modality = {"ModalityLUTSequence": _table(range(4096, 0, -1), undefined_length=False)}
    png = [grey, Image.fromarray(deep), rgb, rgba, grey.convert("LA"), palette, grey.convert("1")]
    jpeg: list[tuple[Image.Image, dict]] = [(grey, {}), (rgb, {}), (rgb.convert("CMYK"), {}), (rgb, extra)]
    jpeg += [(grey, {"progressive": True}), (rgb, {"progressive": True, "restart_marker_rows": 1, **extra})]
    return {
        "PNG": [_encode(picture, "PNG") for picture in png]
        + [_encode(palette, "PNG", transparency=3, bits=8), _encode(Image.fromarray(deep), "PNG", transparency=900)]
        + [_encode(picture, "PNG", pnginfo=text, **extra) for picture in (grey, rgba)],
        "JPEG": [_encode(picture, "JPEG", **options) for picture, options in jpeg],
        "DICOM": [
            _dicom(deep, **windows),
            _dicom(deep, uid.ImplicitVRLittleEndian, PhotometricInterpretation="MONOCHROME1", **windows),
            _dicom(deep.astype(np.int16) - 2000, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900),
            _dicom(np.asarray(rgb), PlanarConfiguration=0),
            _dicom(deep, WindowCenter=2000, WindowWidth=900, VOILUTFunction="SIGMOID"),
            _dicom(deep, **voi),
            _dicom(deep, uid.ImplicitVRLittleEndian, **modality),
            _dicom(deep, uid.RLELossless),
            _dicom(levels, uid.JPEGBaseline8Bit, **shallow),
            _dicom(levels, uid.JPEG2000Lossless, **wavelets),
        ],
    }


def pieces(data: bytes, kind: str) -> list[bytes]:
    """Cut a file at its chunks, segments or elements; joined they are the file again."""
    if kind == "JPEG":
        return re.split(rb"(?=\xff[\xc0-\xcf\xda-\xfe])", data)
    cuts, end = [0], 8 if kind == "PNG" else 132
    while end < len(data):
        cuts.append(end)
        where, size, head = _length_field(data[end : end + 12], kind)
        length = int.from_bytes(data[end + where : end + where + size], _order(kind))
        end += head + length + (4 if kind == "PNG" else 0)  # its checksum
    return [data[start:end] for start, end in pairwise([*cuts, len(data)])]


def _length_field(piece: bytes, kind: str) -> tuple[int, int, int]:
    """Return where in a piece its length stands, in how many bytes, and where the body begins."""
    if kind != "DICOM":
        return (0, 4, 8) if kind == "PNG" else (2, 2, 4)
    if piece[4:6] in VRS:
        return (8, 4, 12) if piece[4:6] in LONG_VRS else (6, 2, 8)
    return (4, 4, 8)


def _order(kind: str) -> str:
    return "little" if kind == "DICOM" else "big"


def _place(chance: Random, data: bytes) -> int:
    start = 132 if data[128:132] == b"DICM" and chance.random() < 0.95 else 0  # nobody reads the bytes before
    return min(start + chance.randrange(chance.choice((200, 1500, len(data)))), len(data) - 1)  # heads matter most


def flip_bits(chance: Random, data: bytes, kind: str) -> bytes:
    """Flip some bits."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 4, 8, 32))):
        changed[_place(chance, data)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwrite(chance: Random, data: bytes, kind: str) -> bytes:
    """Write over a run of bytes, or put the new ones before it: noise, zeros, ones or one huge number."""
    length, at = chance.choice((1, 2, 4, 8, 60, 500)), _place(chance, data)
    run = chance.choice((chance.randbytes(length), bytes(length), b"\xff" * length, b"\x7f" + b"\xff" * (length - 1)))
    return data[:at] + run + data[at + chance.choice((0, length)) :]


def truncate(chance: Random, data: bytes, kind: str) -> bytes:
    """Cut the end off."""
    return data[: _place(chance, data)]


def append(chance: Random, data: bytes, kind: str) -> bytes:
    """Append noise or another film."""
    return data + chance.choice((chance.randbytes(chance.choice((1, 100, 70_000))), _other(chance, kind)))


def splice(chance: Random, data: bytes, kind: str) -> bytes:
    """Go over into another film in the middle."""
    other = _other(chance, kind)
    return data[: _place(chance, data)] + other[_place(chance, other) :]


def _other(chance: Random, kind: str) -> bytes:
    return chance.choice(samples()[chance.choice((kind, kind, *KINDS))])


def rearrange(chance: Random, data: bytes, kind: str) -> bytes:
    """Drop, double or swap pieces, or take one from another film."""
    parts, strange = pieces(data, kind), pieces(_other(chance, kind), kind)
    here, there = chance.randrange(len(parts)), chance.randrange(len(parts))
    parts[here : here + 1] = chance.choice(
        ([], [parts[here]] * 2, [parts[there]], [parts[here], chance.choice(strange)])
    )
    return b"".join(parts)


def flood(chance: Random, data: bytes, kind: str) -> bytes:
    """Repeat a piece, or its beginning, until it fills up to 4 MiB."""
    parts = pieces(data, kind)
    here = chance.randrange(len(parts))
    part = parts[here][: chance.choice((1, 4, 8, 12, None))]
    parts[here] += part * min(chance.choice((40, 3000, 10**6)), 2**22 // max(len(part), 1))
    return b"".join(parts)


def lie_about_length(chance: Random, data: bytes, kind: str) -> bytes:
    """Change the length of a piece, or the type of an element; a PNG gets the checksum that belongs to the lie."""
    parts, changed = pieces(data, kind), bytearray(data)
    here = chance.randrange(1, max(len(parts), 2))
    at = sum(len(part) for part in parts[:here])
    where, size, head = _length_field(data[at : at + 12], kind)
    true = int.from_bytes(data[at + where : at + where + size], _order(kind))
    length = chance.choice((*LENGTHS, true - 1, true + 1, true // 2, true + 12)) % 256**size
    if kind == "DICOM" and chance.random() < 0.4:
        changed[at + 4 : at + 6] = chance.choice(VRS)
    else:
        changed[at + where : at + where + size] = length.to_bytes(size, _order(kind))
    if kind == "PNG" and (end := at + head + length) + 4 <= len(changed):
        changed[end : end + 4] = zlib.crc32(changed[at + 4 : end]).to_bytes(4)
    return bytes(changed)


def change_inside(chance: Random, data: bytes, kind: str) -> bytes:
    """Change the body of a piece, a PNG's pixels before compression, and keep its length and checksum true."""
    parts = pieces(data, kind)
    here = chance.randrange(1, max(len(parts), 2)) % len(parts)
    where, size, head = _length_field(parts[here], kind)
    start, body = parts[here][:head], parts[here][head : -4 if kind == "PNG" else None]
    mutation, packed = chance.choice((flip_bits, overwrite, truncate)), start[4:8] == b"IDAT" and chance.random() < 0.7
    try:
        body = mutation(chance, (zlib.decompress(body) if packed else body) or b"\0", kind)
    except zlib.error:
        return data
    body = zlib.compress(body) if packed else body
    length = (len(body) + (2 if kind == "JPEG" else 0)) % 256**size
    start = start[:where] + length.to_bytes(size, _order(kind)) + start[where + size :]
    parts[here] = start + body + (zlib.crc32(start[4:] + body).to_bytes(4) if kind == "PNG" else b"")
    return b"".join(parts)


def lie_about_size(chance: Random, data: bytes, kind: str) -> bytes:
    """Change width or height in the header; a PNG gets the checksum that belongs to the lie."""
    found, size = list(re.finditer(SIZE_MARKS[kind], data, re.DOTALL)), 4 if kind == "PNG" else 2
    changed = bytearray(data)
    if found:
        at = chance.choice(found).end() - (chance.choice((0, size)) if kind != "DICOM" else 0)
        changed[at : at + size] = (chance.choice(SIDES) % 256**size).to_bytes(size, _order(kind))
    if kind == "PNG":
        changed[29:33] = zlib.crc32(changed[12:29]).to_bytes(4)
    return bytes(changed)


MUTATIONS: tuple[Mutation, ...] = (
    *(flip_bits, overwrite, truncate, append, splice, rearrange, flood),
    *(lie_about_length, lie_about_length, change_inside, change_inside, lie_about_size),
)
