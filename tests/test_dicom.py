"""DICOM films, each written here: display as a viewer shows them, lies in the header, and no trace of the patient."""

import io
import random
import struct
import time
import warnings

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_windowing
from pydicom.pixels.processing import convert_color_space

from pneumo_lib import images
from pneumo_lib.errors import ImageError

RADIOGRAPH = "1.2.840.10008.5.1.4.1.1.1.1"
RAMP = np.tile(np.arange(64, dtype=np.uint16) * 60 + 100, (48, 1))


def dataset(stored: np.ndarray = RAMP, *, bits: int = 12, **tags) -> Dataset:
    film = Dataset()
    film.SOPClassUID, film.SOPInstanceUID = RADIOGRAPH, "1.2.3"
    film.PatientName, film.PatientID = "Secret^Person", "ID-4711"
    film.Rows, film.Columns = stored.shape[:2]
    film.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    film.PhotometricInterpretation = "RGB" if stored.ndim == 3 else "MONOCHROME2"
    film.PlanarConfiguration = 0
    film.BitsAllocated, film.BitsStored, film.HighBit = 8 * stored.itemsize, bits, bits - 1
    film.PixelRepresentation = int(stored.dtype.kind == "i")
    film.PixelData = stored.tobytes()
    for tag, value in tags.items():
        setattr(film, tag, value)
    return film


def encode(film: Dataset, syntax: str = uid.ExplicitVRLittleEndian, *, file_class: str = RADIOGRAPH) -> bytes:
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax
    film.file_meta.MediaStorageSOPClassUID, film.file_meta.MediaStorageSOPInstanceUID = file_class, "1.2.3"
    if uid.UID(syntax).is_encapsulated:
        film["PixelData"].VR = "OB"
        film["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    film.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def read(*args, **tags) -> np.ndarray:
    return images.read(encode(dataset(*args, **tags)))


def code_of(data: bytes, **options) -> str:
    with pytest.raises(ImageError) as caught:
        images.read(data, **options)
    assert str(caught.value).endswith(f"{images.HINTS[caught.value.code]}.")
    return caught.value.code


def unit(values: np.ndarray) -> np.ndarray:
    values = values.astype(float)
    return (values - values.min()) / np.ptp(values)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_without_window_the_range_is_used(syntax):
    film = images.open_film(encode(dataset(), syntax))
    assert (film.kind, film.bits, film.pixels.dtype) == ("DICOM", 12, np.float32)
    np.testing.assert_allclose(film.pixels, unit(RAMP), atol=1e-6)
    assert film.notes == ("no window in the file: darkest pixel black, brightest white",)


def test_monochrome1_is_inverted():
    film = images.open_film(encode(dataset(PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_allclose(film.pixels, 1 - unit(RAMP), atol=1e-6)
    assert "inverted (MONOCHROME1)" in film.notes


def test_inversion_follows_rescale_and_window():
    tags = {"RescaleSlope": 2, "RescaleIntercept": -500, "WindowCenter": 2000, "WindowWidth": 1000}
    plain = read(**tags)
    np.testing.assert_allclose(read(PhotometricInterpretation="MONOCHROME1", **tags), 1 - plain, atol=1e-6)
    assert plain.min() == 0 and plain.max() == 1 and 0.2 < plain.mean() < 0.9


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(2000, 1500), (1500.5, 1), (300, 4096)])
def test_window_agrees_with_pydicom(function, center, width):
    film = dataset(WindowCenter=center, WindowWidth=width)
    if function:
        film.VOILUTFunction = function
    with np.errstate(over="ignore"):
        expected = apply_windowing(RAMP, film) / 4095
    np.testing.assert_allclose(images.read(encode(film)), expected, atol=1e-4)


def test_first_of_several_windows():
    np.testing.assert_array_equal(
        read(WindowCenter=[2000, 50], WindowWidth=[1500, 5]), read(WindowCenter=2000, WindowWidth=1500)
    )


def test_slope_without_intercept_moves_the_window():
    np.testing.assert_allclose(
        read(RescaleSlope=0.5, WindowCenter=1000.25, WindowWidth=750.5),
        read(WindowCenter=2000, WindowWidth=1500),
        atol=1e-4,
    )


@pytest.mark.parametrize("window", [{"WindowCenter": 5}, {"WindowCenter": 5, "WindowWidth": 0}])
def test_unusable_window_is_not_used(window):
    np.testing.assert_allclose(read(**window), unit(RAMP), atol=1e-6)


def test_signed_pixels():
    stored = (RAMP.astype(np.int16) - 2000).astype(np.int16)
    np.testing.assert_allclose(read(stored, bits=16), unit(stored), atol=1e-6)


@pytest.mark.parametrize(("stored", "padding"), [(RAMP, 4000), (RAMP.astype(np.int16), -2000)])
@pytest.mark.parametrize("colours", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_outside_the_range(stored, padding, colours):
    padded = stored.copy()
    padded[:10] = padding
    pixels = read(padded, bits=16, PixelPaddingValue=padding, PhotometricInterpretation=colours)
    np.testing.assert_array_equal(pixels[:10], 0)
    assert pixels[10:].min() == 0 and pixels[10:].max() == 1


def test_padding_range():
    padded = RAMP.copy()
    padded[:5], padded[5:10] = 0, 50
    pixels = read(padded, PixelPaddingValue=0, PixelPaddingRangeLimit=60)
    np.testing.assert_allclose(pixels[10:], unit(RAMP[10:]), atol=1e-6)


def table(first: int, levels: list[int]) -> Dataset:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(levels), first, 16], levels
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return item


def test_voi_table():
    film = dataset(VOILUTSequence=[table(0, [level * 16 for level in range(4096)])])
    np.testing.assert_allclose(images.read(encode(film)), RAMP * 16 / 65535, atol=1e-6)


def test_modality_table():
    film = dataset(ModalityLUTSequence=[table(0, list(range(4095, -1, -1)))])
    np.testing.assert_allclose(images.read(encode(film)), 1 - unit(RAMP), atol=1e-6)


@pytest.mark.parametrize("colours", ["RGB", "YBR_FULL"])
def test_colour_becomes_luminance(colours):
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    stored = rgb if colours == "RGB" else convert_color_space(rgb, "RGB", "YBR_FULL")
    film = images.open_film(encode(dataset(stored, bits=8, PhotometricInterpretation=colours)))
    np.testing.assert_allclose(film.pixels, rgb @ [0.299, 0.587, 0.114] / 255, atol=0.01)
    assert film.notes == ("colour converted to luminance",)


@pytest.mark.parametrize("level", [0, 700])
def test_constant_film_is_constant(level):
    assert np.ptp(read(np.full((20, 20), level, np.uint16))) == 0


def coded(kind: str, picture: np.ndarray, **tags) -> Dataset:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind, **({"no_jp2": True} if kind == "JPEG2000" else {"quality": 95}))
    return dataset(picture, bits=8, **{"PixelData": encapsulate([stream.getvalue()]), **tags})


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG", uid.JPEGBaseline8Bit), ("JPEG2000", uid.JPEG2000Lossless)])
def test_compressed_films(kind, syntax):
    picture = (RAMP // 16).astype(np.uint8)
    film = images.open_film(encode(coded(kind, picture), syntax))
    np.testing.assert_allclose(film.pixels, unit(picture), atol=0.03)


def test_run_length_encoded_film():
    film = dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    film.compress(uid.RLELossless)
    np.testing.assert_allclose(images.read(encode(film, uid.RLELossless)), unit(RAMP), atol=1e-6)


def runs(*parts: bytes) -> Dataset:
    """A film of 64 x 64 bytes in run-length encoding, one part after the other."""
    starts = [64 + sum(len(part) for part in parts[:index]) for index in range(len(parts))]
    head = struct.pack("<16L", len(parts), *starts, *[0] * (15 - len(parts)))
    return dataset(np.zeros((64, 64), np.uint8), bits=8, PixelData=encapsulate([head + b"".join(parts)]))


def jpeg_frame(*, scans: int = 0, comments: int = 0) -> Dataset:
    stream = io.BytesIO()
    Image.fromarray((RAMP // 16).astype(np.uint8)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    data = data[:2] + b"\xff\xfe\0\2" * comments + data[2:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]
    return dataset((RAMP // 16).astype(np.uint8), bits=8, PixelData=encapsulate([data]))


def fragments(count: int) -> Dataset:
    film = jpeg_frame()
    film.PixelData = film.PixelData + b"\xfe\xff\0\xe0\0\0\0\0" * count
    return film


@pytest.mark.parametrize(
    ("film", "syntax", "code"),
    [
        (runs(b"\x81\0" * 32), uid.RLELossless, None),
        (runs(b"\x80\x81\0" * 32), uid.RLELossless, None),
        (runs(b"\x81\0" * 100_000), uid.RLELossless, "bad_header"),  # 16 MB became 1 GB
        (runs(b"\x80" * 100_000), uid.RLELossless, "bad_header"),
        (runs(b"", b"\x81\0" * 32), uid.RLELossless, "damaged"),
        (jpeg_frame(scans=20), uid.JPEGBaseline8Bit, None),
        (jpeg_frame(scans=40), uid.JPEGBaseline8Bit, "damaged"),
        (jpeg_frame(comments=20_000), uid.JPEGBaseline8Bit, "damaged"),
        (fragments(900), uid.JPEGBaseline8Bit, None),
        (fragments(11_000), uid.JPEGBaseline8Bit, "damaged"),
    ],
)
def test_compressed_frames_that_only_make_work(film, syntax, code):
    if code:
        assert code_of(encode(film, syntax)) == code
    else:
        assert images.read(encode(film, syntax)).shape == (film.Rows, film.Columns)


def test_overlapping_runs_are_a_lie():
    film = runs(b"\x81\0" * 32, b"")
    film.PixelData = film.PixelData.replace(struct.pack("<3L", 2, 64, 128), struct.pack("<3L", 2, 128, 64))
    assert code_of(encode(film, uid.RLELossless)) == "bad_header"


@pytest.mark.parametrize("offsets", [True, False])
def test_the_first_of_compressed_frames_that_the_header_does_not_count(offsets):
    film = jpeg_frame()
    frame = get_frame(film.PixelData, 0, number_of_frames=1)
    film.PixelData = encapsulate([frame, frame], has_bot=offsets)
    assert images.read(encode(film, uid.JPEGBaseline8Bit)).shape == RAMP.shape


def test_compressed_frame_of_another_size_is_a_lie():
    film = coded("JPEG", np.zeros((300, 300), np.uint8), Rows=30, Columns=30)
    assert code_of(encode(film, uid.JPEGBaseline8Bit)) == "bad_header"


@pytest.mark.parametrize(
    ("syntax", "name"), [(uid.JPEGLSLossless, "JPEG-LS"), (uid.JPEGLossless, "JPEG Lossless, Non-Hier")]
)
def test_missing_codec_names_the_extra(syntax, name):
    film = dataset(PixelData=encapsulate([b"\xff\xd8\xff\xf7" + bytes(60)]))
    with pytest.raises(ImageError, match=rf"{name}.*pip install -e '\.\[dicom-codecs\]'") as caught:
        images.read(encode(film, syntax))
    assert caught.value.code == "codec"


def test_twelve_bit_jpeg_is_a_missing_codec():
    film = coded("JPEG", np.zeros((30, 30), np.uint8), BitsAllocated=16, BitsStored=12, HighBit=11)
    assert code_of(encode(film, uid.JPEGExtended12Bit)) == "codec"


def test_deflated_file_is_refused_before_it_is_unpacked():
    assert code_of(encode(dataset(), uid.DeflatedExplicitVRLittleEndian)) == "codec"


def without(*tags: str) -> Dataset:
    film = dataset()
    for tag in tags:
        delattr(film, tag)
    return film


@pytest.mark.parametrize(
    ("film", "code"),
    [
        (without("PixelData"), "no_pixels"),
        (without("PixelData", "Rows", "Columns"), "no_pixels"),
        (without("Rows"), "bad_header"),
        (without("BitsStored"), "bad_header"),
        (dataset(Rows=0), "bad_header"),
        (dataset(Rows=6000, Columns=6000), "bad_header"),
        (dataset(Rows=24), "bad_header"),
        (dataset(Rows=60000, Columns=60000), "too_many_pixels"),
        (dataset(Rows=8), "too_small"),
        (dataset(Rows=16, Columns=96), "odd_shape"),
        (dataset(BitsStored=17), "bad_header"),
        (dataset(SamplesPerPixel=3), "bad_header"),
        (dataset(PhotometricInterpretation="PALETTE COLOR"), "photometric"),
        (dataset(NumberOfFrames=3), "several_frames"),
        (dataset(SOPClassUID=uid.BasicTextSRStorage), "not_a_film"),
        (dataset(SOPClassUID=uid.EncapsulatedPDFStorage), "not_a_film"),
        (dataset(RescaleSlope="1e300", RescaleIntercept=0), "bad_header"),
        (dataset(RescaleSlope=0), "bad_header"),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_each_fault_has_its_code(film, code):
    assert code_of(encode(film)) == code


def test_dicomdir():
    film = without("PixelData", "SOPClassUID", "SOPInstanceUID")
    assert code_of(encode(film, file_class=uid.MediaStorageDirectoryStorage)) == "not_a_film"


@pytest.mark.filterwarnings("ignore:Unexpected end of file")
def test_half_a_file_is_incomplete():
    whole = encode(dataset())
    assert code_of(whole[: len(whole) // 2]) == "incomplete"
    assert code_of(whole[:200]) == "no_pixels"


def test_never_forced():
    assert code_of(encode(dataset())[132:]) == "not_an_image"
    assert code_of(bytes(128) + b"DICM" + random.Random(0).randbytes(5000)) in ("no_pixels", "damaged", "bad_header")


def element(tag: int, value: bytes, kind: bytes = b"UN\0\0") -> bytes:
    length = struct.pack("<L" if len(kind) == 4 else "<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind + length + value


def nested(count: int, inside: bytes = b"") -> bytes:
    """A sequence of unknown length with many items, among what a film has no use for."""
    item = b"\xfe\xff\0\xe0" + struct.pack("<L", len(inside)) + inside
    return b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + item * count + b"\xfe\xff\xdd\xe0\0\0\0\0"


def with_element(extra: bytes, before: int = 0x00280002, **tags) -> bytes:
    data = encode(dataset(**tags))
    at = data.index(struct.pack("<HH", before >> 16, before & 0xFFFF))
    return data[:at] + extra + data[at:]


ITEMS = b"\xfe\xff\0\xe0\0\0\0\0" * 20_000
ENCODINGS = "\\".join(f"NONE {number}" for number in range(40)).encode()
HEADERS = {
    "elements": with_element(element(0x00080001, b"", b"LO") * 20_000),
    "items": with_element(nested(20_000)),  # 16 MB of each took more than a minute
    "encodings": with_element(element(0x00080005, b"A\\" * 10_000)),
    "encodings in items": with_element(nested(2_000, element(0x00080005, ENCODINGS, b"CS"))),
    "windows": with_element(element(0x00281050, b"1\\" * 10_000)),
    "items of a table": with_element(element(0x00283010, ITEMS, b"SQ\0\0"), before=0x7FE00010),
    "a table in itself": with_element(b"\x28\0\x10\x30SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 9999),
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.filterwarnings("ignore:Unknown encoding")
def test_headers_that_only_make_work(kind):
    started = time.process_time()
    assert code_of(HEADERS[kind]) in ("damaged", "bad_header")
    assert time.process_time() - started < 2


def test_long_private_elements_and_many_honest_ones_are_no_fault():
    extra = element(0x00091001, bytes(range(256)) * 400) + element(0x00091002, b"text", b"LO") * 2_000
    np.testing.assert_array_equal(images.read(with_element(extra + nested(300))), read())


def test_facts_identify_nobody():
    film = images.open_film(encode(dataset(Modality="DX", ViewPosition="PA", BurnedInAnnotation="YES")))
    assert film.facts == {"Modality": "DX", "ViewPosition": "PA", "BurnedInAnnotation": "YES"}
    assert "text burned into the picture may name the patient" in film.notes


def careless(**tags) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom dislikes the values as much as we do
        return encode(dataset(**tags))


def test_free_text_in_a_code_field_is_dropped_and_repeated_nowhere(recwarn, caplog):
    data = careless(Modality="DX", BodyPartExamined="Secret Person", ViewPosition="")
    caplog.clear()
    assert images.open_film(data).facts == {"Modality": "DX"}
    assert not recwarn.list and not caplog.records


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encode(dataset(Rows=0)), "bad_header"),
        (encode(dataset(NumberOfFrames=3)), "several_frames"),
        (encode(without("PixelData")), "no_pixels"),
        (careless(WindowWidth=1, WindowCenter="5").replace(b"DS\x02\x005 ", b"LO\x02\x00ID"), "damaged"),
        (careless(PhotometricInterpretation="PN Secret^Person 4711"), "photometric"),
    ],
)
def test_errors_do_not_name_the_patient(data, code):
    with pytest.raises(ImageError) as caught:
        images.read(data)
    assert caught.value.code == code
    assert "Secret" not in str(caught.value) and "4711" not in str(caught.value) and "'ID'" not in str(caught.value)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_a_wrong_length_does_not_spill_the_patient(syntax, recwarn, caplog):
    whole = encode(dataset(SpecificCharacterSet="ISO_IR 100"), syntax)
    marks = [b"\x02\0\x02\0UI", b"\x02\0\x03\0UI", b"\x02\0\x10\0UI", b"\x08\0\5\0", b"\x08\0\x16\0"]
    for mark in marks:  # pydicom quotes what it cannot read in a warning, which a server would log
        at = whole.index(mark) + (4 if mark[0] == 8 and syntax == uid.ImplicitVRLittleEndian else 6)
        for length in (60, 100, 200, 2000):
            with pytest.raises(ImageError) as caught:
                images.read(whole[:at] + struct.pack("<H", length) + whole[at + 2 :])
            assert "Secret" not in str(caught.value)
    assert "Secret" not in caplog.text + "".join(str(warning.message) for warning in recwarn)


VALID = {
    "plain": encode(dataset(WindowCenter=2000, WindowWidth=1500, RescaleSlope=1, RescaleIntercept=0)),
    "signed padded": encode(dataset(RAMP.astype(np.int16), bits=16, PixelPaddingValue=-5)),
    "jpeg": encode(coded("JPEG", RAMP.astype(np.uint8)), uid.JPEGBaseline8Bit),
    "jpeg 2000": encode(coded("JPEG2000", RAMP.astype(np.uint8)), uid.JPEG2000),
    "table": encode(dataset(VOILUTSequence=[table(0, list(range(4096)))])),
}


@pytest.mark.parametrize("kind", VALID)
@pytest.mark.filterwarnings("ignore")
def test_mutated_files_give_a_valid_film_or_an_image_error(kind):
    chance = random.Random(len(kind))
    outcomes = set()
    for _ in range(150):
        changed = bytearray(VALID[kind])
        head = min(len(changed), 1200)  # most faults that matter lie in the header
        for _ in range(chance.randrange(1, 6)):
            changed[chance.randrange(132, head)] = chance.randrange(256)
        try:
            data = bytes(changed[: chance.randrange(140, len(changed))] if chance.random() < 0.2 else changed)
            pixels = images.read(data, max_pixels=100_000)
        except ImageError as fault:
            outcomes.add(fault.code)
        else:
            assert pixels.dtype == np.float32 and pixels.ndim == 2 and 0 <= pixels.min() <= pixels.max() <= 1
    assert len(outcomes) > 1 and outcomes <= set(images.HINTS)
