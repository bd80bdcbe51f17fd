"""What is known of each data set, and which class a folder name means beside which others."""

import pytest

from pneumo_lib.data.cards import CARDS, CLASS_LISTS, CLASSES, card, class_of, near_class, spellings

BRAIN, CT, KERMANY = ("NORMAL", "TUMOR"), ("COVID", "NonCOVID"), ("NORMAL", "PNEUMONIA")


def test_published_counts_have_one_number_per_class_and_add_up():
    totals = {name: {s: sum(n) for s, n in known.counts.items()} for name, known in CARDS.items()}
    assert all(len(n) == len(known.classes) for known in CARDS.values() for n in known.counts.values())
    assert totals["chest_xray_kermany"] == {"train": 5216, "val": 16, "test": 624}
    assert totals["pneumonia_mnist"] == {"train": 4708, "val": 524, "test": 624}
    assert totals["covid_ct"] == {"train": 425, "val": 118, "test": 203}
    assert totals["brain_mri"] == {"": 253}


def test_pneumonia_mnist_holds_the_films_of_kermany():
    kermany, mnist = card("chest_xray_kermany").counts, card("pneumonia_mnist").counts
    assert mnist["test"] == kermany["test"] and card("pneumonia_mnist").classes == card("chest_xray_kermany").classes
    assert [a + b for a, b in zip(mnist["train"], mnist["val"], strict=True)] == [1349, 3883]  # Kermany 2018, train
    assert [a + b for a, b in zip(kermany["train"], kermany["val"], strict=True)] == [1349, 3883]


def test_the_class_shares_in_the_flaws_are_those_of_the_counts():
    counts, text = card("chest_xray_kermany").counts, " ".join(card("chest_xray_kermany").flaws)
    for split in ("train", "test"):
        assert f"({counts[split][1] / sum(counts[split]) * 100:.3g} %)" in text


def test_every_set_says_how_it_was_made_and_can_be_got():
    assert {known.modality for known in CARDS.values()} == {"chest X-ray", "CT", "MRI"}
    for known in CARDS.values():
        assert known.name == "phantom" or known.kaggle or known.page.startswith("https://")
        assert known.flaws and known.name in CARDS


def test_class_lists_are_distinct_and_begin_with_the_standard_one():
    assert CLASS_LISTS == (CLASSES, KERMANY, CT, BRAIN)


@pytest.mark.parametrize(
    ("folder", "classes", "meant"),
    [
        *[("no", BRAIN, "NORMAL"), ("yes", BRAIN, "TUMOR"), ("No Tumour", BRAIN, "NORMAL")],
        *[("Healthy", BRAIN, "NORMAL")],
        *[("no", CLASSES, None), ("yes", KERMANY, None), ("no", ("NORMAL", "PNEUMONIA"), None), ("no", CT, None)],
        *[("CT_COVID", CT, "COVID"), ("CT_NonCOVID", CT, "NonCOVID"), ("non-covid", CT, "NonCOVID")],
        *[("CT_COVID", CLASSES, None), ("CT_NonCOVID", CLASSES, None), ("Viral Pneumonia", KERMANY, "PNEUMONIA")],
    ],
)  # fmt: skip
def test_local_spellings_are_understood_for_their_classes_only(folder, classes, meant):
    assert class_of(folder, classes) == meant


def test_a_name_that_is_a_class_means_itself():
    microbes = ("bacteria", "fungi", "virus")
    assert [class_of(name.upper(), microbes) for name in microbes] == list(microbes)
    assert class_of("Viral Pneumonia", microbes) is None, "it fits bacteria and virus alike"
    assert class_of("no", ("no", "TUMOR")) == "no"


def test_names_of_signs_alone_and_of_other_scripts_stay_apart():
    assert [class_of(name, ("+", "-", "正常")) for name in ("+", "-", "正常", "")] == ["+", "-", "正常", None]


@pytest.mark.parametrize(
    ("folder", "near"),
    [("PNEUMONA", "PNEUMONIA"), ("norml", "NORMAL"), ("COVD-19", "COVID19"), ("cats", None), ("Lung_Opacity", None)],
)
def test_misspelt_names_are_near_a_class(folder, near):
    assert near_class(folder, CLASSES) == near


def test_error_messages_offer_what_is_understood():
    assert {"no", "normal", "healthy"} <= set(spellings("NORMAL", BRAIN))
    assert "no" not in spellings("NORMAL") and spellings("cats", ("cats", "dogs")) == ("cats",)
