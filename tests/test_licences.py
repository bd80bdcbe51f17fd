"""Films chosen by their licence: what is kept, what is left out, and that nothing doubtful slips through."""

import os

import pandas as pd
import pytest

from pneumo_lib.data import licences
from pneumo_lib.data.licences import FREE, allowed, licences_of, select
from pneumo_lib.errors import DataError, UsageError

TERMS = {
    "train/COVID19/a.jpg": "CC BY 3.0",
    "train/COVID19/b.jpg": "CC BY-NC-SA",
    "train/COVID19/c.jpg": "unstated",
    "train/COVID19/d.jpg": "",
    "train/NORMAL/a.jpg": "CC BY 4.0",
    "train/NORMAL/b.jpg": "CC0 1.0",
    "train/PNEUMONIA/a.jpg": "public domain",
    "test/COVID19/a.jpg": "CC BY-NC-SA 4.0",
    "test/COVID19/b.jpg": "CC BY 4.0",
    "test/NORMAL/a.jpg": "CC BY 4.0",
    "test/PNEUMONIA/a.jpg": "CC BY 4.0",
}
UNLISTED = "train/COVID19/e.jpg"


@pytest.fixture
def shelf(tmp_path):
    """An image folder; nothing in it is decoded."""
    root = tmp_path / "films" / "chest_xray_covid"
    for path in (*TERMS, UNLISTED):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    manifest = pd.DataFrame({"path": list(TERMS), "licence": list(TERMS.values())})
    manifest.assign(group=[f"patient {i}, a" for i in range(len(TERMS))]).to_csv(root / "manifest.csv", index=False)
    return root


def kept(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")}


@pytest.mark.parametrize(
    "licence", ["CC BY", "CC BY 3.0", "CC BY 4.0", "cc by 2.5", "CC-BY-4.0", "CC0", "CC0 1.0", "Public Domain"]
)
def test_free_terms_are_allowed_in_every_version(licence):
    assert allowed(licence, FREE)


@pytest.mark.parametrize(
    "licence",
    [
        *("CC BY-NC", "CC BY-NC 4.0", "CC BY-NC-SA", "CC BY-NC-ND 4.0", "CC BY-ND", "CC BY-SA 4.0", "CC-BY-SA-4.0"),
        *("CC BY 4.0 NC", "CC BYNC", "CC", "BY", "", "4.0", "unstated", "unknown", "listed as authorized for everyone"),
        *("not CC BY", "CC BY or CC BY-NC", "not public domain"),
    ],
)
def test_no_other_terms_pass_for_free_ones(licence):
    assert not allowed(licence, FREE)


def test_a_version_that_is_named_is_meant():
    assert allowed("CC BY 4.0", ["CC BY 4.0"])
    assert not allowed("CC BY 3.0", ["CC BY 4.0"])
    assert not allowed("CC BY", ["CC BY 4.0"])
    assert allowed("CC BY-NC-SA 4.0", ["CC BY", "CC BY-NC-SA"])


def test_what_a_network_learns_from_is_filtered_and_tests_stay_whole(shelf, tmp_path):
    chosen = select(shelf, tmp_path / "free" / "chest_xray_covid")
    left_out = {UNLISTED, "train/COVID19/b.jpg", "train/COVID19/c.jpg", "train/COVID19/d.jpg"}
    assert kept(chosen.folder.root) == {*TERMS, UNLISTED} - left_out
    assert all((chosen.folder.root / path).read_text() == path for path in kept(chosen.folder.root))


def test_the_table_counts_what_was_kept_and_what_not(shelf, tmp_path):
    table = select(shelf, tmp_path / "free").table.set_index(["split", "class", "licence"])
    assert table["films"].sum() == len(TERMS) + 1
    train = table.loc[("train", "COVID19")]
    assert train["films"].to_dict() == {"CC BY 3.0": 1, "CC BY-NC-SA": 1, "unstated": 1, licences.UNKNOWN: 2}
    assert train["kept"].to_dict() == {"CC BY 3.0": 1, "CC BY-NC-SA": 0, "unstated": 0, licences.UNKNOWN: 0}
    assert table.loc[("test", "COVID19"), "kept"].tolist() == [1, 1]


def test_test_splits_are_filtered_where_that_is_asked_for(shelf, tmp_path):
    chosen = select(shelf, tmp_path / "free", every_split=True)
    assert "test/COVID19/a.jpg" not in kept(chosen.folder.root)
    assert "test/COVID19/b.jpg" in kept(chosen.folder.root)


def test_films_without_splits_are_all_filtered(shelf, tmp_path):
    terms = {"COVID19/a.jpg": "CC BY 4.0", "COVID19/b.jpg": "CC BY-ND", "NORMAL/a.jpg": "CC BY", "NORMAL/b.jpg": ""}
    for path in terms:
        (tmp_path / "flat" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "flat" / path).touch()
    pd.DataFrame({"path": terms.keys(), "licence": terms.values()}).to_csv(tmp_path / "flat/manifest.csv", index=False)
    assert kept(select(tmp_path / "flat", tmp_path / "free").folder.root) == {"COVID19/a.jpg", "NORMAL/a.jpg"}


def test_the_manifest_goes_along_with_the_films_it_lists(shelf, tmp_path):
    chosen = select(shelf, tmp_path / "free")
    old, new = (pd.read_csv(root / "manifest.csv").set_index("path") for root in (shelf, chosen.folder.root))
    assert set(new.index) == kept(chosen.folder.root)
    pd.testing.assert_frame_equal(new, old.loc[new.index])
    assert (chosen.folder.table["group"] == new["group"].loc[chosen.folder.table["path"]].to_numpy()).all()


def test_films_are_copied_where_they_cannot_be_linked(shelf, tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    root = select(shelf, tmp_path / "free").folder.root
    first = root / "train/NORMAL/a.jpg"
    assert first.read_text() == "train/NORMAL/a.jpg"
    assert first.stat().st_mtime_ns == (shelf / "train/NORMAL/a.jpg").stat().st_mtime_ns


def test_the_first_folder_is_left_as_it_was(shelf, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in shelf.rglob("*")}
    select(shelf, tmp_path / "free")
    assert {path: path.stat().st_mtime_ns for path in shelf.rglob("*")} == before


def test_a_stopped_selection_leaves_nothing_behind(shelf, tmp_path, monkeypatch):
    def stop(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(licences, "_link", stop)
    with pytest.raises(KeyboardInterrupt):
        select(shelf, tmp_path / "new" / "free")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_class_of_which_nothing_is_left_is_named_with_what_there_was(shelf, tmp_path):
    with pytest.raises(DataError, match=r"No film of PNEUMONIA in .*train is under CC BY: .*1 under public domain"):
        select(shelf, tmp_path / "free", ["CC BY"])
    assert not (tmp_path / "free").exists()


def test_without_a_manifest_or_its_licences_nothing_is_guessed(shelf, tmp_path):
    pd.DataFrame({"path": list(TERMS), "label": ""}).to_csv(shelf / "manifest.csv", index=False)
    with pytest.raises(DataError, match=r"manifest.csv has no column 'licence', only path, label"):
        select(shelf, tmp_path / "free")
    (shelf / "manifest.csv").unlink()
    with pytest.raises(DataError, match=r"There is no manifest.csv in .*chest_xray_covid"):
        select(shelf, tmp_path / "free")


def test_a_folder_with_something_in_it_is_not_written_into(shelf, tmp_path):
    (tmp_path / "free").mkdir()
    (tmp_path / "free" / "mine.txt").touch()
    with pytest.raises(DataError, match="free is there already"):
        select(shelf, tmp_path / "free")
    with pytest.raises(DataError, match="lies inside the image folder"):
        select(shelf, shelf / "free")
    (tmp_path / "free" / "mine.txt").unlink()
    assert kept(select(shelf, tmp_path / "free").folder.root), "an empty one is"


@pytest.mark.parametrize("names", [[], [""], ["CC BY", " - "]])
def test_no_licence_is_no_choice(shelf, tmp_path, names):
    with pytest.raises(UsageError, match="name at least one"):
        select(shelf, tmp_path / "free", names)


def test_licences_are_told_film_by_film(shelf):
    assert licences_of(shelf, ["train/COVID19/d.jpg", "test/COVID19/b.jpg", UNLISTED]) == [
        licences.UNKNOWN,
        "CC BY 4.0",
        licences.UNKNOWN,
    ]
