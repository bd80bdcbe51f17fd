"""The decode-once cache: right pixels, right rows, and no way to read a wrong one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumo_lib import images
from pneumo_lib.data import ImageSet, load, open_folder, scan
from pneumo_lib.data.picked import Picked
from pneumo_lib.errors import DataError, UsageError

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")
SIZE = 16


@pytest.fixture
def films(tmp_path) -> Path:
    """Ten films of each class in train and test; the grey level of each is its number."""
    grey = 0
    for split in ("train", "test"):
        for person, name in enumerate(CLASSES):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(10):
                grey += 4
                Image.new("L", (20 + i, 24), grey).save(
                    tmp_path / "set" / split / name / f"person{person}{i // 2}_virus_{i}.png"
                )
    return tmp_path / "set"


def open_films(films: Path, **options) -> ImageSet:
    return load(scan(films), image_size=SIZE, cache_dir=films.parent / "cache", workers=2, **options)


def arrays(films: Path) -> list[Path]:
    return sorted((films.parent / "cache").glob("*/*.u8"))


def test_rows_and_images_belong_together(films):
    found = open_films(films)
    assert found.images.shape == (60, SIZE, SIZE) and found.images.dtype == np.uint8
    assert isinstance(found.images, np.memmap) and not found.images.flags.writeable
    for row, film in zip(found.table.itertuples(), found.images, strict=True):
        expected = images.to_uint8(images.resize(images.read(films / row.path), SIZE))
        assert np.array_equal(film, expected)
    assert found.labels.dtype == np.int64 and found.labels.tolist() == found.table["label"].tolist()


def test_the_second_load_decodes_nothing_and_gives_the_same(films, monkeypatch):
    first = open_films(films)
    monkeypatch.setattr(images, "read", lambda *_, **__: pytest.fail("decoded again"))
    again = open_films(films)
    assert np.array_equal(first.images, again.images) and first.identity == again.identity and again.notes == ()


def test_the_data_set_is_never_written_to(films):
    before = {path: path.stat().st_mtime_ns for path in films.rglob("*")}
    open_films(films)
    assert {path: path.stat().st_mtime_ns for path in films.rglob("*")} == before
    with pytest.raises(UsageError, match="inside the data set"):
        load(scan(films), image_size=SIZE, cache_dir=films / "train" / "cache")


def test_changed_content_size_or_list_gets_a_new_cache(films):
    first = open_films(films)
    path = films / first.table["path"][0]
    status = path.stat()
    Image.new("L", (20, 24), 255).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    changed = open_films(films)
    assert changed.images[0].min() == 255 and changed.identity != first.identity
    path.unlink()
    assert len(open_films(films)) == 59
    assert load(scan(films), image_size=17, cache_dir=films.parent / "cache").images.shape == (59, 17, 17)


def test_identity_follows_labels_patients_splits_and_pixels(films):
    first = open_films(films)
    (films / "manifest.csv").write_text(f"path,group\n{first.table['path'][0]},somebody\n")
    assert open_films(films).identity != first.identity
    assert first.subset("train").identity != first.identity
    table = pd.DataFrame({"path": ["a", "b"], "split": "train", "label": [0, 1], "bytes": 1, "group": "", "source": ""})
    black, white = (ImageSet(np.full((2, 4, 4), grey, np.uint8), table, CLASSES) for grey in (0, 255))
    assert black.identity != white.identity


@pytest.mark.parametrize(
    "harm", ["truncate", "flip a bit", "lose the array", "cut meta.json", "empty meta.json", "lengthen"]
)
def test_a_damaged_cache_is_noticed_and_made_again(films, harm):
    good = np.array(open_films(films).images)
    (array,) = arrays(films)
    meta = array.with_name("meta.json")
    content = array.read_bytes()
    if harm == "lose the array":
        array.unlink()
    elif "meta" in harm:
        meta.write_text(meta.read_text()[:30] if "cut" in harm else "{}")
    else:
        harmed = {
            "truncate": content[:-1],
            "lengthen": content + b"x",
            "flip a bit": content[:9] + b"\x55" + content[10:],
        }
        array.write_bytes(harmed[harm])
    again = open_films(films)
    assert np.array_equal(again.images, good) and "damaged or out of date" in again.notes[-1]
    assert open_films(films).notes == ()


# ---- unreadable files -----------------------------------------------------------------------------------------------


def grow(films: Path, split: str, name: str, number: int) -> None:
    for i in range(number):
        shutil.copy(films / split / name / "person10_virus_0.png", films / split / name / f"more{i}.png")


def test_one_unreadable_file_in_a_hundred_is_named_skipped_and_remembered(films, monkeypatch):
    grow(films, "train", "NORMAL", 40)
    (films / "train/NORMAL/more7.png").write_bytes(b"")
    for _ in range(2):
        found = open_films(films)
        assert len(found) == len(found.images) == 99
        assert "train/NORMAL/more7.png" not in found.table["path"].tolist()
        assert "Skipped 1 unreadable of 100 files. train/NORMAL/more7.png: the file is empty" in found.notes[-1]
    assert [row.path for row in found.table.itertuples() if (row.path.startswith("train/PNEU"))] == sorted(
        f"train/PNEUMONIA/person2{i // 2}_virus_{i}.png" for i in range(10)
    )
    last = images.to_uint8(images.resize(images.read(films / found.table["path"].iloc[-1]), SIZE))
    assert np.array_equal(found.images[-1], last)


def test_a_file_that_could_not_be_read_for_a_while_comes_back(films, monkeypatch):
    grow(films, "train", "NORMAL", 40)
    read = images.read

    def fail_once(source, **options):
        if Path(source).name == "more7.png":
            raise images.ImageError("permission denied", code="unreadable")
        return read(source, **options)

    with monkeypatch.context() as patched:
        patched.setattr(images, "read", fail_once)
        assert len(open_films(films)) == 99
    assert len(open_films(films)) == 100


def test_more_than_one_percent_unreadable_stops_with_the_first_ones(films):
    for i in range(7):
        (films / f"test/NORMAL/person1{i // 2}_virus_{i}.png").write_text("not an image")
    with pytest.raises(DataError, match=r"More than 1% of the 60 files.*person10_virus_0.png: found plain text"):
        open_films(films)
    assert arrays(films) == [] and not list((films.parent / "cache").glob("*/building-*"))


def test_a_class_that_loses_its_only_film_is_an_error(films):
    grow(films, "train", "NORMAL", 60)
    for path in sorted((films / "test/COVID19").iterdir())[1:]:
        path.unlink()
    (films / "test/COVID19/person00_virus_0.png").write_bytes(b"")
    with pytest.raises(DataError, match="None of the files of COVID19 in test"):
        open_films(films)


# ---- faults ---------------------------------------------------------------------------------------------------------


def test_too_little_space_is_said_before_the_start(films, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 10**3))
    monkeypatch.setattr(images, "read", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(DataError, match="where 0 MB are free"):
        open_films(films)


def test_a_cache_folder_that_cannot_be_made_is_an_error_of_the_data(films):
    (films.parent / "cache").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        open_films(films)


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_impossible_sizes_are_refused(films, size):
    with pytest.raises(UsageError, match="image_size"):
        load(scan(films), image_size=size, cache_dir=films.parent / "cache")


SLOW_BUILD = """
import sys, time
from pneumo_lib.data import load, scan
def slowly(films, *, total, desc):
    for number, film in enumerate(films):
        if number == int(sys.argv[3]):
            print("started", flush=True)
            time.sleep(float(sys.argv[4]))
        yield film
load(scan(sys.argv[1]), image_size=16, cache_dir=sys.argv[2], workers=1, progress=slowly)
"""


def start(films: Path, pause_at: int, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", SLOW_BUILD, films, films.parent / "cache", str(pause_at), str(seconds)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
    assert process.stdout.readline() == b"started\n"
    return process


def test_a_killed_build_leaves_no_cache_and_its_remains_go_when_old(films):
    process = start(films, pause_at=30, seconds=60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (remains,) = (films.parent / "cache").glob("*/building-*")
    assert arrays(films) == []
    found = open_films(films)
    assert len(found) == 60 and found.notes == () and remains.exists()
    hours_ago = time.time() - 7200
    for path in (*remains.iterdir(), remains):
        os.utime(path, (hours_ago, hours_ago))
    (arrays(films)[0].with_name("meta.json")).unlink()
    assert len(open_films(films)) == 60 and not remains.exists()


def test_builders_at_the_same_time_do_not_disturb_each_other(films):
    process = start(films, pause_at=30, seconds=1)
    here = open_films(films)
    assert process.wait() == 0
    assert np.array_equal(here.images, open_films(films).images)
    assert len(arrays(films)) == 1 and not list((films.parent / "cache").glob("*/building-*"))


# ---- ImageSet -------------------------------------------------------------------------------------------------------


def test_subset_keeps_rows_and_images_together(films):
    found = open_films(films)
    test = found.subset("test")
    assert len(test) == 30 and set(test.table["split"]) == {"test"} and np.shares_memory(test.images, found.images)
    mixed = ImageSet(found.images, found.table.assign(split=["val", "train"] * 30), CLASSES)
    part = mixed.subset("val").images
    assert isinstance(part, Picked) and part.source is found.images, "no copy in memory"
    assert np.array_equal(part, found.images[::2]) and np.array_equal(part[[3, 1]], found.images[[6, 2]])
    assert (part.shape, part.dtype, part.nbytes, len(part)) == ((30, 16, 16), np.uint8, 30 * 256, 30)
    assert np.asarray(part, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="without a copy"):
        np.array(part, copy=False)
    assert mixed.subset("val").table["path"].tolist() == found.table["path"][::2].tolist()
    with pytest.raises(DataError, match=r"no split 'valid'.*'train', 'val'"):
        mixed.subset("valid")


def test_describe_counts_films_and_patients(films):
    found = open_films(films)
    shown = found.describe()
    assert shown.loc["train", [*CLASSES, "all", "patients known"]].tolist() == [10, 10, 10, 30, 15]
    assert repr(found) == "ImageSet(60 films of 16×16: train 30, test 30;\n         COVID19, NORMAL, PNEUMONIA)"


def test_images_without_rows_are_refused(films):
    found = open_films(films)
    with pytest.raises(DataError, match="59 images but 60 rows"):
        ImageSet(found.images[1:], found.table, CLASSES)


def test_progress_sees_every_film_once(films):
    seen = []

    def bar(items, *, total, desc):
        seen.append((total, desc))
        for item in items:
            seen.append(item.shape)
            yield item

    open_films(films, progress=bar)
    assert seen == [(60, "decoding"), *[(SIZE, SIZE)] * 60]


def test_open_folder_carves_validation_or_assigns_all_splits(films):
    options = {"image_size": SIZE, "cache_dir": films.parent / "cache", "seed": 1}
    carved = open_folder(films, val_fraction=0.2, **options)
    assert carved.table["split"].value_counts().to_dict() == {"test": 30, "train": 24, "val": 6}
    assigned = open_folder(films / "train", val_fraction=0.2, **options)
    assert assigned.table["split"].value_counts().to_dict() == {"train": 18, "val": 6, "test": 6}
    assert "by patient" in carved.notes[-1] and "by patient" in assigned.notes[-1]
