"""Image folders as people have them: what is found, mapped, ignored, refused."""

import os
from pathlib import Path

import pytest

from pneumo_lib.data import CARDS, card
from pneumo_lib.data.cards import class_of
from pneumo_lib.data.folder import COLUMNS, count, scan
from pneumo_lib.errors import DataError, UsageError

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")


def put(root: Path, *names: str) -> Path:
    """Files that only look like images by name: scanning never decodes."""
    for name in names:
        assert (root / name).is_relative_to(root)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))
    return root


def whole(root: Path, *splits: str, names: tuple[str, ...] = CLASSES, each: int = 2) -> Path:
    return put(root, *(f"{split}/{name}/{i}.jpg" for split in splits or (".",) for name in names for i in range(each)))


# ---- cards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "meant"),
    [
        *[(name, "COVID19") for name in ("COVID", "Covid19", "covid-19", "COVID_19", "Covid 19", "COVID19")],
        *[
            (name, "PNEUMONIA")
            for name in ("Viral Pneumonia", "Bacterial Pneumonia", "pneumonia_bacterial", "PNEUMONIA")
        ],
        *[(name, "NORMAL") for name in ("Normal", "healthy", "No Finding")],
        *[(name, None) for name in ("Lung_Opacity", "NonCOVID", "tuberculosis", "abnormal", "")],
    ],
)
def test_class_names_are_mapped_by_the_table(folder, meant):
    assert class_of(folder) == meant


def test_other_class_lists_use_the_same_spellings():
    assert class_of("Covid-19", ("COVID", "NonCOVID")) == "COVID"
    assert class_of("non covid", ("COVID", "NonCOVID")) == "NonCOVID"
    assert class_of("COVID19", ("NORMAL", "PNEUMONIA")) is None


def test_the_published_counts_are_those_of_the_source_report():
    known = card("chest_xray_covid")
    assert known.classes == CLASSES
    assert dict(known.counts) == {"train": (460, 1266, 3418), "test": (116, 317, 855), "noisy_test": (26, 20, 20)}
    assert all(
        text for row in CARDS.values() for text in (row.title, row.source, row.licence, row.citation, *row.flaws)
    )


def test_a_misspelt_card_is_refused_with_a_suggestion():
    with pytest.raises(UsageError, match="Did you mean 'chest_xray_covid'"):
        card("chest_xray_covdi")


# ---- layouts --------------------------------------------------------------------------------------------------------


def test_splits_and_classes_become_a_sorted_table(tmp_path):
    folder = scan(whole(tmp_path, "train", "test", "noisy_test"))
    assert tuple(folder.table.columns) == COLUMNS
    assert folder.table["path"].tolist() == sorted(folder.table["path"])
    assert folder.root == tmp_path and folder.classes == CLASSES and folder.notes == ()
    row = folder.table.set_index("path").loc["train/NORMAL/1.jpg"]
    assert (row["split"], row["label"], row["bytes"], row["group"]) == ("train", 1, len("train/NORMAL/1.jpg"), "")


def test_class_folders_under_one_root_have_no_split(tmp_path):
    assert set(scan(whole(tmp_path)).table["split"]) == {""}


@pytest.mark.parametrize("wrapper", ["Data", "Data/Data", "a b/ü/c", "COVID"])
def test_wrapper_folders_are_looked_through(tmp_path, wrapper):
    whole(tmp_path / wrapper, "train", "test")
    folder = scan(tmp_path)
    assert folder.root == tmp_path / wrapper
    assert set(folder.table["split"]) == {"train", "test"}
    assert f"found in {wrapper}" in folder.notes[0]


def test_a_wrapper_named_like_a_class_holds_the_classes_inside(tmp_path):
    whole(tmp_path / "covid")
    folder = scan(tmp_path)
    assert len(folder.table) == 6 and folder.root == tmp_path / "covid"


def test_splits_are_known_by_several_names_and_said_aloud(tmp_path):
    for given in ("TRAIN", "Validation", "Test", "Noisy-Test"):
        whole(tmp_path, given)
    folder = scan(tmp_path)
    assert set(folder.table["split"]) == {"train", "val", "test", "noisy_test"}
    assert "Validation as val" in folder.notes[0] and "TRAIN as train" in folder.notes[0]


def test_classes_are_mapped_merged_and_said_aloud(tmp_path):
    folder = scan(whole(tmp_path, "train", names=("COVID", "Normal", "Viral Pneumonia", "Bacterial Pneumonia")))
    assert folder.table["label"].value_counts().to_dict() == {0: 2, 1: 2, 2: 4}
    assert "COVID as COVID19" in folder.notes[0] and "Viral Pneumonia as PNEUMONIA" in folder.notes[0]


def test_an_unknown_split_keeps_its_name_with_a_note_and_a_stray_folder_is_left_out(tmp_path):
    put(whole(tmp_path, "train", "trian"), "docs/readme.txt")
    folder = scan(tmp_path)
    assert set(folder.table["split"]) == {"train", "trian"}
    assert any("trian is no split known" in note for note in folder.notes)
    assert any("docs is neither a split" in note for note in folder.notes)


def test_names_with_spaces_and_other_scripts_are_fine(tmp_path):
    put(whole(tmp_path / "肺炎 data", "train"), "train/NORMAL/胸 片 é.PNG")
    assert "train/NORMAL/胸 片 é.PNG" in scan(tmp_path / "肺炎 data").table["path"].tolist()


def test_names_that_are_not_unicode_are_fine(tmp_path):
    whole(tmp_path, "train")
    with open(os.fsencode(tmp_path) + b"/train/NORMAL/\xff\xfe.jpg", "wb"):
        pass
    assert len(scan(tmp_path).table) == 7


def test_dicom_files_without_suffix_are_found_by_their_mark(tmp_path):
    whole(tmp_path, "train")
    (tmp_path / "train/NORMAL/IM000001").write_bytes(bytes(128) + b"DICM")
    folder = scan(put(tmp_path, "train/NORMAL/LICENSE"))
    assert "train/NORMAL/IM000001" in folder.table["path"].tolist() and len(folder.table) == 7
    assert "1 files that are not JPEG, PNG or DICOM by name (no suffix)" in folder.notes[0]


def test_count_orders_splits_and_fills_absent_classes(tmp_path):
    table = scan(whole(tmp_path, "test", "train", "val")).table
    counts = count(table[~((table["split"] == "val") & (table["label"] == 2))], CLASSES)
    assert counts.index.tolist() == ["train", "val", "test"] and counts.loc["val"].tolist() == [2, 2, 0]


# ---- ignored --------------------------------------------------------------------------------------------------------


def test_what_is_no_image_is_ignored_and_counted(tmp_path):
    whole(tmp_path, "train")
    put(tmp_path, "__MACOSX/train/NORMAL/._0.jpg", ".ipynb_checkpoints/a.jpg", "train/.ipynb_checkpoints/a.jpg")
    put(
        tmp_path, "train/NORMAL/Thumbs.db", "train/NORMAL/._1.jpg", "train/NORMAL/.DS_Store", "train/NORMAL/masks/0.png"
    )
    put(tmp_path, "train/NORMAL/notes.txt", "train/NORMAL/scan.tif", "train/stray.jpg", "README.md")
    folder = scan(tmp_path)
    assert len(folder.table) == 6
    (note,) = folder.notes
    for part in ("6 hidden or system", "(.txt)", "(.tif)", "1 images outside", "1 folders inside class folders"):
        assert part in note


def test_links_are_not_followed_so_loops_end(tmp_path):
    whole(tmp_path / "set", "train")
    put(tmp_path, "outside/secret.jpg")
    (tmp_path / "set/train/NORMAL/loop").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set/train/NORMAL/link.jpg").symlink_to(tmp_path / "outside/secret.jpg")
    (tmp_path / "set/test").symlink_to(tmp_path / "set/train", target_is_directory=True)
    folder = scan(tmp_path / "set")
    assert len(folder.table) == 6 and folder.notes == ("Ignored: 3 symbolic links.",)


# ---- refused --------------------------------------------------------------------------------------------------------


def test_a_root_that_is_missing_a_file_or_empty_is_refused(tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        scan(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file, not a folder"):
        scan(put(tmp_path, "set.zip") / "set.zip")
    with pytest.raises(DataError, match=r"No images found.*holds set\.zip.*COVID19, NORMAL, PNEUMONIA"):
        scan(tmp_path)


def test_two_sets_in_one_folder_are_not_guessed_between(tmp_path):
    whole(tmp_path / "one", "train"), whole(tmp_path / "two", "train")
    with pytest.raises(DataError, match=r"several image folders \(one, two\)"):
        scan(tmp_path)


def test_an_unknown_class_folder_is_named_with_the_mapping(tmp_path):
    put(whole(tmp_path, "train"), "train/Lung_Opacity/0.jpg")
    with pytest.raises(DataError, match=r"Lung_Opacity is none of the expected.*COVID19 \(covid19, covid,.*Rename"):
        scan(tmp_path)


@pytest.mark.parametrize("leave", ["missing", "empty", "text only"])
def test_a_class_without_images_is_an_error_that_says_where(tmp_path, leave):
    whole(tmp_path, "train")
    whole(tmp_path, "test", names=("COVID19", "PNEUMONIA"))
    if leave != "missing":
        (tmp_path / "test/NORMAL").mkdir()
    if leave == "text only":
        put(tmp_path, "test/NORMAL/a.txt")
    with pytest.raises(
        DataError, match=r"No images of NORMAL in .*test: found 2 of COVID19, 0 of NORMAL, 2 of PNEUMONIA"
    ):
        scan(tmp_path)


def test_an_empty_split_folder_is_an_error(tmp_path):
    (whole(tmp_path, "train") / "val").mkdir()
    with pytest.raises(DataError, match=r"No images of COVID19, NORMAL, PNEUMONIA in .*val.*holds nothing"):
        scan(tmp_path)


# ---- patients and manifest ------------------------------------------------------------------------------------------


def test_patients_come_from_kermany_file_names(tmp_path):
    names = ("person123_bacteria_4.jpeg", "person9_virus_1_2.jpeg", "IM-0115-0001.jpeg", "IM-0012-0001-0002.jpeg")
    names += ("NORMAL2-IM-0012-0001.jpeg", "NORMAL(3).jpg", "imperson1_a.jpg")
    whole(tmp_path, "train", each=1)
    table = scan(put(tmp_path, *(f"train/NORMAL/{name}" for name in names))).table.set_index("path")
    groups = [table.loc[f"train/NORMAL/{name}", "group"] for name in names]
    assert groups == ["person123", "person9", "IM-0115", "IM-0012", "NORMAL2-IM-0012", "", ""]


def test_manifest_gives_patients_and_sources_and_disagreement_is_a_note(tmp_path):
    whole(tmp_path / "Data", "train", "test", each=1)
    put(tmp_path / "Data", "train/NORMAL/person7_virus_1.jpg")
    lines = [
        "path,split,label,source,group",
        "train/NORMAL/0.jpg,train,Normal,Kermany,007",
        "train\\COVID19\\0.jpg,train,COVID,Cohen,NA",
    ]
    lines += ["test/COVID19/0.jpg,train,NORMAL,,", "train/NORMAL/gone.jpg,train,NORMAL,,"]
    (tmp_path / "Data/manifest.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    folder = scan(tmp_path)
    table = folder.table.set_index("path")
    assert table.loc["train/NORMAL/0.jpg", ["group", "source"]].tolist() == ["007", "Kermany"]
    assert table.loc["train/COVID19/0.jpg", "group"] == "NA"
    assert table.loc["train/NORMAL/person7_virus_1.jpg", "group"] == "person7"
    assert table.loc["test/COVID19/0.jpg", ["split", "label"]].tolist() == ["test", 0]
    for part in (
        "lists 1 files that are not",
        "does not list 4 of the 7",
        "1 files another label",
        "1 files another split",
    ):
        assert any(part in note for note in folder.notes)


@pytest.mark.parametrize("text", ["name,group\na,b\n", "", 'path\n"a\n'])
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path, text):
    (whole(tmp_path, "train") / "manifest.csv").write_text(text)
    with pytest.raises(DataError, match="Repair or remove it"):
        scan(tmp_path)
