"""Small image folders and finished trials that the tests of trials, comparison, standings and publish share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from pneumo_lib.answers import Finished
from pneumo_lib.recipe import Recipe
from pneumo_lib.systems import SYSTEMS, System

KERMANY = ("NORMAL", "PNEUMONIA")
CT = ("COVID", "NonCOVID")
PLACES = ((0.25, 0.25), (0.7, 0.3), (0.5, 0.8))  # where the bright spot of each class lies, as shares of the side


def film(label: int, rng: np.random.Generator, size: int = 48) -> np.ndarray:
    """(size, size) uint8: a random texture with one bright spot, whose place is the class."""
    spot = np.zeros((size, size))
    spot[tuple(int(share * size) for share in PLACES[label])] = 1
    spot = gaussian_filter(spot, size / 12)
    pixels = gaussian_filter(rng.normal(size=(size, size)), 1.5) * 4 + 3 * spot / spot.max()
    return (255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8)


def draw(root: Path, classes: Sequence[str], counts: Mapping[str, int], *, seed: int = 0, per_patient: int = 1) -> Path:
    """Write ROOT/SPLIT/CLASS/FILM.png, `counts[split]` films of each class; the split "" stands for no split at all.

    The names of the files name the patients, as Kermany's do.
    """
    rng, number = np.random.default_rng(seed), 0
    for split, n in counts.items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                number += i % per_patient == 0
                Image.fromarray(film(label, rng)).save(folder / f"person{number}_{i:03d}.png")
    return root


def system(name: str = "cnn3", *, image_size: int = 32, **recipe: Any) -> System:
    """A small system under a short recipe; `recipe` are fields of Recipe."""
    options = {"epochs": 2, "batch_size": 8, "lr": 1e-3} | recipe
    return replace(SYSTEMS[name], image_size=image_size, recipe=Recipe(**options))


def finished(
    labels: Sequence[int], probabilities: Sequence[Sequence[float]] | np.ndarray, classes: Sequence[str], **card: Any
) -> Finished:
    """A trial as it would be read, from its answers.

    Args:
        card: entries of the card. `cut` and `positive` decide what was predicted; `paths` names the films.
    """
    prob, labels, names = np.asarray(probabilities, float), np.asarray(labels), np.array(classes)
    paths, cut = card.pop("paths", [f"test/{i:03d}.png" for i in range(len(labels))]), card.pop("cut", None)
    facts = {"system": "cnn3", "dataset": "chest_xray_kermany", "protocol": "clean", "preset": "tiny", "seed": 0}
    facts |= {"parameters": 1000, "train_images": 20, "epochs": 2, "best_epoch": 1, "seconds": 90.0, "fold": None}
    facts |= {"starting_weights": "none", "arguments": {"image_size": 32}, "decision": {"cut": cut}}
    facts |= {"classes": list(classes), "positive": classes[-1] if len(classes) == 2 else None} | card
    answer = prob.argmax(axis=1)
    if cut is not None:
        k = list(classes).index(facts["positive"])
        answer = np.where(prob[:, k] >= cut, k, 1 - k)
    table = pd.DataFrame({"path": paths, "label": names[labels], "predicted": names[answer]})
    table = table.assign(protocol=facts["protocol"], system=facts["system"])
    return Finished(Path("nowhere"), facts, table.assign(**{f"p_{c}": prob[:, k] for k, c in enumerate(classes)}))
