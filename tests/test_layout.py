"""Which classes a tree of folders has, when nobody says so."""

from pathlib import Path

import pytest

from pneumo_lib.data.folder import scan
from pneumo_lib.errors import DataError, UsageError

STANDARD = ("COVID19", "NORMAL", "PNEUMONIA")


def whole(root: Path, *splits: str, names: tuple[str, ...], each: int = 2) -> Path:
    """Files that only look like images by name: scanning never decodes."""
    for split in splits or (".",):
        for name in names:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(each):
                (root / split / name / f"{i}.jpg").write_bytes(b"x")
    return root


# ---- sets that are known --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [(), ("train", "test")])
@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (STANDARD, STANDARD),
        (("NORMAL", "PNEUMONIA"), ("NORMAL", "PNEUMONIA")),
        (("Healthy", "viral", "bacterial"), ("NORMAL", "PNEUMONIA")),
        (("CT_COVID", "CT_NonCOVID"), ("COVID", "NonCOVID")),
        (("covid", "non-covid"), ("COVID", "NonCOVID")),
        (("yes", "no"), ("NORMAL", "TUMOR")),
        (("Normal", "Tumour"), ("NORMAL", "TUMOR")),
    ],
)
def test_the_card_whose_classes_are_all_there_is_found(tmp_path, splits, names, classes):
    folder = scan(whole(tmp_path, *splits, names=names))
    assert folder.classes == classes
    assert len(folder.table) == 2 * len(names) * max(1, len(splits))
    assert set(folder.table["label"]) == set(range(len(classes)))
    assert not any("no data card" in note for note in folder.notes)


def test_no_and_yes_are_said_aloud_and_have_the_right_labels(tmp_path):
    folder = scan(whole(tmp_path, names=("no", "yes")))
    assert dict(zip(folder.table["path"], folder.table["label"], strict=True))["yes/0.jpg"] == 1
    assert folder.notes == ("Folder names read as: no as NORMAL, yes as TUMOR.",)


def test_a_class_missing_in_one_split_is_refused_and_makes_no_smaller_set(tmp_path):
    whole(tmp_path, "train", names=STANDARD)
    whole(tmp_path, "test", names=STANDARD[1:])
    with pytest.raises(DataError, match=r"No images of COVID19 in .*test: found 0 of COVID19, 2 of NORMAL"):
        scan(tmp_path)


def test_a_class_folder_that_is_empty_everywhere_is_still_expected(tmp_path):
    whole(whole(tmp_path, "train", names=STANDARD[1:]), "train", names=("COVID19",), each=0)
    with pytest.raises(DataError, match="No images of COVID19"):
        scan(tmp_path)


def test_two_classes_in_every_split_are_two_classes_and_one_without_is_refused(tmp_path):
    whole(tmp_path, "train", "test", names=("NORMAL", "PNEUMONIA"))
    assert scan(tmp_path).classes == ("NORMAL", "PNEUMONIA")
    whole(tmp_path, "val", names=("NORMAL",))
    with pytest.raises(DataError, match=r"No images of PNEUMONIA in .*val"):
        scan(tmp_path)


def test_two_splits_that_share_no_pair_of_classes_are_refused(tmp_path):
    whole(tmp_path, "train", names=("COVID19", "NORMAL"))
    whole(tmp_path, "test", names=("COVID19", "PNEUMONIA"))
    with pytest.raises(DataError, match=r"No images of PNEUMONIA in .*train|No images of NORMAL in .*test"):
        scan(tmp_path)


@pytest.mark.parametrize(("name", "missing"), [("NORMAL", "COVID19, PNEUMONIA"), ("Tumour", "NORMAL")])
def test_a_single_class_of_a_known_set_says_what_is_missing(tmp_path, name, missing):
    with pytest.raises(DataError, match=f"No images of {missing} in"):
        scan(whole(tmp_path, "train", names=(name,)))


def test_the_archive_of_the_brain_mri_holds_everything_twice(tmp_path):
    whole(tmp_path, names=("no", "yes"))
    whole(tmp_path / "brain_tumor_dataset", names=("no", "yes"))
    folder = scan(tmp_path)
    assert len(folder.table) == 4 and folder.root == tmp_path
    assert "brain_tumor_dataset holds the classes once more; it was left out" in folder.notes[-1]


# ---- names that nearly fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "offending"),
    [
        (("COVID19", "NORMAL", "PNEUMONA"), "PNEUMONA"),
        (("NORML", "PNEUMONIA"), "NORML"),
        (("NORML", "PNEUMONA"), "NORML"),
        (("COVID", "NonCOVD"), "NonCOVD"),
        ((*STANDARD, "Lung_Opacity"), "Lung_Opacity"),
        (("NORMAL", "PNEUMONIA", "masks"), "masks"),
    ],
)
def test_a_misspelt_or_additional_folder_is_refused_and_the_known_names_are_offered(tmp_path, names, offending):
    with pytest.raises(DataError, match=rf"{offending} is none of the expected.*Known names.*\(.*your own classes"):
        scan(whole(tmp_path, "train", "test", names=names))
    folder = scan(tmp_path, classes=names)
    assert folder.classes == names and len(folder.table) == 4 * len(names)


def test_a_name_misspelt_in_one_split_only_is_refused(tmp_path):
    whole(tmp_path, "train", names=("NORMAL", "PNEUMONIA"))
    whole(tmp_path, "test", names=("NORMAL", "PNEUMONA"))
    with pytest.raises(DataError, match="PNEUMONA is none of the expected"):
        scan(tmp_path)


# ---- sets that nobody knows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("cats", "dogs"),
        ("glioma", "meningioma", "notumor", "pituitary"),
        ("NORMAL", "TUBERCULOSIS"),
        ("ABNORMAL", "NORMAL"),
        ("bacteria", "fungi", "virus"),
        ("bacterial", "viral"),
        ("COVID19", "NORMAL"),
        ("0", "1", "10", "2"),
        ("正常", "肺炎"),
    ],
)
@pytest.mark.parametrize("splits", [(), ("train", "val", "test")])
def test_other_names_are_classes_in_sorted_order_and_said_aloud(tmp_path, names, splits):
    folder = scan(whole(tmp_path / "wrapped", *splits, names=names[::-1]).parent)
    assert folder.classes == names and folder.root == tmp_path / "wrapped"
    assert folder.table["label"].value_counts().to_dict() == dict.fromkeys(range(len(names)), 2 * max(1, len(splits)))
    assert any(f"names of the folders, {', '.join(names)}: no data card" in note for note in folder.notes)


def test_one_name_spelt_in_two_ways_is_one_class(tmp_path):
    whole(tmp_path, "train", names=("Cats", "dogs"))
    whole(tmp_path, "test", names=("cats", "Dogs"))
    folder = scan(tmp_path)
    assert folder.classes == ("Cats", "Dogs") and folder.table["label"].value_counts().to_dict() == {0: 4, 1: 4}


def test_other_names_must_be_in_every_split_too(tmp_path):
    whole(tmp_path, "train", names=("cats", "dogs"))
    whole(tmp_path, "test", names=("cat", "dogs"))
    with pytest.raises(DataError, match=r"No images of cat in .*train|No images of cats in .*test"):
        scan(tmp_path)


def test_folders_without_images_are_no_classes(tmp_path):
    whole(whole(tmp_path, "train", names=("cats", "dogs")), "train", names=("notes",), each=0)
    with pytest.raises(DataError, match="notes is none of the expected classes"):
        scan(tmp_path)
    with pytest.raises(DataError, match="No images found"):
        scan(whole(tmp_path / "empty", names=("a", "b"), each=0))


def test_splits_that_hold_images_themselves_are_no_classes(tmp_path):
    with pytest.raises(DataError, match=r"No images found .* or at least two class folders of other names"):
        scan(whole(tmp_path, names=("train", "test")))


def test_a_known_set_is_preferred_to_other_folders_around_it(tmp_path):
    whole(tmp_path, names=("figures", "tables"))
    whole(tmp_path / "set", "train", "test", names=STANDARD)
    assert scan(tmp_path).root == tmp_path / "set"


def test_one_class_alone_is_refused(tmp_path):
    with pytest.raises(DataError, match="one class only, cats"):
        scan(whole(tmp_path, "train", "test", names=("cats",)))


# ---- classes that are given -----------------------------------------------------------------------------------------


def test_classes_that_are_given_keep_their_order(tmp_path):
    whole(tmp_path, "train", names=("NORMAL", "PNEUMONIA"))
    folder = scan(tmp_path, classes=("PNEUMONIA", "NORMAL"))
    assert folder.classes == ("PNEUMONIA", "NORMAL")
    assert dict(zip(folder.table["path"], folder.table["label"], strict=True))["train/NORMAL/0.jpg"] == 1


@pytest.mark.parametrize("classes", [(), ("NORMAL",), ("NORMAL", "Normal", "TUMOR")])
def test_impossible_class_lists_are_refused(tmp_path, classes):
    with pytest.raises(UsageError, match="at least two, each once"):
        scan(whole(tmp_path, names=("NORMAL", "TUMOR")), classes=classes)
