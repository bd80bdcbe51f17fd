"""The API through the eyes of a program: every kind of file and fault, options, limits, history, nobody's name."""

import io
import json
import logging
import re
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import photos
import pytest
import test_dicom as dicoms
import test_images as pictures
from PIL import Image, ImageDraw
from pydicom import uid
from pydicom.encaps import encapsulate
from service_app import API, calling, results, send

from pneumo_lib import images
from pneumo_lib.service import catalog, faults
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.history import History

RAMP = pictures.RAMP
FRAMES = [Image.new("L", (40, 40), 80 * index) for index in range(3)]
MOMENTS = re.compile(rb'"(id|created_at|request_id)": "[^"]*"')  # all that may differ between two answers for a file


def outcome(response) -> tuple[int, str]:
    """Status, and the code of the fault or the status of the one result."""
    found = response.json
    return response.status_code, found["code"] if "code" in found else found["results"][0]["status"]


# ---- bad files ------------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def dicom(*args, **tags) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom dislikes some values as much as we do
        return dicoms.encode(dicoms.dataset(*args, **tags))


def bloated(name: bytes) -> bytes:
    extra = chunk(name, b"a\0\0" + zlib.compress(bytes(64 << 20)))
    return pictures.png(64, 48, depth=8, colour=0, rows=(b"\0" + b"\x80" * 64) * 48, extra=extra)


def empty_png(width: int, height: int, depth: int = 8) -> bytes:
    return pictures.png(width, height, depth=depth, colour=0, rows=b"")


BAD = {  # by item of the field notes
    "1 half a JPEG": (pictures.HALF_JPEG[: len(pictures.HALF_JPEG) // 2], 422, "incomplete"),
    "2 half a PNG": (pictures.HALF_PNG[: len(pictures.HALF_PNG) // 2], 422, "incomplete"),
    "3 a PNG bomb": (empty_png(30000, 30000, 1), 413, "too_many_pixels"),
    "4 above our own limit": (empty_png(10000, 10000), 413, "too_many_pixels"),
    "4 of which Pillow says nothing": (empty_png(9000, 9000), 413, "too_many_pixels"),
    "11 an APNG": (pictures.FAULTS["several_frames"][0], 422, "several_frames"),
    "11 a GIF": (pictures.encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), 415, "not_an_image"),
    "11 a TIFF": (pictures.encode(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), 415, "not_an_image"),
    "12 text": (b"patient 12, see enclosed", 415, "not_an_image"),
    "12 a web page": (b"<!DOCTYPE html><script>alert(1)</script>", 415, "not_an_image"),
    "12 a ZIP": (b"PK\x03\x04" + bytes(30), 415, "not_an_image"),
    "12 a program": (b"\x7fELF" + bytes(30), 415, "not_an_image"),
    "12 a PDF": (b"%PDF-1.7\n", 415, "not_an_image"),
    "12 an SVG": (b"<?xml version='1.0'?><svg xmlns='x'/>", 415, "not_an_image"),
    "14 nothing": (b"", 400, "empty"),
    "14 one pixel": (pictures.png(1, 1, depth=8, colour=0, rows=b"\0\0"), 422, "too_small"),
    "14 a thin strip": (pictures.encode(np.zeros((8, 2000), np.uint8)), 422, "too_small"),
    "14 a strip": (pictures.encode(np.zeros((20, 2000), np.uint8)), 422, "odd_shape"),
    "17 DICOM without pixels": (dicoms.encode(dicoms.without("PixelData")), 422, "no_pixels"),
    "18 DICOM of three frames": (dicom(NumberOfFrames=3), 422, "several_frames"),
    "19 DICOM that promises too much": (dicom(Rows=60000, Columns=60000), 413, "too_many_pixels"),
    "19 DICOM that promises more than it has": (dicom(Rows=6000, Columns=6000), 422, "bad_header"),
    "20 a codec that is not there": (
        dicoms.encode(dicoms.dataset(PixelData=encapsulate([b"\xff\xd8\xff\xf7" + bytes(60)])), uid.JPEGLSLossless),
        415,
        "codec",
    ),
    "21 DICOM without its beginning": (dicom()[132:], 415, "not_an_image"),
    "21 DICOMDIR": (
        dicoms.encode(
            dicoms.without("PixelData", "SOPClassUID", "SOPInstanceUID"), file_class=uid.MediaStorageDirectoryStorage
        ),
        422,
        "not_a_film",
    ),
    "21 a structured report": (dicom(SOPClassUID=uid.BasicTextSRStorage), 422, "not_a_film"),
    "21 a PDF in DICOM": (dicom(SOPClassUID=uid.EncapsulatedPDFStorage), 422, "not_a_film"),
    "21 palette colours": (dicom(PhotometricInterpretation="PALETTE COLOR"), 422, "photometric"),
    "23 a ZIP bomb": (b"PK\x03\x04" + bytes(100_000), 415, "not_an_image"),
    "29 a PNG with 64 MB of text": (bloated(b"zTXt"), 422, "damaged"),
    "29 a PNG with 64 MB of colour profile": (bloated(b"iCCP"), 422, "damaged"),
}


@pytest.mark.parametrize("item", BAD)
def test_a_bad_file_gets_its_code(client, item):
    data, status, code = BAD[item]
    response = send(client, (data, "film.png"))
    assert outcome(response) == (status, code)
    said = response.json
    assert said["hint"] == faults.fault(code, "").hint and said["hint"] not in said["message"]
    assert said["message"].endswith(".") and (code != "too_many_pixels" or "limit is 40,000,000" in said["message"])
    assert client.get(f"{API}/history").json["total"] == 0


def test_bad_files_leave_the_good_ones_beside_them_alone(client, films):
    wanted = results(send(client, films[0]))[0]
    mixed = results(send(client, *[data for data, _, _ in list(BAD.values())[:9]], films[0], b""))
    assert [one["error"] and one["error"]["code"] for one in mixed[:9]] == [code for _, _, code in [*BAD.values()][:9]]
    assert [one["status"] for one in mixed] == ["error"] * 9 + [wanted["status"], "error"]
    assert mixed[9]["probabilities"] == wanted["probabilities"]
    assert [one["saved"] for one in mixed] == [False] * 9 + [True, False]
    assert client.get(f"{API}/history").json["total"] == 2


ODD = {
    "5 16 bits": (pictures.encode(RAMP.astype(np.uint16) * 257), "PNG", 16, "16-bit file, 16 bits used"),
    "6 CMYK of Adobe": (pictures.cmyk_ramp(), "JPEG", 8, "printing inks (CMYK)"),
    "6 colour": (pictures.encode(np.dstack([RAMP, RAMP // 2, RAMP // 4])), "PNG", 8, "colour converted"),
    "7 a palette": (pictures.encode(Image.fromarray(RAMP).convert("P")), "PNG", 8, "palette converted"),
    "8 transparency": (
        pictures.encode(Image.merge("LA", [Image.fromarray(RAMP)] * 2)),
        "PNG",
        8,
        "transparent areas composited on black",
    ),
    "9 one bit": (pictures.encode(Image.fromarray(RAMP > 128)), "PNG", 1, "only two grey levels"),
    "10 turned": (pictures.encode(RAMP, "JPEG", exif=pictures.with_orientation(6)), "JPEG", 8, "rotated by its EXIF"),
    "13 a JPEG called PNG": (pictures.encode(RAMP, "JPEG"), "JPEG", 8, ""),
    "16 MONOCHROME1": (dicom(PhotometricInterpretation="MONOCHROME1"), "DICOM", 12, "inverted (MONOCHROME1)"),
    "21 RGB in DICOM": (dicom(np.dstack([RAMP] * 3), bits=8), "DICOM", 8, "colour converted"),
    "21 signed pixels": (dicom(dicoms.RAMP.astype(np.int16), bits=16), "DICOM", 16, "no window in the file"),
    "21 padding": (dicom(PixelPaddingValue=100), "DICOM", 12, "padding set to black"),
    "21 a burned-in name": (dicom(BurnedInAnnotation="YES"), "DICOM", 12, "text burned into the picture"),
}


@pytest.mark.parametrize("item", ODD)
def test_what_was_done_to_an_odd_file_is_told(client, item):
    data, kind, bits, note = ODD[item]
    (record,) = results(send(client, (data, "film.png")))
    file = record["file"]
    assert (file["kind"], file["bits"], file["bytes"]) == (kind, bits, len(data))
    assert sorted((file["width"], file["height"])) == [48, 64] and (file["width"] == 48) == item.startswith("10")
    assert any(text.startswith(note) for text in file["notes"]) if note else not file["notes"]


SECONDS, MEGABYTES = 2, 500  # of processor time, and of memory on top of what the service holds, for one file


def test_a_bad_file_takes_little_time_and_memory(tiny_run, tmp_path):
    """Each of the field notes' files, and each odd one, in a process where nothing else is counted."""
    script = Path(__file__).with_name("bad_files.py")
    command = [sys.executable, script, tiny_run.path, f"sqlite:///{tmp_path / 'history.sqlite3'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {name: (told[name]["status"], told[name]["code"]) for name in BAD} == {n: bad[1:] for n, bad in BAD.items()}
    assert {told[name]["status"] for name in ODD} == {200} and len(told) == len(BAD) + len(ODD)
    slow = {name: one["seconds"] for name, one in told.items() if one["seconds"] >= SECONDS}
    large = {name: one["mb"] for name, one in told.items() if one["mb"] >= MEGABYTES}
    assert not slow and not large


def page_of_text() -> Image.Image:
    page = Image.new("L", (200, 260), 255)
    for line in range(20):
        ImageDraw.Draw(page).text((12, 10 + 12 * line), "the quick brown fox jumps over it", fill=0)
    return page


NO_FILM = {
    "black": np.zeros((64, 64), np.uint8),
    "white": np.full((64, 64), 255, np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8),
    "text": np.asarray(page_of_text()),
} | photos.shipped()


@pytest.mark.parametrize("what", NO_FILM)
def test_15_what_is_no_film_gets_no_class(settings, strict_offers, what):
    with closing(Clinic(settings, strict_offers, History(settings.history), threads=1)) as clinic:
        (record,) = results(send(calling(clinic), pictures.encode(NO_FILM[what])))
    assert (record["status"], record["label"], record["candidates"]) == ("refused", None, [])
    assert (record["confidence"], record["probabilities"]) == (None, None)
    assert record["likeness"]["score"] > record["likeness"]["cutoff"] == 1


def test_a_model_that_cannot_tell_films_from_other_pictures_says_so(settings, offers, films):
    blind = replace(offers.models[0], diagnoser=replace(offers.models[0].diagnoser, check=None))
    with closing(Clinic(settings, catalog.Catalog((blind,)), History(settings.history), threads=1)) as clinic:
        (record,) = results(send(calling(clinic), films[0], threshold="0"))
    assert (record["status"], record["likeness"]) == ("unchecked", None) and record["label"]


# ---- 22, 24, 25: names ----------------------------------------------------------------------------------------------

NAMES = {
    "a way out": ("../../etc/passwd", "../../etc/passwd"),
    "a device": ("CON.png", "CON.png"),
    "300 characters": ("x" * 300 + ".png", "x" * 255),
    "NUL": ("a\0b.png", "a b.png"),
    "control characters": ("a\x1b[31m\x07\x7f\x85\u202egnp.png", "a [31m    gnp.png"),
    "markup": ("<img src=x onerror=alert(1)>.png", "<img src=x onerror=alert(1)>.png"),
    "a formula": ("=cmd|' /C calc'!A0.png", "=cmd|' /C calc'!A0.png"),
    "Chinese": ("肺炎.png", "肺炎.png"),
    "emoji": ("🫁😷.png", "🫁😷.png"),
    "spaces": ("   ", "   "),
}


def multipart(disposition: bytes, content: bytes) -> dict:
    body = b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + content + b"\r\n--b--\r\n"
    return {"data": body, "content_type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize("kind", NAMES)
def test_24_a_name_is_display_text_only(client, films, tmp_path, kind):
    given, shown = NAMES[kind]
    before = {path.name for path in tmp_path.iterdir()}
    (record,) = results(client.post(f"{API}/diagnose", **multipart(named(given), films[0])))
    assert record["file"]["name"] == shown
    assert client.get(f"{API}/history/{record['id']}").json == record
    assert {path.name for path in tmp_path.iterdir()} - before <= {"history.sqlite3-wal", "history.sqlite3-shm"}


def named(name: str) -> bytes:
    return b'name="files"; filename="' + name.encode() + b'"'


@pytest.mark.parametrize("name", [b"\xed\xa0\x80.png", "肺炎.png".encode("gbk"), b"\xff\xfe"])
def test_a_name_that_is_no_text_is_refused_with_that_reason(client, films, name):
    response = client.post(f"{API}/diagnose", **multipart(b'name="files"; filename="' + name + b'"', films[0]))
    assert outcome(response) == (400, "bad_request") and "UTF-8" in response.json["message"]


def test_halves_of_characters_in_an_encoded_name_are_replaced(client, films):
    (record,) = results(
        client.post(f"{API}/diagnose", **multipart(b"name=\"files\"; filename*=UTF-8''a%ED%A0%80.png", films[0]))
    )
    assert record["file"]["name"].encode() and record["file"]["name"].startswith("a")


@pytest.mark.parametrize("keep", ["true", "false"])
def test_22_the_patients_name_stays_nowhere(client, settings, caplog, keep):
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        good = send(client, (dicom(Modality="DX"), "ward.dcm"), keep_film=keep)
        bad = send(client, (dicom(Rows=0), "ward.dcm"), (dicom()[:700], "ward.dcm"), keep_film=keep)
    assert results(good)[0]["file"]["facts"] == {"Modality": "DX"}
    database = Path(settings.history.removeprefix("sqlite:///"))
    stored = b"".join(path.read_bytes() for path in database.parent.glob(f"{database.name}*"))
    shown = client.get(f"{API}/history/{results(good)[0]['id']}/film").data
    said = "\n".join([caplog.text, *(str(warning.message) for warning in warned), good.text, bad.text]).encode()
    for name in (b"Secret", b"Person", b"ID-4711"):
        assert name in dicom() and name not in stored + shown + said
    assert b"ward.dcm" in stored and "ward.dcm" not in caplog.text


# ---- the same again, and beside others ------------------------------------------------------------------------------


def test_the_same_file_twice_is_answered_alike_byte_by_byte(client, films):
    for files in (films[:1], films[:5]):
        one, other = (send(client, *files).data for _ in range(2))
        assert one != other and MOMENTS.sub(b"", one) == MOMENTS.sub(b"", other)


def test_films_together_get_the_answers_that_each_gets_alone(client, films):
    together = results(send(client, *films[:20]))
    alone = [results(send(client, film))[0] for film in films[:20]]
    assert [list(strip(one)) for one in together] == [list(strip(one)) for one in alone]
    assert [strip(one) for one in together] == [strip(one) for one in alone]
    assert len({one["label"] for one in alone}) >= 3


def strip(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("id", "created_at")}


def test_the_answers_are_those_of_the_diagnoser(client, offers, films):
    diagnoser = offers.models[0].diagnoser
    for film, record in zip(films[:6], results(send(client, *films[:6])), strict=True):
        (said,) = diagnoser.answer(diagnoser.shrink(images.read(film))[None])
        told = diagnoser.decide(said)
        assert (record["probabilities"], record["candidates"]) == (dict(said.probabilities), list(told.candidates))
        assert (record["status"], record["confidence"]) == (told.status, told.confidence)


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "2", "text", "0,5", "1_0", "٠.٥", "0x1", "1" * 5000])
def test_a_threshold_that_is_no_fraction_is_refused(client, films, text):
    assert outcome(send(client, films[0], threshold=text)) == (422, "bad_threshold")


def test_a_confidence_at_the_threshold_decides_and_above_it_does_not(client, films):
    (sure,) = results(send(client, films[0], threshold="0"))
    assert (sure["status"], sure["threshold"], sure["candidates"]) == ("ok", 0.0, [sure["label"]])
    exactly, above = sure["confidence"], round(sure["confidence"] + 0.0001, 4)
    assert results(send(client, films[0], threshold=str(exactly)))[0]["status"] == "ok"
    (unsure,) = results(send(client, films[0], threshold=str(above)))
    assert (unsure["status"], unsure["label"]) == ("undecided", None)
    best = sorted(sure["probabilities"], key=sure["probabilities"].get, reverse=True)
    assert unsure["candidates"] == best[:2] and unsure["probabilities"] == sure["probabilities"]


def test_noise_handling_is_what_was_asked_for(client, films):
    own, none, denoise = (results(send(client, *films[:8], noise_handling=name)) for name in ("", "none", "denoise"))
    assert own[0]["noise_handling"] == "denoise" and [strip(one) for one in own] == [strip(one) for one in denoise]
    assert none[0]["model"]["denoiser"] is None and denoise[0]["model"]["denoiser"] == "unet_denoiser"
    assert [one["probabilities"] for one in none] != [one["probabilities"] for one in denoise]


WRONG = {
    "another noise handling": ({"noise_handling": "median"}, 422, "bad_option"),
    "another model": ({"model": "tiny/none"}, 422, "unknown_model"),
    "neither yes nor no": ({"save": "perhaps"}, 422, "bad_option"),
    "a misspelt field": ({"treshold": "0.9"}, 422, "bad_option"),
    "a field twice": ({"threshold": ["0.9", "0.1"]}, 422, "bad_option"),
    "a field of half a megabyte": ({"model": "x" * 2**19}, 413, "too_many_bytes"),
    "100 fields too many": ({f"f{k}": "x" for k in range(120)}, 413, "too_many_bytes"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_option_is_refused_and_nothing_saved(client, films, what):
    fields, status, code = WRONG[what]
    assert outcome(send(client, films[0], **fields)) == (status, code)
    assert client.get(f"{API}/history").json["total"] == 0


def test_models_can_be_chosen(client, films):
    ids = [model["id"] for model in client.get(f"{API}/models").json["models"]]
    assert ids == ["tiny/cnn2_on_unet_denoiser", "tiny/cnn2_on_autoencoder"]
    assert [results(send(client, films[0], model=id))[0]["model"]["id"] for id in ["", *ids]] == [ids[0], *ids]


@pytest.mark.parametrize(
    ("save", "keep", "total", "kept"),
    [("true", "false", 1, False), ("true", "true", 1, True), ("false", "false", 0, False), ("false", "true", 0, False)],
)
def test_nothing_is_kept_but_what_was_wished(client, clinic, films, save, keep, total, kept):
    (record,) = results(send(client, films[0], save=save, keep_film=keep))
    assert (record["saved"], record["film_kept"]) == (bool(total), kept)
    film = client.get(f"{API}/history/{record['id']}/film")
    assert film.status_code == 200 and film.mimetype == "image/png", "for some minutes, in memory"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(film.data))), np.asarray(Image.open(io.BytesIO(films[0]))))
    clinic.recent.clear()
    assert client.get(f"{API}/history").json["total"] == total
    assert client.get(f"{API}/history/{record['id']}").status_code == (200 if total else 404)
    assert client.get(f"{API}/history/{record['id']}/film").status_code == (200 if kept else 404)


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(clinic, settings):
    clinic.settings = replace(settings, file_bytes=3000, pixels=5000, files=3)
    return calling(clinic)


def test_each_limit_is_told_with_its_number(limited, films):
    inside = films[0] + bytes(3000 - len(films[0]))
    assert outcome(send(limited, inside))[0] == 200
    many = pictures.encode(np.zeros((80, 63), np.uint8))
    for response, code, number in (
        (send(limited, inside + b"\0"), "too_many_bytes", "3,000"),
        (send(limited, many), "too_many_pixels", "5,000"),
        (send(limited, *[films[0]] * 4), "too_many_files", "limit is 3"),
        (send(limited, *[films[0]] * 90), "too_many_bytes", "83 parts"),
        (send(limited, bytes(2**20 + 9000)), "too_many_bytes", "1,057,576 bytes"),
    ):
        assert outcome(response) == (413, code) and number in response.json["message"]
    assert limited.get(f"{API}/history").json["total"] == 1


def test_16_megabytes_are_read_and_not_one_byte_more(client, films):
    largest = films[0] + bytes(16 * 2**20 - len(films[0]))
    assert outcome(send(client, largest))[0] == 200
    assert outcome(send(client, largest + b"\0")) == (413, "too_many_bytes")


@pytest.mark.parametrize(
    ("path", "status"), [("/diagnose", 413), ("/results/x/threshold", 413), (f"{API}/diagnose", 415)]
)
def test_only_uploads_may_be_large(client, path, status):
    response = client.post(path, data=b"a&" * 50_000, content_type="application/x-www-form-urlencoded")
    assert response.status_code == status, "Python takes seconds to read a form of a few megabytes"
