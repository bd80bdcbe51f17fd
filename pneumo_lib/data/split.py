"""Split by patient: nobody's films stand on both sides, and every class keeps its share.

Groups (patients; a file of unknown patient is a group of its own) are put in the order of a hash of seed and name and
dealt from there. So the same files and seed give the same split on every machine, and adding a film moves few others.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pandas as pd

from pneumo_lib.data.cache import ImageSet
from pneumo_lib.data.folder import ImageFolder
from pneumo_lib.errors import DataError, UsageError

LEAST_GROUPS = 3
LEAST_VAL = 0.05  # a published validation split smaller than this share of train (Kermany's 16 films) measures nothing

Films = TypeVar("Films", ImageFolder, ImageSet)


def carve(films: Films, *, fraction: float = 0.1, seed: int) -> Films:
    """The same films with a split ``val`` taken from ``train``, whole patients at a time, from each class alike.

    A published ``val`` of at least 5 % of ``train`` is kept; a smaller one is put back into ``train`` first.

    Args:
        films: folder or image set that has a ``train`` split.
        fraction: share of the train films of each class that goes to ``val``, in (0, 0.5].
        seed: another seed, another split.

    Raises:
        DataError: no ``train`` split, or fewer than three patients of a class in it.
        UsageError: impossible fraction.
    """
    if not 0 < fraction <= 0.5:
        raise UsageError(f"The validation fraction is {fraction}; expected is more than 0 and at most 0.5.")
    split, notes = films.table["split"].copy(), []
    sizes = split.value_counts()
    if "train" not in sizes:
        found = ", ".join(repr(name) for name in sizes.index)
        raise DataError(f"There is no split 'train' in {films.root} to take validation from; found are {found}.")
    if sizes.get("val", 0) >= LEAST_VAL * sizes["train"]:
        return _with(
            films, split, [f"Validation is the split that came with the set, {sizes['val']} films{_shared(films)}."]
        )
    if "val" in sizes:
        split[split == "val"] = "train"
        notes.append(
            f"The val split that came with the set ({sizes['val']} films) is too small and was put back into train."
        )
    taken = _deal(films, split == "train", {"val": fraction}, seed)
    split[taken.index] = taken
    return _with(films, split, [*notes, _moved(films, taken, "train")])


def assign(films: Films, *, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int) -> Films:
    """The same films dealt into ``train``, ``val`` and ``test``, whole patients at a time, from each class alike.

    Args:
        films: folder or image set without splits of its own; any that it has are overruled.
        fractions: shares of train, val and test, which add up to 1.
        seed: another seed, another split.

    Raises:
        DataError: fewer than three patients of a class.
        UsageError: impossible fractions.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(f"The fractions are {tuple(fractions)}; expected are three positive numbers that add up to 1.")
    everyone = pd.Series(True, index=films.table.index)
    taken = _deal(films, everyone, {"test": fractions[2], "val": fractions[1]}, seed)
    split = taken.reindex(films.table.index, fill_value="train")
    return _with(films, split, [_moved(films, taken, "the whole set")])


@dataclass(frozen=True, eq=False)
class Fold:
    """One part of a cross-validation.

    Attributes:
        train, test: rows of the table, int64, ascending; together every row, none twice.
    """

    train: np.ndarray
    test: np.ndarray

    def apply(self, films: Films) -> Films:
        """The same films with the splits ``train`` and ``test`` of this fold, ready for `carve`."""
        split = np.full(len(films.table), "train", object)
        split[self.test] = "test"
        return replace(films, table=films.table.assign(split=split))


def folds(films: Films, *, k: int = 5, seed: int) -> list[Fold]:
    """Cross-validation by patient: every film is tested once, and each class keeps its share in every fold.

    Args:
        films: folder or image set; splits that it has are overruled. Remove copies first: they are nobody's patient.
        k: number of folds, at least 2.
        seed: another seed, another dealing.

    Raises:
        DataError: fewer than k patients of a class.
        UsageError: fewer than two folds.
    """
    if k < 2:
        raise UsageError(f"The number of folds is {k}; expected are at least 2.")
    group, groups = _groups(films.table, seed)
    place, filled = {}, np.zeros(k, int)
    for label, name in enumerate(films.classes):
        sizes = groups[groups["label"] == label].sort_values("order")["films"]
        _check_enough(sizes, name, films, k)
        place |= _fill(sizes, filled)
    fold = group.map(place).to_numpy()
    return [Fold(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(k)]


def _fill(sizes: pd.Series, filled: np.ndarray) -> dict[str, int]:
    """Deal the groups of a class, the largest first, each to the fold with fewest films of it, then of all."""
    own, place = np.zeros_like(filled), {}
    for name, size in sizes.sort_values(ascending=False, kind="stable").items():
        place[name] = min(range(len(own)), key=lambda i: (own[i], filled[i], i))
        own[place[name]] += size
        filled[place[name]] += size
    return place


def _with(films: Films, split: pd.Series, notes: list[str]) -> Films:
    return replace(films, table=films.table.assign(split=split), notes=(*films.notes, *notes))


def _deal(films: Films, pool: pd.Series, shares: dict[str, float], seed: int) -> pd.Series:
    """Split name of each film that is taken out of the pool, indexed like the table."""
    group, groups = _groups(films.table[pool], seed)
    place: dict[str, str] = {}
    for label, name in enumerate(films.classes):
        sizes = groups[groups["label"] == label].sort_values("order")["films"]
        _check_enough(sizes, name, films, LEAST_GROUPS)
        place |= _deal_class(sizes, shares)
    return group.map(place).dropna()


def _groups(table: pd.DataFrame, seed: int) -> tuple[pd.Series, pd.DataFrame]:
    """The group of each film, and per group its number of films, label and place in the order of the seed."""
    # A film of unknown patient is named by its path, which no patient's name can equal because of the mark in front.
    group = table["group"].where(table["group"] != "", "\0" + table["path"])
    groups = pd.DataFrame({"films": group.value_counts()})
    # A patient with films of several classes goes where most of them are; the lowest label wins a tie.
    groups["label"] = table["label"].groupby(group).agg(lambda labels: labels.mode().iloc[0])
    groups["order"] = [_hash(seed, name) for name in groups.index]
    return group, groups


def _deal_class(sizes: pd.Series, shares: dict[str, float]) -> dict[str, str]:
    place: dict[str, str] = {}
    total = sizes.sum()
    for position, (split, share) in enumerate(shares.items(), start=1):
        chosen = _take(sizes, share * total, keep=len(shares) + 1 - position)
        place |= dict.fromkeys(chosen, split)
        sizes = sizes.drop(chosen)
    return place


def _take(sizes: pd.Series, target: float, keep: int) -> list[str]:
    """Groups, in order, whose films come closest to the target; at least one is taken and `keep` are left."""
    chosen, films = [], 0
    for name, size in sizes.items():
        if films + size / 2 <= target and len(sizes) - len(chosen) > keep:
            chosen.append(name)
            films += size
    return chosen or [sizes.idxmin()]


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogateescape")).hexdigest()


def _check_enough(sizes: pd.Series, name: str, films: Films, least: int) -> None:
    if len(sizes) < least:
        raise DataError(
            f"Class {name} in {films.root} has {len(sizes)} patients ({sizes.sum()} films) to split; at least "
            f"{least} are needed (who has films of several classes counts where most are). "
            "Add films of other patients, or give the set a val split of its own."
        )


def _shared(films: Films) -> str:
    groups = films.table[films.table["group"] != ""].groupby("split")["group"].agg(set)
    shared = len(groups.get("train", set()) & groups.get("val", set()))
    return f"; {shared} of its patients have films in train too" if shared else ""


def _moved(films: Films, taken: pd.Series, origin: str) -> str:
    rows = films.table.loc[taken.index]
    parts = []
    for split, part in rows.groupby(taken):
        known = part.loc[part["group"] != "", "group"].nunique()
        unknown = int((part["group"] == "").sum())
        parts.append(
            f"{split} got {len(part)} films of {known} known patients"
            + (f" ({unknown} of unknown patient)" if unknown else "")
        )
    return f"Taken from {origin} by patient: {'; '.join(parts)}."
