"""Does denoising help? Networks trained on clean, on noisy and on denoised films, tested under every corruption.

Each network meets four arms, as in the ablation (`ablation.ARMS`), and a fifth that needs no training of its own:

    clean         trained on clean films, shown clean films
    unprepared    trained on clean films, shown noisy ones
    rescued       trained on clean films, shown noisy films that a denoiser has cleaned
    denoised      trained on and shown noisy films cleaned by that denoiser
    noisy         trained on and shown noisy films as they are

Unlike the ablation, a network is trained for all levels at once: the strength of gaussian noise is drawn anew for every
film, and every level and every other corruption is then a test of the same weights.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import nn

from pneumo_lib import comparison, evaluation, models, noise, pipeline, runs, runtime, steps, training
from pneumo_lib.config import Config
from pneumo_lib.data import ImageSet
from pneumo_lib.recipe import Augmentation, Recipe, Scale
from pneumo_lib.systems import SYSTEMS
from pneumo_lib.trials import Trial

SIDE = 128  # pixels
TOP = 1.0  # sigma up to which noise is trained on
NETWORKS = {"cnn2": 3, "resnet18_s2d": 3, "resnet34": 2, "aernet": 1}  # and seeds of each
CONDITIONS = ("clean", "noisy", "denoised")
RECIPE = Recipe(
    epochs=12,
    batch_size=64,
    schedule="cosine",
    optimizer="adamw",
    weight_decay=0.05,
    keep="last",
    augmentation=Augmentation(rotation=10, shift=0.04, zoom=(0.9, 1.15), flip=True),
)
_EVERY_LEVEL = {"sigma": TOP / 1.2, "share": 1.0}  # `steps.Corruption` draws up to 1.2 sigma


def train_denoiser(config: Config, images: ImageSet, scale: Scale, folder: Path) -> runs.SavedModel:
    """The U-Net in front of the arms, trained on noise of every level; stored in `folder`."""
    runtime.seed_everything(config.seed)
    task = training.Task(
        step=steps.DenoisingStep("l1"),
        train=pipeline.films(images, "train").draw(scale.train_images, seed=config.seed),
        val=pipeline.films(images, "val").draw(scale.val_images, seed=config.seed),
        corruption=steps.Corruption("gaussian", _EVERY_LEVEL["sigma"], share=_EVERY_LEVEL["share"]),
        recipe=Recipe(epochs=scale.epochs or 20, schedule="cosine", keep="last"),
        seed=config.seed,
        precision=config.precision,
        name="denoiser in front of the arms",
    )
    fitted = training.fit(models.build("unet_denoiser"), task, folder)
    runs.save_model(folder, fitted.model, {"architecture": "unet_denoiser", "arguments": {}})
    return runs.load_model(folder)


def plan(network: str, condition: str, images: ImageSet, run: runs.Run, scale: Scale, denoiser: nn.Module) -> Trial:
    """The trial of a network under a condition of CONDITIONS, all under one recipe."""
    base = replace(SYSTEMS[network], recipe=RECIPE, image_size=images.images.shape[-1], denoiser="", noisy=False)
    options = {} if condition == "clean" else dict(_EVERY_LEVEL)
    options |= {"denoiser": denoiser if condition == "denoised" else None, "protocol": condition}
    folder = run.path / "arms" / network / condition
    return comparison.plan(base.shortened(scale), images, run, scale=scale, folder=folder, **options)


def shown(condition: str, denoiser: nn.Module) -> dict[str, nn.Module | None]:
    """The arms that the network of a condition is tested in, each with what stands in front of it."""
    return {
        "clean": {"unprepared": None, "rescued": denoiser},
        "noisy": {"noisy": None},
        "denoised": {"denoised": denoiser},
    }[condition]


def said(saved: runs.SavedModel, images: ImageSet, scale: Scale, denoiser: nn.Module | None) -> pd.DataFrame:
    """What a network calls each test film under every corruption and level.

    Returns:
        One row per film: path, label, and a column "KIND LEVEL" per corruption, all with indices of classes.
    """
    films = pipeline.films(images, "test").draw(scale.test_images, seed=saved.card["seed"])
    table = {"path": films.keys, "label": films.labels}
    for kind, how in noise.NOISES.items():
        for level in how.levels:
            view = evaluation.View(kind, level, saved.card["seed"])
            logits = evaluation.classify(saved.model, films, view, denoiser=denoiser)
            table[f"{kind} {level:g}"] = logits.argmax(axis=1)
    return pd.DataFrame(table)
