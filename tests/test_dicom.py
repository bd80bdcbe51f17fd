"""DICOM films, each written here: display as a viewer shows them, lies in the header, and no trace of the patient."""

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
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


def test_compressed_frame_of_another_size_is_a_lie():
    film = coded("JPEG", np.zeros((300, 300), np.uint8), Rows=30, Columns=30)
    assert code_of(encode(film, uid.JPEGBaseline8Bit)) == "bad_header"


def test_missing_codec_names_the_extra():
    film = dataset(PixelData=encapsulate([b"\xff\xd8\xff\xf7" + bytes(60)]))
    with pytest.raises(ImageError, match=r"JPEG-LS.*pip install -e '\.\[dicom-codecs\]'") as caught:
        images.read(encode(film, uid.JPEGLSLossless))
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


def test_facts_identify_nobody():
    film = images.open_film(encode(dataset(Modality="DX", ViewPosition="PA", BurnedInAnnotation="YES")))
    assert film.facts == {"Modality": "DX", "ViewPosition": "PA", "BurnedInAnnotation": "YES"}
    assert "text burned into the picture may name the patient" in film.notes


def test_free_text_in_a_code_field_is_dropped():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom dislikes the value as much as we do
        data = encode(dataset(Modality="DX", BodyPartExamined="Secret Person"))
    assert images.open_film(data).facts == {"Modality": "DX"}


def test_errors_do_not_name_the_patient():
    for film in (dataset(Rows=0), dataset(NumberOfFrames=3), without("PixelData")):
        with pytest.raises(ImageError) as caught:
            images.read(encode(film))
        assert "Secret" not in str(caught.value) and "4711" not in str(caught.value)


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
