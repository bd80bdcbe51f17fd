"""The table of systems: network, input, training recipe, data and what the source reported of it.

A system of your own is one file in `models/` and one row here: see "Add a system" in the README.
"""

from dataclasses import replace

import pandas as pd
import torch

from pneumo_lib import augmentation, models
from pneumo_lib.config import PRESETS
from pneumo_lib.data import card
from pneumo_lib.recipe import Augmentation, Recipe, one_of
from pneumo_lib.system import Reported, System

KERMANY, COVID = "chest_xray_kermany", "chest_xray_covid"
_VALIDATION = "validation is taken from train by patient"

# The source's list of augmentations is lost; these are the usual ones of such a list. A resized crop of 80 to 100 % of
# the area is a magnification of up to 1 / sqrt(0.8).
_AERNET = Recipe(
    epochs=100,
    lr=1e-4,
    schedule="cosine",
    patience=10,
    weight_decay=1e-4,
    label_smoothing=0.1,
    augmentation=Augmentation(rotation=15, flip=True, zoom=(1.0, 1.12), brightness=0.2, contrast=0.2),
)

_MILD = Augmentation(rotation=10, shift=0.04, zoom=(0.87, 1.18), shear=5, brightness=0.1, contrast=0.2, gamma=0.3)

# Balanced classes cost accuracy, and so does augmenting every film (README); `benchmarks/evidence.py` can leave out the
# other parts one at a time.
_NOISY = Recipe(
    epochs=30,
    batch_size=64,
    lr=2e-3,
    schedule="cosine",
    optimizer="adamw",
    weight_decay=0.05,
    label_smoothing=0.05,
    keep="last",
    mixup=0.2,
    ema=0.995,
    augmentation=replace(_MILD, flip=True, share=0.5),
)


def _architecture(name: str, title: str, accuracy: float, *rest: float) -> System:
    """A row of report B's comparison table: a network of torchvision under the recipe of AERNet."""
    precision, recall, f1, auc, parameters, milliseconds = rest
    figures = {"precision": precision, "recall": recall, "f1": f1, "auc": auc}
    cost = {"parameters": parameters, "milliseconds": milliseconds}
    return System(
        name=name,
        report="B",
        title=title,
        model=name,
        image_size=224,
        recipe=_AERNET,
        datasets=(COVID,),
        source="report B, comparison table",
        reported={COVID: Reported("chest X-ray", accuracy, **figures, **cost)},
        corrected=f"{_VALIDATION}; the source does not say how it was trained: as AERNet here",
    )


_TABLE = (
    System(
        name="cnn2",
        report="A",
        title="Denoising autoencoder + CNN",
        model="cnn2",
        image_size=256,
        recipe=PRESETS["full"]()["classifier"],
        datasets=(COVID,),
        source="report A, sections 3 and 4",
        denoiser="autoencoder",
        reported={
            "test_noise": Reported("test + noise 0.5 -> denoise -> classify", 0.9457, 1218, 1288),
            "noisy_test": Reported("noisy_test -> denoise -> classify", 0.9697, 64, 66),
        },
        corrected=f"{_VALIDATION}; seeded; clean films measured too",
    ),
    System(
        name="aernet",
        report="B",
        title="AERNet: ResNet-50 + CBAM + label smoothing",
        model="aernet",
        image_size=224,
        recipe=_AERNET,
        datasets=(COVID, "covid_ct", "brain_mri"),
        source="report B",
        reported={
            COVID: Reported("chest X-ray", 0.953, precision=0.946, recall=0.959, f1=0.953, auc=0.990),
            "comparison": Reported(
                "comparison table",
                *(0.961, None, None, 0.954, 0.968, 0.961, 0.992, 26.2, 24.1),
            ),
            "covid_ct": Reported("COVID-19 CT", 0.972, precision=0.967, recall=0.978, f1=0.972, auc=0.995),
            "brain_mri": Reported("brain MRI", 0.969, precision=0.963, recall=0.974, f1=0.969, auc=0.993),
        },
        pretrained=True,
        corrected="published splits where there are any, by patient elsewhere; its list of augmentations is lost; from "
        "scratch unless `--weights imagenet`, with which its code starts. Its "
        "tables disagree: chest 95.3 % per class, 96.1 % in the comparison",
    ),
    _architecture("alexnet", "AlexNet", 0.852, 0.845, 0.859, 0.852, 0.952, 61.1, 12.3),
    _architecture("vgg16", "VGG-16", 0.893, 0.886, 0.900, 0.893, 0.971, 138.4, 25.6),
    _architecture("googlenet", "GoogLeNet", 0.915, 0.908, 0.922, 0.915, 0.980, 6.8, 18.9),
    _architecture("resnet50", "ResNet-50", 0.932, 0.925, 0.939, 0.932, 0.985, 25.6, 22.4),
    _architecture("densenet121", "DenseNet-121", 0.941, 0.934, 0.948, 0.941, 0.988, 8.0, 20.7),
    System(
        name="cnn5",
        report="C",
        title="Five-block CNN with separable convolutions",
        model="cnn5",
        image_size=224,
        recipe=Recipe(
            epochs=100,
            patience=10,
            min_delta=0.001,
            augmentation=Augmentation(rotation=10, zoom=(0.7, 1.3), shear=0.2),
        ),
        datasets=(KERMANY,),
        source="report C",
        reported={KERMANY: Reported("its validation was its test set", 0.97, auc=0.97)},
        corrected=f"{_VALIDATION}, not the test set; no vertical flip, which turns chests upside down",
    ),
    System(
        name="cnn3",
        report="D",
        title="Three-convolution CNN",
        model="cnn3",
        image_size=150,
        recipe=Recipe(epochs=20, batch_size=50, lr=1e-4, augmentation=Augmentation(shift=0.1, shear=0.2, flip=True)),
        datasets=(KERMANY,),
        source="report D",
        reported={
            KERMANY: Reported("594 of the test films", 505 / 594, 505, 594, precision=342 / 413, recall=342 / 360)
        },
        corrected=f"{_VALIDATION}; all 624 test films; precision and recall not exchanged",
    ),
    System(
        name="cnn4",
        report="E",
        title="SimpleCNN",
        model="cnn4",
        image_size=224,
        recipe=Recipe(epochs=10, lr=1e-4, keep="score"),
        datasets=(KERMANY,),
        source="report E",
        reported={KERMANY: Reported("16 test films", 0.875, 14, 16)},
        corrected=f"{_VALIDATION}; tested on 624 films, not 16; learning rate not stated: 0.0001",
    ),
    System(
        name="resnet34",
        report="E",
        title="ResNet-34",
        model="resnet34",
        image_size=224,
        recipe=Recipe(epochs=10, lr=1e-4, keep="score"),
        datasets=(KERMANY,),
        source="report E",
        reported={KERMANY: Reported("16 test films", 0.9375, 15, 16)},
        pretrained=True,
        corrected=f"{_VALIDATION}; tested on 624 films, not 16; from scratch unless `--weights imagenet`, "
        "with which the source started; learning rate not stated: 0.0001",
    ),
    System(
        name="resnet18_s2d",
        report="ours",
        title="Small ResNet-18 on a space-to-depth stem, for noisy films without a denoiser",
        model="resnet18_s2d",
        image_size=256,
        recipe=_NOISY,
        datasets=(COVID,),
        noisy=True,
        source="this project; He et al. 2016, Zhang et al. 2018",
    ),
    System(
        name="resnet18_x3",
        report="ours",
        title="Three ResNet-18 from scratch, averaged",
        model="resnet18_x3",
        image_size=224,
        recipe=Recipe(
            epochs=40,
            schedule="cosine",
            optimizer="adamw",
            weight_decay=0.01,
            augmentation=_MILD,
        ),
        datasets=(KERMANY,),
        source="this project; architecture of He et al. 2016",
    ),
    System(
        name="resnet18_googlenet_x2",
        report="ours",
        title="Two ResNet-18 and two GoogLeNet from scratch, averaged, for a few hundred slices",
        model="resnet18_googlenet_x2",
        image_size=224,
        recipe=Recipe(
            epochs=110,
            batch_size=16,
            lr=7e-4,
            schedule="cosine",
            optimizer="adamw",
            weight_decay=0.05,
            label_smoothing=0.1,
            keep="last",
            augmentation=replace(_MILD, flip=True),
        ),
        datasets=("covid_ct", "brain_mri"),
        source="this project; architectures of He et al. 2016 and Szegedy et al. 2015",
    ),
)

SYSTEMS: dict[str, System] = {system.name: system for system in _TABLE}


def system(name: str) -> System:
    """The system of that name; a UsageError offers the nearest one and lists all."""
    one_of("the system", name, tuple(SYSTEMS))
    return SYSTEMS[name]


def table() -> pd.DataFrame:
    """One row per system: report, network, parameters, input, recipe, augmentation, data, reported, corrected."""
    return pd.DataFrame([_row(system) for system in SYSTEMS.values()]).set_index("system")


def _row(system: System) -> dict[str, object]:
    recipe = system.recipe.text()
    if system.denoiser:
        recipe = f"{PRESETS['full']()[system.denoiser].text()}; then {recipe}"
    return {
        "system": system.name,
        "report": system.report,
        "title": system.title,
        "networks": " + ".join(filter(None, (system.denoiser, system.model))),
        "parameters": parameters(system),
        "input": f"{system.image_size} x {system.image_size} gray",
        "recipe": recipe,
        "augmentation": augmentation.describe(system.recipe.augmentation),
        "data": ", ".join(system.datasets),
        "reported": "; ".join(_figure(figure) for figure in system.reported.values()) or "nothing",
        "corrected": system.corrected or "nothing to correct",
    }


def parameters(system: System, n_classes: int = 0) -> int:
    """Trainable values of its networks, the denoiser included; with as many classes as its first data set has."""
    options = {"image_size": system.image_size, "n_classes": n_classes or len(card(system.datasets[0]).classes)}
    with torch.device("meta"):  # counting needs shapes only
        networks = [models.build(system.model, **options, **system.arguments)]
        networks += [models.build(system.denoiser)] if system.denoiser else []
    return sum(map(models.count_parameters, networks))


def _figure(reported: Reported) -> str:
    n = f" of {reported.n}" if reported.n else ""
    return f"{reported.accuracy:.2%}{n} ({reported.protocol})"
