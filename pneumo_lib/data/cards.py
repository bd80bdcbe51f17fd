"""What is known about each data set, and which class the name of a folder means: two tables."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pneumo_lib.errors import UsageError

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")
LIKENESS = 0.8  # of two words, as difflib measures it: PNEUMONA and PNEUMONIA 0.94, ABNORMAL and NORMAL 0.86


@dataclass(frozen=True)
class DataCard:
    """One data set: a row of the table below.

    Attributes:
        name: what the command line calls it.
        title: what people call it.
        modality: "chest X-ray", "CT" or "MRI".
        classes: class names, in the order of the label index.
        counts: published number of images, split -> one number per class, split '' when none is published; empty when
            the user chooses them.
        source: where the images come from.
        licence: under which terms.
        citation: whom to cite.
        kaggle: Kaggle handles that hold the set, the best one first; empty when there is nothing to download.
        page: where people can fetch the set themselves when Kaggle does not hold it.
        medmnist: name of the set in the package `medmnist`; empty when it is not from there.
        flaws: what a reader must know before believing a result on this set.
        positive: of two classes the one that counts as a finding.
        sensitivity: the share of the findings on validation that the operating point must still find; 0 takes the most
            probable class.
    """

    name: str
    title: str
    modality: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    source: str
    licence: str
    citation: str
    kaggle: tuple[str, ...] = ()
    page: str = ""
    medmnist: str = ""
    flaws: tuple[str, ...] = ()
    positive: str = ""
    sensitivity: float = 0.0


_KERMANY = "Kermany et al., Cell 172 (2018) 1122, doi:10.1016/j.cell.2018.02.010"
_TABLE = (
    DataCard(
        name="chest_xray_covid",
        title="Chest X-ray (COVID-19 & pneumonia)",
        modality="chest X-ray",
        classes=CLASSES,
        counts={"train": (460, 1266, 3418), "test": (116, 317, 855), "noisy_test": (26, 20, 20)},
        source="NORMAL and PNEUMONIA: Kermany 2018 (Guangzhou, children). COVID19: adults from many publications. "
        "noisy_test: test part of covid19-image-dataset with noise added.",
        licence="Kermany 2018: CC BY 4.0; covid19-image-dataset: CC BY-SA 4.0; "
        "other COVID19 films: per image, some unstated",
        citation=_KERMANY + "; Cohen, Morrison and Dao, arXiv:2003.11597 (2020); "
        "Patel, Kaggle prashant268/chest-xray-covid19-pneumonia (2020)",
        kaggle=("prashant268/chest-xray-covid19-pneumonia", "alsaniipe/chest-x-ray-image"),
        flaws=(
            "COVID19 are adults from other hospitals, the other two classes children from one: "
            "a classifier can tell the source instead of the disease.",
            "The classes are unbalanced: always answering PNEUMONIA is right for two films in three.",
            "Patients and re-encoded copies of films stand in more than one split.",
            "No validation split is published.",
        ),
    ),
    DataCard(
        name="chest_xray_kermany",
        title="Chest X-ray images (pneumonia)",
        modality="chest X-ray",
        classes=("NORMAL", "PNEUMONIA"),
        counts={"train": (1341, 3875), "val": (8, 8), "test": (234, 390)},
        source="Guangzhou Women and Children's Medical Center; graded by two readers, "
        "the test films by a third as well.",
        licence="CC BY 4.0",
        citation=_KERMANY,
        kaggle=("paultimothymooney/chest-xray-pneumonia",),
        flaws=(
            "Children of one hospital: nothing is known of adults, nor of other machines.",
            "The published validation split has 16 films; one of them is 6 % of its accuracy.",
            "Test has another share of PNEUMONIA (62.5 %) than train (74.3 %) and looks different: "
            "a threshold chosen on validation films from train does not carry over.",
        ),
        positive="PNEUMONIA",
        sensitivity=0.95,
    ),
    DataCard(
        name="pneumonia_mnist",
        title="PneumoniaMNIST (MedMNIST v2)",
        modality="chest X-ray",
        classes=("NORMAL", "PNEUMONIA"),
        counts={"train": (1214, 3494), "val": (135, 389), "test": (234, 390)},
        source="Kermany 2018, cropped to the middle square and resized to 28, 64, 128 or 224 pixels; "
        "a tenth of its train became val, its test is test here.",
        licence="CC BY 4.0",
        citation="Yang et al., Scientific Data 10 (2023) 41, doi:10.1038/s41597-022-01721-8; " + _KERMANY,
        page="https://zenodo.org/records/10519652",
        medmnist="pneumoniamnist",
        flaws=(
            "The films of Kermany 2018 and their flaws: children of one hospital, and a test that differs from train.",
            "File names are gone, and with them the patients: one may stand in train and in val.",
            "The middle square leaves out the borders of wide films; at 28 pixels fine opacities are gone too.",
        ),
        positive="PNEUMONIA",
        sensitivity=0.95,
    ),
    DataCard(
        name="covid_ct",
        title="COVID-CT",
        modality="CT",
        classes=("COVID", "NonCOVID"),
        counts={"train": (191, 234), "val": (60, 58), "test": (98, 105)},
        source="GitHub UCSD-AI4H/COVID-CT: slices cut out of the figures of papers and preprints.",
        licence="research use; the copyright of each slice stays with the authors and publishers of its paper",
        citation="Yang et al., arXiv:2003.13865 (2020)",
        page="https://github.com/UCSD-AI4H/COVID-CT",
        flaws=(
            "Slices are figures of papers: scaled, compressed and marked by their publishers, chosen to be shown.",
            "Several slices come from one patient; only splits and intervals by patient mean something.",
            "Small: one of the 203 test slices is half a point of accuracy.",
        ),
        positive="COVID",
    ),
    DataCard(
        name="brain_mri",
        title="Brain MRI images for brain tumor detection",
        modality="MRI",
        classes=("NORMAL", "TUMOR"),
        counts={"": (98, 155)},
        source="Kaggle navoneel/brain-mri-images-for-brain-tumor-detection: slices collected from the web, "
        "in the folders no and yes.",
        licence="unstated",
        citation="Chakrabarty, Kaggle navoneel/brain-mri-images-for-brain-tumor-detection (2019)",
        kaggle=("navoneel/brain-mri-images-for-brain-tumor-detection",),
        flaws=(
            "Collected from the web with repeats: remove copies before splitting, or test films stand in train.",
            "Tiny, and no split is published: cross-validate and give intervals.",
            "Nobody says who was examined, how, or who decided what is a tumor.",
        ),
        positive="TUMOR",
    ),
    DataCard(
        name="phantom",
        title="Chest phantoms drawn from geometry",
        modality="chest X-ray",
        classes=CLASSES,
        counts={},
        source="Drawn by pneumo_lib.data.phantom from a seed; no patient is involved.",
        licence="the licence of this project",
        citation="this project",
        flaws=("Drawings, not films: a result on them says that the program works and nothing about medicine.",),
    ),
)

CARDS: Mapping[str, DataCard] = {card.name: card for card in _TABLE}
CLASS_LISTS = tuple(dict.fromkeys(card.classes for card in _TABLE))  # each once, the standard one first

# Every spelling in a row means the same class; compared without case, spaces, hyphens and underscores.
_SPELLINGS = (
    (
        "covid19",
        "covid",
        "covid2019",
        "covid19pneumonia",
        "covidpneumonia",
        "covid19positive",
        "covidpositive",
        "sarscov2",
    ),
    ("normal", "healthy", "nofinding", "nofindings"),
    (
        *("pneumonia", "viralpneumonia", "bacterialpneumonia", "pneumoniaviral", "pneumoniabacterial"),
        *("pneumoniavirus", "pneumoniabacteria", "viruspneumonia", "bacteriapneumonia"),
        *("viral", "bacterial", "virus", "bacteria"),
    ),
    ("noncovid", "noncovid19"),
    ("tumor", "tumour", "braintumor", "braintumour"),
)
_MEANING = {spelling: row[0] for row in _SPELLINGS for spelling in row}
# Spellings that mean this only where the class in front is one of those expected: "no" says nothing by itself.
_BESIDE = {
    "tumor": {"no": "normal", "notumor": "normal", "notumour": "normal", "yes": "tumor"},
    "noncovid": {"ctcovid": "covid19", "ctnoncovid": "noncovid"},
}


def card(name: str) -> DataCard:
    """The card of a data set.

    Raises:
        UsageError: there is no such data set.
    """
    if name in CARDS:
        return CARDS[name]
    near = difflib.get_close_matches(name, CARDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"There is no data set named {name!r}; known are {', '.join(CARDS)}.{hint}")


def card_for(folder_name: str) -> DataCard | None:
    """The card whose name a folder's name, or a longer name of some part of its films, begins with; None without."""
    fitting = [name for name in CARDS if folder_name.startswith(name)]
    return CARDS[max(fitting, key=len)] if fitting else None


def class_of(folder_name: str, classes: Sequence[str] = CLASSES) -> str | None:
    """The class that a folder name means, or None: ``Viral Pneumonia`` -> ``PNEUMONIA``.

    A name that stands among the classes means itself, whatever else it may mean. A spelling that fits two of the
    classes means neither.
    """
    given = plain(folder_name)
    literal = {plain(name): name for name in classes}
    if given in literal:
        return literal[given]
    meaning = _meanings(classes).get(given)
    fitting = [name for name in classes if meaning and _MEANING.get(plain(name)) == meaning]
    return fitting[0] if len(fitting) == 1 else None


def near_class(folder_name: str, classes: Sequence[str]) -> str | None:
    """The class that a folder name means or, misspelt, may have been meant to: ``PNEUMONA`` -> ``PNEUMONIA``."""
    near = difflib.get_close_matches(
        plain(folder_name), [s for c in classes for s in spellings(c, classes)], n=1, cutoff=LIKENESS
    )
    return class_of(folder_name, classes) or (class_of(near[0], classes) if near else None)


def spellings(class_name: str, classes: Sequence[str] = CLASSES) -> tuple[str, ...]:
    """The spellings that `class_of` reads as this class, plain lower case, for error messages."""
    own = _MEANING.get(plain(class_name))
    return tuple(s for s, meaning in _meanings(classes).items() if meaning == own) or (plain(class_name),)


def plain(name: str) -> str:
    """A name as names are compared: lower case, without spaces, hyphens, underscores and other signs."""
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def _meanings(classes: Sequence[str]) -> dict[str, str]:
    """Spelling -> meaning where these classes are expected."""
    beside = [_BESIDE.get(_MEANING.get(plain(name), ""), {}) for name in classes]
    return _MEANING | {spelling: meaning for table in beside for spelling, meaning in table.items()}
