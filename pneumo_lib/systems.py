"""The table of systems: model, input, training recipe, data and what the source reported of it."""

from dataclasses import dataclass

import pandas as pd

from pneumo_lib import models
from pneumo_lib.config import PRESETS, Recipe


@dataclass(frozen=True)
class Reported:
    """A figure of a source report.

    Attributes:
        protocol: how the films reached the classifier.
        accuracy: fraction.
        correct, n: the counts behind it; the only ones that give this figure.
    """

    protocol: str
    accuracy: float
    correct: int
    n: int


@dataclass(frozen=True)
class System:
    """One published system, rebuilt here.

    Attributes:
        denoiser, classifier: architectures in `models.MODELS`.
        image_size: side of its input in pixels.
        denoiser_recipe, classifier_recipe: as the source trained it (preset "full").
        dataset: name of its card in `data.cards`.
        reported: its figures, by protocol.
        source: the report, and where in it.
    """

    name: str
    title: str
    denoiser: str
    classifier: str
    image_size: int
    denoiser_recipe: Recipe
    classifier_recipe: Recipe
    dataset: str
    reported: dict[str, Reported]
    source: str


_FULL = PRESETS["full"]()

SYSTEMS: dict[str, System] = {
    "A": System(
        name="A",
        title="Denoising autoencoder + CNN",
        denoiser="autoencoder",
        classifier="cnn2",
        image_size=256,
        denoiser_recipe=_FULL["autoencoder"],
        classifier_recipe=_FULL["classifier"],
        dataset="chest_xray_covid",
        reported={
            "test_noise": Reported("test + noise 0.5 -> denoise -> classify", 0.9457, 1218, 1288),
            "noisy_test": Reported("noisy_test -> denoise -> classify", 0.9697, 64, 66),
        },
        source="course report of system A, sections 3 and 4",
    ),
}


def table() -> pd.DataFrame:
    """One row per system: networks, parameters, input, recipe, data, reported accuracy."""
    return pd.DataFrame([_row(system) for system in SYSTEMS.values()]).set_index("system")


def _row(system: System) -> dict[str, object]:
    classifier = models.build(system.classifier, image_size=system.image_size)
    epochs, recipe = system.denoiser_recipe.epochs, system.classifier_recipe
    return {
        "system": system.name,
        "title": system.title,
        "networks": f"{system.denoiser} + {system.classifier}",
        "parameters": models.count_parameters(models.build(system.denoiser)) + models.count_parameters(classifier),
        "input": f"{system.image_size} x {system.image_size} gray",
        "recipe": f"{epochs} + {recipe.epochs} epochs, batch {recipe.batch_size}, Adam {recipe.lr:g}",
        "data": system.dataset,
        "reported": "; ".join(f"{r.accuracy:.2%} of {r.n} ({r.protocol})" for r in system.reported.values()),
    }
