"""One film of each cluster of copies: what to do with what the audit found, before films are dealt into parts."""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pneumo_lib.data.audit import Audit, audit
from pneumo_lib.data.cache import ImageSet
from pneumo_lib.errors import DataError

_KEPT_FIRST = ("test", "val")  # a copy costs least where there are most films, and then test stays what it was


def without_duplicates(
    films: ImageSet, *, found: Audit | None = None, hashes: bool = True, planted: int = 60, seed: int = 0
) -> ImageSet:
    """The same films with one of each cluster of copies, and none of a cluster whose labels contradict each other.

    Clusters are what the audit's pairs connect, exact and near copies alike. Of the films of a cluster one of ``test``
    is kept, else one of ``val``, else another; the first by path.

    Args:
        films: an image set, with or without splits.
        found: the audit of just these films, where it was made already; made here when None.
        hashes, planted, seed: for that audit.

    Returns:
        The films that are left, in their order, with a note that says how many were removed; the array is a copy.

    Raises:
        DataError: fewer than two films, a file that has gone, an audit of other films, or a class that loses all its
            films.
    """
    found = found or audit(films, hashes=hashes, planted=planted, seed=seed)
    cluster = _clusters(films, found.pairs)
    label = pd.Series(films.labels)
    disputed = (label.groupby(cluster).transform("nunique") > 1).to_numpy()
    kept = _first_of_each(films.table, cluster) & ~disputed
    _check_left(films, kept)
    note = _note(np.bincount(cluster)[cluster] > 1, kept, disputed, cluster)
    rows = np.flatnonzero(kept)
    table = films.table.iloc[rows].reset_index(drop=True)
    return replace(films, images=films.images[rows], table=table, notes=(*films.notes, note))


def _clusters(films: ImageSet, pairs: pd.DataFrame) -> np.ndarray:
    """(N,) the number of each film's cluster; a film without copies is alone in its own."""
    index, n = pd.Index(films.table["path"]), len(films)
    a, b = index.get_indexer(pairs["path_a"]), index.get_indexer(pairs["path_b"])
    if min(a.min(initial=0), b.min(initial=0)) < 0:
        raise DataError(f"The audit names films that are not among the {n} of {films.root}. Audit just these films.")
    return connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(n, n)), directed=False)[1]


def _first_of_each(table: pd.DataFrame, cluster: np.ndarray) -> np.ndarray:
    rank = table["split"].map({split: place for place, split in enumerate(_KEPT_FIRST)}).fillna(len(_KEPT_FIRST))
    order = np.lexsort((table["path"].rank().to_numpy(), rank.to_numpy(), cluster))
    kept = np.zeros(len(table), bool)
    kept[order[np.r_[True, np.diff(cluster[order]) != 0]]] = True
    return kept


def _check_left(films: ImageSet, kept: np.ndarray) -> None:
    had = films.table.groupby(["split", "label"]).size()
    left = films.table[kept].groupby(["split", "label"]).size()
    for split, label in had.index.difference(left.index):
        raise DataError(
            f"All {had[split, label]} films of {films.classes[label]} in {split or films.root} are copies of films "
            "kept elsewhere or contradict them. Join the splits and deal them anew, or look at the pairs of the audit."
        )


def _note(copied: np.ndarray, kept: np.ndarray, disputed: np.ndarray, cluster: np.ndarray) -> str:
    if not copied.any():
        return f"No copies were found among the {len(kept)} films."
    note = f"Of {len(kept)} films {copied.sum()} have copies, in {len(np.unique(cluster[copied]))} clusters; "
    return note + f"{(~kept).sum()} were removed, {disputed.sum()} of them because copies carry contradictory labels."
