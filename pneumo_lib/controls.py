"""What a network could learn instead of the disease: the same films with something taken away, or kept apart.

A score far above chance on films without their lungs, on sixteen pixels a side or on a sorted heap of grey levels was
not learned from the disease, and whatever it was learned from is in the whole films too. A class that is recognised
among films of its known sources but not among those of another was recognised by its source.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from pneumo_lib.data import ImageSet

BORDER = 1 / 8  # of the side, on each side: about what lies outside the lungs
BLANK = 128  # the grey of what was taken away; a film's own mean would still tell about the film
SMALL = 16  # pixels a side
BLOCK = 512  # films at a time
USED = ("train", "val", "test")

View = Callable[[np.ndarray], np.ndarray]


def _middle(side: int) -> slice:
    margin = round(BORDER * side)
    return slice(margin, side - margin)


def border_only(films: np.ndarray) -> np.ndarray:
    """The middle three quarters of both sides blanked, lungs and all."""
    inside, seen = _middle(films.shape[-1]), films.copy()
    seen[:, inside, inside] = BLANK
    return seen


def centre_only(films: np.ndarray) -> np.ndarray:
    """The border blanked: marks, text, arms and the collimator's edge."""
    inside, seen = _middle(films.shape[-1]), np.full_like(films, BLANK)
    seen[:, inside, inside] = films[:, inside, inside]
    return seen


def thumbnail(films: np.ndarray) -> np.ndarray:
    """Averaged down to 16 x 16 pixels and drawn large again: no finding survives."""
    small = F.adaptive_avg_pool2d(torch.tensor(films)[:, None].float(), SMALL)
    return F.interpolate(small, films.shape[-2:])[:, 0].round().byte().numpy()


def grey_levels(films: np.ndarray) -> np.ndarray:
    """Every film's pixels in rising order: its histogram, and nothing of what it shows."""
    return np.sort(films.reshape(len(films), -1), axis=1).reshape(films.shape)


VIEWS: dict[str, View] = {
    "whole film": lambda films: films,
    "centre only": centre_only,
    "border only": border_only,
    f"{SMALL} x {SMALL} pixels": thumbnail,
    "grey levels only": grey_levels,
}


def controls(images: ImageSet, *, seed: int) -> Iterator[tuple[str, ImageSet]]:
    """Name and films of every control: the views, shuffled labels, and each source of a class that has several.

    Args:
        images: films with the splits train, val and test.
        seed: of the shuffling.
    """
    for name, view in VIEWS.items():
        yield name, seen(images, view)
    yield "shuffled labels", shuffled(images, seed)
    for label, source in sources(images):
        yield f"{images.classes[label]} of {source} kept apart", kept_apart(images, label, source)


def seen(images: ImageSet, view: View) -> ImageSet:
    """The same films as a view shows them, (N, S, S) uint8 in memory."""
    blocks = (np.asarray(images.images[start : start + BLOCK]) for start in range(0, len(images), BLOCK))
    return replace(images, images=np.concatenate([view(block) for block in blocks]), key="")


def shuffled(images: ImageSet, seed: int) -> ImageSet:
    """Labels of train and val dealt out anew: what can still be learned is nothing; test keeps its own."""
    table, rows = images.table.copy(), np.flatnonzero(images.table["split"].isin(("train", "val")))
    labels = table["label"].to_numpy(copy=True)
    labels[rows] = np.random.default_rng(seed).permutation(labels[rows])
    return replace(images, table=table.assign(label=labels))


def sources(images: ImageSet) -> list[tuple[int, str]]:
    """Class index and source of every class whose films are known to have several, the smallest source first."""
    rows = images.table[images.table["split"].isin(USED) & (images.table["source"] != "")]
    counts = rows.groupby(["label", "source"]).size()
    several = counts.groupby("label").transform("size") > 1
    return list(counts[several].sort_values(kind="stable").index)


def by_source(images: ImageSet) -> Iterator[tuple[str, ImageSet]]:
    """The films under the names of their sources: what is asked is where a film comes from, not what it shows.

    Films of unknown source are left out, and sources that have no film to learn from or none to be tested on. Yields
    nothing where fewer than two sources are left.
    """
    table = images.table
    splits = table.groupby("source")["split"].agg(set)
    known = sorted(name for name, found in splits.items() if name and {"train", "test"} <= found)
    label = table["source"].map({name: k for k, name in enumerate(known)})
    kept = table.assign(label=label.fillna(0).astype(int), split=table["split"].mask(label.isna(), "unused"))
    if len(known) > 1:
        yield "source of the film", replace(images, table=kept, classes=tuple(known))


def kept_apart(images: ImageSet, label: int, source: str) -> ImageSet:
    """Nothing of that source is trained on; of that class, its films and no others are tested on."""
    table = images.table
    own, apart = table["label"] == label, table["split"].isin(USED) & (table["source"] == source)
    unused = (own & (table["split"] == "test")) | (apart & ~own)
    return replace(images, table=table.assign(split=table["split"].mask(unused, "unused").mask(apart & own, "test")))
