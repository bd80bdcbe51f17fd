"""Data sets from Kaggle (a local stand-in) and from archives, whole or hostile."""

import stat
import zipfile
from pathlib import Path

import kagglehub
import pytest

from pneumo_lib.data import CLASSES, download
from pneumo_lib.data.download import fetch
from pneumo_lib.errors import DataError, UsageError

NAME = "chest_xray_covid"
MEMBERS = {
    f"Data/{split}/{name}/{i}.jpg": bytes(range(i, 256))
    for split in ("train", "test")
    for name in CLASSES
    for i in range(3)
}


def archive(tmp_path: Path, members: dict[str, bytes] = MEMBERS, **options) -> Path:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", **options) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return tmp_path / "archive.zip"


def remains(tmp_path: Path) -> list[str]:
    """Everything but the archive itself: a failed fetch leaves nothing."""
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "archive.zip")


def from_kaggle(monkeypatch, behaviour) -> list[str]:
    asked = []

    def stand_in(handle, path=None, *, force_download=False, output_dir=None):
        asked.append(handle)
        return behaviour(handle, Path(output_dir))

    monkeypatch.setattr(kagglehub, "dataset_download", stand_in)
    return asked


def deliver(_, place: Path) -> str:
    """What kagglehub leaves: the unpacked files and its own hidden mark."""
    for name, content in (MEMBERS | {".complete/prashant268/bundle.complete": b""}).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return str(place)


# ---- from Kaggle ----------------------------------------------------------------------------------------------------


def test_a_download_arrives_whole_in_its_place(tmp_path, monkeypatch):
    asked = from_kaggle(monkeypatch, deliver)
    folder = fetch(NAME, out=tmp_path / "data" / NAME)
    assert asked == ["prashant268/chest-xray-covid19-pneumonia"]
    assert folder.root == tmp_path / "data" / NAME / "Data" and len(folder.table) == 18
    assert remains(tmp_path / "data") == [NAME]


def test_what_is_there_already_is_left_alone(tmp_path, monkeypatch):
    asked = from_kaggle(monkeypatch, deliver)
    fetch(NAME, out=tmp_path / NAME)
    (tmp_path / NAME / "mine.txt").write_text("kept")
    again = fetch(NAME, out=tmp_path / NAME)
    assert len(asked) == 1 and "was there already" in again.notes[-1] and (tmp_path / NAME / "mine.txt").exists()


def test_something_else_in_the_place_is_an_error_and_is_left_alone(tmp_path, monkeypatch):
    asked = from_kaggle(monkeypatch, deliver)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="No images found"):
        fetch(NAME, out=tmp_path / NAME)
    assert not asked and (tmp_path / NAME / "thesis.txt").read_text() == "years of work"


def test_the_second_handle_is_tried_after_the_first_and_half_a_download_is_dropped(tmp_path, monkeypatch):
    def behaviour(handle: str, place: Path) -> str:
        if handle.startswith("prashant268"):
            deliver(handle, place)
            (place / "half.part").write_bytes(b"x")
            raise ConnectionResetError("connection reset")
        assert not place.exists()
        return deliver(handle, place)

    asked = from_kaggle(monkeypatch, behaviour)
    folder = fetch(NAME, out=tmp_path / NAME)
    assert len(asked) == 2 and len(folder.table) == 18 and not (tmp_path / NAME / "half.part").exists()


@pytest.mark.parametrize("failure", [ConnectionError("no route to host"), OSError(28, "No space left"), ValueError("")])
def test_offline_says_what_to_do_by_hand(tmp_path, monkeypatch, failure):
    def behaviour(*_):
        raise failure

    from_kaggle(monkeypatch, behaviour)
    with pytest.raises(DataError) as caught:
        fetch(NAME, out=tmp_path / NAME)
    text = str(caught.value)
    assert "https://www.kaggle.com/datasets/prashant268/chest-xray-covid19-pneumonia" in text
    assert f"pneumo data download {NAME} --from-zip FILE" in text and str(tmp_path / NAME) in text
    assert type(failure).__name__ in text and str(failure) in text
    assert remains(tmp_path) == []


def test_where_kaggle_attaches_the_set_nothing_is_copied(tmp_path, monkeypatch):
    from_kaggle(monkeypatch, lambda handle, _: deliver(handle, tmp_path / "input"))
    folder = fetch(NAME, out=tmp_path / "working" / NAME)
    assert folder.root == tmp_path / "input" / "Data" and "attached at" in folder.notes[-1]
    assert remains(tmp_path / "working") == []


def test_a_delivery_that_is_another_set_is_refused(tmp_path, monkeypatch):
    def behaviour(_, place: Path) -> str:
        (place / "cats").mkdir(parents=True)
        return str(place)

    from_kaggle(monkeypatch, behaviour)
    with pytest.raises(DataError, match=f"not the data set {NAME}"):
        fetch(NAME, out=tmp_path / NAME)
    assert remains(tmp_path) == []


def test_unknown_names_and_drawn_sets_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no data set named 'chest'"):
        fetch("chest", out=tmp_path)
    with pytest.raises(UsageError, match="pneumo data phantom"):
        fetch("phantom", out=tmp_path)


# ---- from an archive ------------------------------------------------------------------------------------------------


def test_an_archive_is_unpacked_and_scanned(tmp_path):
    folder = fetch(NAME, out=tmp_path / NAME, from_zip=archive(tmp_path, compression=zipfile.ZIP_DEFLATED))
    assert len(folder.table) == 18 and remains(tmp_path) == [NAME]
    for name, content in MEMBERS.items():
        assert (tmp_path / NAME / name).read_bytes() == content


def test_an_empty_folder_in_the_place_is_used(tmp_path):
    (tmp_path / NAME).mkdir()
    assert len(fetch(NAME, out=tmp_path / NAME, from_zip=archive(tmp_path)).table) == 18


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/evil.jpg", "Data/../../evil.jpg", "C:/evil.jpg", "Data\\..\\..\\evil.jpg"]
)
def test_names_that_lead_outside_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="lies outside"):
        fetch(NAME, out=tmp_path / "in" / NAME, from_zip=archive(tmp_path, {**MEMBERS, name: b"evil"}))
    assert not list(tmp_path.rglob("evil*")) and remains(tmp_path / "in") == []


def test_links_in_an_archive_are_refused(tmp_path):
    path = archive(tmp_path)
    link = zipfile.ZipInfo("Data/train/NORMAL/link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        fetch(NAME, out=tmp_path / NAME, from_zip=path)
    assert remains(tmp_path) == []


def test_archives_made_to_fill_the_disk_are_refused_before_unpacking(tmp_path, monkeypatch):
    bomb = archive(tmp_path, {"Data/train/NORMAL/0.jpg": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="was not unpacked"):
        fetch(NAME, out=tmp_path / NAME, from_zip=bomb)
    for limit in ("MOST_ENTRIES", "MOST_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(download, limit, 10)
            with pytest.raises(DataError, match="was not unpacked"):
                fetch(NAME, out=tmp_path / NAME, from_zip=archive(tmp_path))
    assert remains(tmp_path) == []


def test_two_files_of_one_name_are_refused(tmp_path):
    path = archive(tmp_path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("Data/train/NORMAL/0.jpg", b"another")
    with pytest.raises(DataError):
        fetch(NAME, out=tmp_path / NAME, from_zip=path)
    assert remains(tmp_path) == []


def harmed(path: Path, harm: str) -> Path:
    content = bytearray(path.read_bytes())
    if harm == "cut":
        content = content[: len(content) // 2]
    elif harm == "text":
        content = b"<html>Sign in to Kaggle</html>"
    elif harm == "flipped":
        content[60] ^= 0xFF
    elif harm == "encrypted":
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("harm", ["cut", "text", "flipped", "encrypted"])
def test_a_damaged_archive_is_named(tmp_path, harm):
    with pytest.raises(DataError, match=r"archive\.zip is not a whole ZIP archive.*Download it again"):
        fetch(NAME, out=tmp_path / NAME, from_zip=harmed(archive(tmp_path), harm))
    assert remains(tmp_path) == []


def test_an_archive_that_is_missing_or_holds_something_else_is_named(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        fetch(NAME, out=tmp_path / NAME, from_zip=tmp_path / "gone.zip")
    with pytest.raises(DataError, match=f"not the data set {NAME}"):
        fetch(NAME, out=tmp_path / NAME, from_zip=archive(tmp_path, {"cats/1.jpg": b"meow"}))
    assert remains(tmp_path) == []
