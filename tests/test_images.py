"""Every kind of picture file, each made here, and every way in which one can be wrong."""

import io
import random
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from pneumo_lib import images
from pneumo_lib.errors import DataError, ImageError, UsageError

RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))


def encode(picture: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Write a PNG by hand, for the layouts and the lies that Pillow does not write."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def code_of(source, **options) -> str:
    with pytest.raises(ImageError) as caught:
        images.open_film(source, **options)
    return caught.value.code


def test_read_gives_float32_in_unit_range(tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(encode(RAMP))
    pixels = images.read(path)
    assert pixels.dtype == np.float32 and pixels.shape == (48, 64)
    np.testing.assert_array_equal(pixels, RAMP.astype(np.float32) / 255)


def test_all_sources_give_the_same(tmp_path):
    data = encode(RAMP)
    path = tmp_path / "肺 炎.png"
    path.write_bytes(data)
    sources = (str(path), path, bytearray(data), memoryview(data), io.BytesIO(data), path.open("rb"))
    for source in sources:
        np.testing.assert_array_equal(images.read(source), images.read(data))


def test_content_decides_not_the_name(tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(encode(RAMP, "JPEG"))
    assert images.open_film(path).kind == "JPEG"


def test_sixteen_bit_ramp_keeps_every_level():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    film = images.open_film(encode(ramp))
    assert film.bits == 16 and len(np.unique(film.pixels)) == 65536
    np.testing.assert_allclose(film.pixels, ramp / 65535, atol=1e-6)


@pytest.mark.parametrize("used", [8, 10, 12, 14, 16])
def test_sixteen_bit_file_is_scaled_by_the_bits_used(used):
    film = images.open_film(encode(np.linspace(0, 2**used - 1, 4096).astype(np.uint16).reshape(64, 64)))
    assert film.pixels.min() == 0 and film.pixels.max() == 1
    assert film.notes == (f"16-bit file, {used} bits used: grey levels divided by {2**used - 1}",)


def test_palette_gives_colours_not_indices():
    picture = Image.fromarray((RAMP // 4).astype(np.uint8)).convert("P")
    picture.putpalette([level for index in range(256) for level in [255 - index] * 3])
    film = images.open_film(encode(picture))
    np.testing.assert_allclose(film.pixels, 1 - (RAMP // 4) / 255, atol=1e-6)
    assert film.notes == ("palette converted to grey levels",)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_composited_on_black(mode):
    picture = Image.new("L", (40, 40), 255).convert(mode)
    alpha = np.zeros((40, 40), np.uint8)
    alpha[:20] = 255
    alpha[20:30] = 128
    picture.putalpha(Image.fromarray(alpha))
    film = images.open_film(encode(picture))
    np.testing.assert_allclose(film.pixels[[0, 25, 39], 0], [1, 128 / 255, 0], atol=1e-6)
    assert film.notes == ("transparent areas composited on black",)


def test_opaque_alpha_needs_no_note():
    assert images.open_film(encode(Image.fromarray(RAMP).convert("RGBA"))).notes == ()


@pytest.mark.parametrize(
    ("picture", "transparent"),
    [
        (Image.new("L", (32, 32), 200), 200),
        (Image.new("RGB", (32, 32), (200, 200, 200)), (200, 200, 200)),
        (Image.fromarray(np.full((32, 32), 7, np.uint8)).convert("P"), 7),
        (Image.fromarray(np.full((32, 32), 60000, np.uint16)), 60000),
    ],
)
def test_transparent_colour_is_black(picture, transparent):
    film = images.open_film(encode(picture, transparency=transparent))
    assert film.pixels.max() == 0 and "transparent areas composited on black" in film.notes


def cmyk_ramp(*, invert: bool = False) -> bytes:
    inks = np.zeros((48, 64, 4), np.uint8)
    inks[..., 3] = RAMP
    return encode(Image.frombytes("CMYK", (64, 48), (255 - inks if invert else inks).tobytes()), "JPEG", quality=100)


def test_cmyk_of_adobe():
    film = images.open_film(cmyk_ramp())
    np.testing.assert_allclose(film.pixels, 1 - RAMP / 255, atol=0.02)
    assert film.notes == ("printing inks (CMYK) converted to grey levels",)


def test_cmyk_without_adobe_marker_is_not_inverted():
    data = cmyk_ramp(invert=True)  # Pillow writes Adobe's inversion, so these samples are the plain amounts of ink
    start = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[start + 2 : start + 4])[0]
    plain = data[:start] + data[start + 2 + length :]
    np.testing.assert_allclose(images.read(plain), 1 - RAMP / 255, atol=0.02)


def test_one_bit():
    film = images.open_film(encode(Image.fromarray(RAMP > 128)))
    assert set(np.unique(film.pixels)) == {0, 1} and film.bits == 1
    assert film.notes == ("only two grey levels (1 bit per pixel)",)


@pytest.mark.parametrize("depth", [2, 4])
def test_few_bits_fill_the_range(depth):
    film = images.open_film(png(32, 16, depth=depth, colour=0, rows=(b"\0" + b"\xff" * (4 * depth)) * 16))
    assert film.bits == depth and film.pixels.min() == 1


def test_deep_colour_says_that_bits_are_lost():
    film = images.open_film(png(16, 16, depth=16, colour=2, rows=(b"\0" + b"\x80\x01" * 48) * 16))
    assert film.notes == ("16-bit samples reduced to 8 bits (colour or alpha)",)
    np.testing.assert_allclose(film.pixels, 128 / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_colour_is_noted_and_grey_rgb_is_not(kind):
    colour = np.zeros((32, 32, 3), np.uint8)
    colour[..., 1] = 255
    film = images.open_film(encode(colour, kind))
    assert film.notes == ("colour converted to luminance",)
    np.testing.assert_allclose(film.pixels, 0.587, atol=0.003)
    np.testing.assert_array_equal(images.read(encode(colour, kind)), film.pixels)
    assert images.open_film(encode(Image.fromarray(RAMP).convert("RGB"), "JPEG")).notes == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).T),
        (8, np.rot90),
    ],
)
def test_exif_rotation(kind, orientation, upright):
    film = images.open_film(encode(RAMP, kind, exif=with_orientation(orientation)))
    np.testing.assert_allclose(film.pixels, upright(RAMP) / 255, atol=0.03)
    assert film.notes == ("rotated by its EXIF tag",)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_that_says_upright_or_nonsense():
    assert images.open_film(encode(RAMP, "JPEG", exif=with_orientation(1))).notes == ()
    broken = encode(RAMP, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert images.read(broken).shape == RAMP.shape


@pytest.mark.parametrize("level", [0, 77, 255])
def test_constant_picture(level):
    np.testing.assert_allclose(images.read(encode(np.full((20, 20), level, np.uint8))), level / 255, atol=1e-6)


HALF_JPEG = encode(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8), "JPEG")
HALF_PNG = encode(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8))
FRAMES = [Image.new("L", (40, 40), 80 * index) for index in range(3)]
FAULTS = {
    "empty": (b"", "0 bytes"),
    "incomplete": (HALF_JPEG[: len(HALF_JPEG) // 2], "truncated"),
    "damaged": (HALF_PNG[:60] + b"\xff\xff\xff" + HALF_PNG[63:], "PNG cannot be decoded"),
    "several_frames": (encode(FRAMES[0], save_all=True, append_images=FRAMES[1:]), "3 frames"),
    "too_small": (encode(RAMP[:10]), "64 x 10"),
    "odd_shape": (encode(np.zeros((16, 65), np.uint8)), "65 x 16"),
    "too_many_pixels": (png(30000, 30000, depth=1, colour=0, rows=b""), "900,000,000"),
    "not_an_image": (b"patient 12, see enclosed", "plain text"),
}


@pytest.mark.parametrize("code", FAULTS)
def test_each_fault_has_its_code_and_says_what_to_do(code):
    data, found = FAULTS[code]
    with pytest.raises(ImageError) as caught:
        images.read(data, name="ward 3/film.png")
    message = str(caught.value)
    assert caught.value.code == code
    assert message.startswith("ward 3/film.png: ") and found in message and message.endswith(f"{images.HINTS[code]}.")


def test_truncated_png_is_incomplete():
    assert {code_of(HALF_PNG[:length]) for length in (8, 30, 500, len(HALF_PNG) // 2)} == {"incomplete"}


def test_truncated_jpeg_is_incomplete():
    assert {code_of(HALF_JPEG[:length]) for length in (3, 30, 500, len(HALF_JPEG) - 300)} == {"incomplete"}


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (encode(RAMP, "GIF"), "GIF"),
        (encode(RAMP, "TIFF"), "TIFF"),
        (encode(RAMP, "BMP"), "bitmap"),
        (encode(RAMP, "WEBP"), "WebP"),
        (encode(RAMP, "JPEG2000", no_jp2=True), "JPEG 2000"),
        (b"%PDF-1.7\n", "PDF"),
        (b"PK\x03\x04" + bytes(30), "ZIP"),
        (b"\x7fELF" + bytes(30), "program"),
        (b"<!DOCTYPE html><p>404", "web page"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("肺炎".encode("gbk"), "plain text"),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", "without its 128-byte preamble"),
        (b"\x01\x02\x03", "01 02 03"),
    ],
)
def test_foreign_content_is_named(tmp_path, data, found):
    path = tmp_path / "film.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=found) as caught:
        images.read(path)
    assert caught.value.code == "not_an_image"
    assert all(word in str(caught.value) for word in (str(path), "JPEG", "PNG", "DICOM"))


def multiplied(kind: str) -> bytes:
    return encode(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])


def packed(name: bytes, megabytes: int) -> bytes:
    return chunk(name, b"name\0\0" + zlib.compress(bytes(megabytes * 10**6), 9))


GREY_ROWS = b"\0" * 17 * 16  # of 16 x 16 pixels, each row with the number of its filter
MORE_FAULTS = [
    ("not_an_image", multiplied("GIF"), "GIF"),
    ("not_an_image", multiplied("TIFF"), "TIFF"),
    ("too_small", encode(np.zeros((1, 1), np.uint8)), "1 x 1"),
    ("too_small", encode(np.zeros((2000, 8), np.uint8)), "8 x 2000"),
    ("too_many_pixels", png(9000, 9000, depth=1, colour=0, rows=b""), "81,000,000"),
    ("damaged", png(16, 16, depth=8, colour=0, rows=GREY_ROWS, extra=packed(b"zTXt", 1) * 80), "MAX_TEXT_MEMORY"),
    ("damaged", png(16, 16, depth=8, colour=0, rows=GREY_ROWS, extra=packed(b"iCCP", 64)), "too large"),
]


@pytest.mark.parametrize(("code", "data", "found"), MORE_FAULTS)
def test_more_faults_of_the_same_codes(code, data, found):
    with pytest.raises(ImageError, match=found) as caught:
        images.read(data)
    assert caught.value.code == code


PIECES = {
    "chunks": HALF_PNG[:33] + chunk(b"abCd") * 20_000 + HALF_PNG[33:],
    "chunks after the pixels": HALF_PNG[:-12] + chunk(b"abCd") * 20_000 + HALF_PNG[-12:],
    "empty pixel chunks": HALF_PNG[:33] + chunk(b"IDAT") * 20_000 + HALF_PNG[33:],
    "comments": HALF_JPEG[:2] + b"\xff\xfe\0\2" * 20_000 + HALF_JPEG[2:],
    "fill bytes": HALF_JPEG[:2] + b"\xff" * 20_000 + HALF_JPEG[2:],
}


@pytest.mark.parametrize("pieces", PIECES)
def test_a_file_of_nothing_but_small_pieces_is_damaged(pieces):
    with pytest.raises(ImageError, match="too many small pieces") as caught:  # 16 MB of them took up to 9 s
        images.read(PIECES[pieces])
    assert caught.value.code == "damaged"


def test_pixels_in_many_small_chunks_are_no_fault():
    start = HALF_PNG.index(b"IDAT") - 4
    body = b"".join(HALF_PNG[at + 8 : at + 8 + size] for at, size in idat_chunks(HALF_PNG))
    small = b"".join(chunk(b"IDAT", body[at : at + 200]) for at in range(0, len(body), 200))
    assert len(body) > 30_000
    np.testing.assert_array_equal(images.read(HALF_PNG[:start] + small + HALF_PNG[-12:]), images.read(HALF_PNG))


def idat_chunks(data: bytes):
    at = 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            yield at, size
        at += 12 + size


def test_many_scans_over_one_picture_are_damage():
    data = encode(RAMP, "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    np.testing.assert_array_equal(images.read(data[:-2] + scan * 20 + data[-2:]).shape, RAMP.shape)
    for between in (b"", b"\xff\xfe\0\4\xff\xd9", b"\xff\x01"):  # a comment with an end in it, a mark without length
        with pytest.raises(ImageError, match="more than 32 scans") as caught:  # 400 on 40 million pixels took 18 s
            images.read(data[:-2] + (between + scan) * 40 + data[-2:])
        assert caught.value.code == "damaged"


def test_what_looks_like_scans_in_a_comment_or_behind_the_end_is_none():
    marks = b"\xff\xda\0\2" * 100
    data = encode(RAMP, "JPEG", comment=marks) + marks
    assert data.count(b"\xff\xda") > 200 and images.read(data).shape == RAMP.shape


def test_too_little_memory_is_said(monkeypatch):
    def load(image):
        raise MemoryError

    monkeypatch.setattr(images.PngImagePlugin.PngImageFile, "load", load)
    assert code_of(encode(RAMP)) == "too_many_pixels"


def test_a_decoder_that_talks_is_cut_short(monkeypatch):
    def load(image):
        raise ValueError("x" * 10**6)

    monkeypatch.setattr(images.PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(ImageError, match=r"ValueError: x+\)") as caught:
        images.read(encode(RAMP))
    assert len(str(caught.value)) < 400


BROKEN_EXIF = encode(RAMP, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\1\2\0\xff\xff\0\0\xff\xff\0\0")


@pytest.mark.parametrize("action", ["always", "error"])
def test_warnings_of_decoders_change_no_outcome_and_nothing_is_printed(action, capfd):
    with warnings.catch_warnings(record=True, action=action) as caught:
        assert images.read(BROKEN_EXIF).shape == RAMP.shape
        for code, (data, _) in FAULTS.items():
            assert code_of(data) == code
    assert bool(caught) == (action == "always") and capfd.readouterr() == ("", "")


def test_half_pictures_are_never_completed():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_paths_without_a_file(tmp_path):
    assert code_of(tmp_path) == "directory"
    assert code_of(tmp_path / "none.png") == "missing"
    assert code_of("nul\0.png") == "unreadable"
    assert code_of("x" * 400) == "unreadable"
    assert code_of("/dev/null") == "unreadable"


def test_an_image_error_is_a_data_error():
    with pytest.raises(DataError):
        images.read(b"")


@pytest.mark.parametrize("source", [None, 3, io.StringIO("text"), RAMP])
def test_wrong_types_are_the_callers_fault(source):
    with pytest.raises(UsageError):
        images.read(source)


def test_size_limit_is_checked_in_the_header_and_quietly(recwarn):
    without_pixels = png(10000, 10000, depth=8, colour=0, rows=b"")  # decoding it would be another fault
    assert code_of(without_pixels) == "too_many_pixels" and not recwarn.list
    assert code_of(encode(RAMP), max_pixels=RAMP.size - 1) == "too_many_pixels"
    assert images.read(encode(RAMP), max_pixels=RAMP.size).shape == RAMP.shape


def test_byte_limit():
    assert code_of(encode(RAMP) + bytes(2**20 + 1000), max_pixels=100) == "too_many_bytes"


def test_every_code_has_a_hint():
    assert set(FAULTS) < set(images.HINTS)
    assert not any(hint.endswith(".") for hint in images.HINTS.values())


def test_to_uint8_undoes_reading():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(images.to_uint8(images.read(encode(levels))), levels)
    np.testing.assert_array_equal(images.to_uint8(np.float32([-1, 0.4999, 2])), np.uint8([0, 127, 255]))


def test_resize_keeps_range_mean_and_the_whole_film():
    film = np.random.default_rng(1).random((120, 90), np.float32)
    small = images.resize(film, 30)
    assert small.shape == (30, 30) and small.dtype == np.float32 and small.min() >= 0 and small.max() <= 1
    assert abs(small.mean() - film.mean()) < 0.01
    corners = np.zeros((64, 32), np.float32)
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = 1
    assert (images.resize(corners, 16)[[0, 0, -1, -1], [0, -1, 0, -1]] > 0).all()


@pytest.mark.parametrize("shape", [(120, 90), (64, 300), (20, 31)])
def test_resize_is_the_one_that_pillow_has(shape):
    film = np.random.default_rng(3).random(shape, np.float32)
    pillow = Image.fromarray(film).resize((48, 48), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(images.resize(film, 48), np.asarray(pillow), atol=1e-5)


def test_a_film_that_nobody_may_write_to_is_resized_without_a_warning():
    film = np.zeros((32, 32), np.float32)
    film.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.resize(film, 16).shape == (16, 16)


def test_resize_does_not_alias():
    stripes = np.tile(np.float32([0, 1]), (64, 32))
    np.testing.assert_allclose(images.resize(stripes, 16)[:, 1:-1], 0.5, atol=0.01)


def test_resize_to_the_same_size_is_a_copy():
    film = np.random.default_rng(2).random((32, 32), np.float32)
    same = images.resize(film, 32)
    np.testing.assert_array_equal(same, film)
    assert not np.shares_memory(same, film)


def mutations(data: bytes, count: int, seed: int):
    chance = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data[: chance.randrange(1, len(data))] if chance.random() < 0.3 else data)
        for _ in range(chance.randrange(0, 8)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        yield bytes(changed)


VALID = {
    "grey jpeg": encode(RAMP, "JPEG"),
    "progressive jpeg with exif": encode(RAMP, "JPEG", progressive=True, exif=with_orientation(6)),
    "cmyk jpeg": cmyk_ramp(),
    "grey png": encode(RAMP),
    "16-bit png": encode(RAMP.astype(np.uint16) * 257),
    "palette png": encode(Image.fromarray(RAMP).convert("P"), transparency=3),
    "rgba png": encode(Image.fromarray(RAMP).convert("RGBA"), exif=with_orientation(3)),
    "apng": FAULTS["several_frames"][0],
}


@pytest.mark.parametrize("kind", VALID)
@pytest.mark.filterwarnings("ignore")
def test_mutated_files_give_a_valid_film_or_an_image_error(kind):
    outcomes = set()
    for data in mutations(VALID[kind], 120, seed=len(kind)):
        try:
            pixels = images.read(data, max_pixels=100_000)
        except ImageError as fault:
            outcomes.add(fault.code)
        else:
            assert pixels.dtype == np.float32 and pixels.ndim == 2 and 0 <= pixels.min() <= pixels.max() <= 1
    assert outcomes and outcomes <= set(images.HINTS)


def test_small_jpeg_is_fast():
    data = encode(np.random.default_rng(3).integers(0, 256, (224, 224, 3), np.uint8), "JPEG", quality=75)
    rounds = []
    for _ in range(30):
        started = time.perf_counter()
        images.read(data)
        rounds.append(time.perf_counter() - started)
    assert min(rounds) < 0.01  # about 1 ms where the machine is idle
