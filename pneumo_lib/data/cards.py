"""What is known about each data set, and which class the name of a folder means: two tables."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pneumo_lib.errors import UsageError

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")


@dataclass(frozen=True)
class DataCard:
    """One data set: a row of the table below.

    Attributes:
        name: what the command line calls it.
        title: what people call it.
        classes: class names, in the order of the label index.
        counts: published number of images, split -> one number per class; empty when the user chooses them.
        source: where the images come from.
        licence: under which terms.
        citation: whom to cite.
        kaggle: Kaggle handles that hold the set, the best one first; empty when there is nothing to download.
        flaws: what a reader must know before believing a result on this set.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    source: str
    licence: str
    citation: str
    kaggle: tuple[str, ...] = ()
    flaws: tuple[str, ...] = ()


_TABLE = (
    DataCard(
        name="chest_xray_covid",
        title="Chest X-ray (COVID-19 & pneumonia)",
        classes=CLASSES,
        counts={"train": (460, 1266, 3418), "test": (116, 317, 855), "noisy_test": (26, 20, 20)},
        source="NORMAL and PNEUMONIA: Kermany 2018 (Guangzhou, children). COVID19: adults from many publications. "
        "noisy_test: test part of covid19-image-dataset with noise added.",
        licence="Kermany 2018: CC BY 4.0; covid19-image-dataset: CC BY-SA 4.0; "
        "other COVID19 films: per image, some unstated",
        citation="Kermany et al., Cell 172 (2018) 1122, doi:10.1016/j.cell.2018.02.010; "
        "Cohen, Morrison and Dao, arXiv:2003.11597 (2020); "
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
        name="phantom",
        title="Chest phantoms drawn from geometry",
        classes=CLASSES,
        counts={},
        source="Drawn by pneumo_lib.data.phantom from a seed; no patient is involved.",
        licence="the licence of this project",
        citation="this project",
        flaws=("Drawings, not films: a result on them says that the program works and nothing about medicine.",),
    ),
)

CARDS: Mapping[str, DataCard] = {card.name: card for card in _TABLE}

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
)
_MEANING = {spelling: row[0] for row in _SPELLINGS for spelling in row}


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


def class_of(folder_name: str, classes: Sequence[str] = CLASSES) -> str | None:
    """The class that a folder name means, or None: ``Viral Pneumonia`` -> ``PNEUMONIA``."""
    return {_meaning(name): name for name in classes}.get(_meaning(folder_name))


def spellings(class_name: str) -> tuple[str, ...]:
    """The spellings that `class_of` reads as this class, plain lower case, for error messages."""
    same = tuple(spelling for spelling, meaning in _MEANING.items() if meaning == _meaning(class_name))
    return same or (_plain(class_name),)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _meaning(name: str) -> str:
    return _MEANING.get(_plain(name), _plain(name))
