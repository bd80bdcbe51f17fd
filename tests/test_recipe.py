"""Recipes, augmentations and scales: what they refuse, how they come back from JSON, how they read in a table."""

import dataclasses
import json
from dataclasses import replace
from math import inf, nan

import pytest
import torch

from pneumo_lib import augmentation
from pneumo_lib.errors import UsageError
from pneumo_lib.recipe import Augmentation, Recipe, Scale

STRONGEST = Augmentation(
    rotation=45, shift=0.5, zoom=(0.2, 5.0), shear=45, flip=True, brightness=0.5, contrast=0.9, gamma=2
)


def refused(kind, said, **values):
    with pytest.raises(UsageError, match=said):
        kind(**values)


# ---- ranges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "low", "high", "outside"),
    [
        ("epochs", 1, 10_000, (0, -1, 10_001)),
        ("batch_size", 1, 4096, (0, 5000)),
        ("lr", 1e-7, 10.0, (0.0, -1e-3, 11.0, nan, inf)),
        ("checkpoint_every", 0, 10_000, (-1, 10_001)),
        ("patience", 0, 10_000, (-1, 10_001)),
        ("min_delta", 0.0, 10.0, (-1e-9, 11.0, nan)),
        ("weight_decay", 0.0, 1.0, (-1e-4, 1.1, nan)),
        ("label_smoothing", 0.0, 0.9, (-0.1, 0.91, 1.0, nan)),
        ("mixup", 0.0, 10.0, (-0.1, 10.1, nan)),
        ("ema", 0.0, 0.99999, (-0.1, 1.0, nan)),
        ("crop", 0, 1024, (-32, 1056)),
    ],
)
def test_each_number_of_a_recipe_has_limits(name, low, high, outside):
    for value in (low, high):
        assert getattr(Recipe(**({"epochs": 1} | {name: value})), name) == value
    for value in outside:
        refused(
            Recipe, rf"^{name} is {value}; it must lie between {low:g} and .*\.$", **({"epochs": 1} | {name: value})
        )


def test_a_square_must_fit_the_networks():
    refused(Recipe, "^crop is 100; the networks need a multiple of 32", epochs=1, crop=100)


@pytest.mark.parametrize(
    ("name", "allowed", "typo", "meant"),
    [
        ("schedule", "constant, cosine", "cosin", "cosine"),
        ("optimizer", "adam, adamw", "adamww", "adamw"),
        ("imbalance", "none, weighted, balanced", "weihgted", "weighted"),
        ("keep", "loss, score, last", "scores", "score"),
    ],
)
def test_each_word_of_a_recipe_is_one_of_a_few_and_a_typo_is_understood(name, allowed, typo, meant):
    for word in allowed.split(", "):
        assert getattr(Recipe(epochs=1, **{name: word}), name) == word
    expected = rf"^{name} is '{{}}'; it must be one of {allowed}\.{{}}$"
    refused(Recipe, expected.format(typo, rf" Did you mean '{meant}'\?"), **{"epochs": 1, name: typo})
    refused(Recipe, expected.format("zzz", ""), **{"epochs": 1, name: "zzz"})


@pytest.mark.parametrize("both", ["weighted,balanced", ("weighted", "balanced"), True])
def test_classes_are_never_weighted_and_balanced_at_once(both):
    refused(Recipe, "imbalance is .*; it must be one of none, weighted, balanced", epochs=1, imbalance=both)
    assert not {"weighted", "balanced", "class_weights", "sampler"} & {one.name for one in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("rotation", 45),
        ("shift", 0.5),
        ("shear", 45),
        ("brightness", 0.5),
        ("contrast", 0.9),
        ("gamma", 2),
        ("share", 1),
    ],
)
def test_each_number_of_an_augmentation_has_limits(name, most):
    assert getattr(Augmentation(**{name: most}), name) == most
    for value in (-0.01, 1.01 * most, nan, inf):
        refused(Augmentation, rf"^{name} is {value}; it must lie between 0 and {most:g}\.$", **{name: value})


@pytest.mark.parametrize("zoom", [(1.2, 0.8), (0.1, 1.0), (1.0, 5.1), (1.0,), (1.0, 1.1, 1.2), (nan, 1.0), (1.0, nan)])
def test_a_zoom_is_a_range_from_low_to_high(zoom):
    refused(Augmentation, r"^zoom is \(.*\); it must be a range \(low, high\) within 0\.2 to 5\.$", zoom=zoom)


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(Scale)])
def test_a_scale_has_no_negative_bound(name):
    assert getattr(Scale(**{name: 7}), name) == 7 and getattr(Scale(), name) == 0
    refused(Scale, rf"^{name} is -1; it must lie between 0 and", **{name: -1})


@pytest.mark.parametrize("one", [Recipe(epochs=1), Augmentation(), Scale()])
def test_they_are_frozen_and_can_be_keys(one):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, dataclasses.fields(one)[0].name, 1)
    assert {one: 1}[replace(one)] == 1


# ---- what is left at its default ------------------------------------------------------------------------------------


def test_by_default_films_stay_as_they_are():
    films = torch.rand(3, 1, 8, 8)
    assert augmentation.augment(films, Recipe(epochs=1).augmentation, torch.Generator()) is films


def test_the_defaults_are_those_of_the_source():
    assert Recipe(epochs=50) == Recipe(
        epochs=50, batch_size=32, lr=1e-3, schedule="constant", patience=0, optimizer="adam", imbalance="none"
    )


# ---- upside down ----------------------------------------------------------------------------------------------------


def test_no_field_of_an_augmentation_is_a_vertical_flip():
    names = {one.name for one in dataclasses.fields(Augmentation)}
    assert names == {"rotation", "shift", "zoom", "shear", "flip", "brightness", "contrast", "gamma", "share"}
    with pytest.raises(TypeError, match="vertical_flip"):
        Augmentation(vertical_flip=True)


def test_the_strongest_augmentation_turns_no_chest_upside_down():
    bright_top = torch.linspace(1, 0, 32)[:, None].expand(400, 1, 32, 32)
    moves = replace(STRONGEST, brightness=0.0, contrast=0.0, gamma=0.0, shift=0.0)
    moved = augmentation.augment(bright_top, moves, torch.Generator().manual_seed(0))
    top, bottom = moved[:, :, :16].mean((1, 2, 3)), moved[:, :, 16:].mean((1, 2, 3))
    assert (top > bottom).all()
    assert (moved != bright_top).any(dim=3).all(dim=2).sum() > 300, "films were moved a lot"


# ---- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [Augmentation(), STRONGEST, Augmentation(rotation=15, flip=True, zoom=(1.0, 1.12))])
def test_a_recipe_comes_back_from_json(how):
    recipe = Recipe(
        epochs=7, lr=1e-4, imbalance="balanced", keep="score", min_delta=0.001, optimizer="adamw", augmentation=how
    )
    stored = json.loads(json.dumps(dataclasses.asdict(recipe), allow_nan=False))
    assert isinstance(stored["augmentation"]["zoom"], list)
    back = Recipe(**stored)
    assert back == recipe and hash(back) == hash(recipe), "tuples must not come back as lists"
    assert type(back.augmentation) is Augmentation and type(back.augmentation.zoom) is tuple
    assert isinstance(stored["augmentation"]["zoom"], list), "what was read is left as it was"


def test_an_augmentation_from_json_is_checked():
    stored = dataclasses.asdict(Recipe(epochs=1))
    stored["augmentation"]["rotation"] = 90.0
    refused(Recipe, "^rotation is 90.0; it must lie between 0 and 45", **stored)
    stored["augmentation"] |= {"rotation": 0.0, "zoom": [1.1, 0.9]}
    refused(Recipe, r"^zoom is \(1.1, 0.9\)", **stored)


# ---- in words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (Recipe(epochs=50), "50 epochs, batch 32, adam 0.001, lowest validation loss"),
        (
            Recipe(epochs=10, batch_size=16, lr=1e-4, keep="score"),
            "10 epochs, batch 16, adam 0.0001, highest validation accuracy",
        ),
        (
            Recipe(epochs=100, lr=1e-4, schedule="cosine", patience=10, weight_decay=1e-4, label_smoothing=0.1),
            "100 epochs, batch 32, adam 0.0001, cosine, weight decay 0.0001, label smoothing 0.1, "
            "stops after 10 epochs without gain, lowest validation loss",
        ),
        (
            Recipe(epochs=9, optimizer="adamw", weight_decay=0.01, imbalance="balanced", patience=3, min_delta=0.001),
            "9 epochs, batch 32, adamw 0.001, balanced, weight decay 0.01, "
            "stops after 3 epochs without a gain of 0.001, lowest validation loss",
        ),
    ],
)
def test_a_recipe_in_words(recipe, text):
    assert recipe.text() == text


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 4},
        {"batch_size": 8},
        {"lr": 1e-4},
        {"schedule": "cosine"},
        {"patience": 5},
        {"min_delta": 0.01, "patience": 2},
        {"optimizer": "adamw"},
        {"weight_decay": 0.1},
        {"label_smoothing": 0.1},
        {"imbalance": "weighted"},
        {"keep": "score"},
        {"keep": "last"},
        {"mixup": 0.2},
        {"ema": 0.99},
        {"crop": 96},
    ],
)
def test_whatever_decides_the_training_is_said(change):
    plain = Recipe(epochs=3, patience=change.get("patience", 0) if "min_delta" in change else 0)
    assert replace(plain, **change).text() != plain.text()
