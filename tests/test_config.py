"""Presets, overrides and everything that must be refused before a run begins."""

import dataclasses
import json
from math import inf, nan

import pytest

from pneumo_lib.config import PRESETS, SCALES, STRENGTHS, Config, from_dict, make
from pneumo_lib.errors import UsageError
from pneumo_lib.recipe import Augmentation, Comparison, Grid, Recipe, Scale

NETWORKS = ("autoencoder", "unet_denoiser", "classifier")


def preset(name, **overrides):
    return make(name, data_dir="films" if name in ("quick", "full") else "", **overrides)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_complete_and_frozen(name):
    config = preset(name)
    assert (config.preset, config.seed, config.noise_kind) == (name, 0, "gaussian")
    assert all(isinstance(getattr(config, network), Recipe) for network in NETWORKS)
    assert isinstance(config.ablation, Grid) and isinstance(config.comparison, Comparison)
    assert all(isinstance(getattr(config.comparison, scale), Scale) for scale in SCALES)
    assert len(config.comparison.seeds) >= 2, "one seed has no interval"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sigma = 0.1
    assert preset(name) == config, "a preset is a constant"


def test_the_full_preset_is_the_source_recipe():
    full = preset("full")
    assert (full.image_size, full.sigma) == (256, 0.5)
    assert full.autoencoder == Recipe(epochs=50, batch_size=32, lr=1e-3, schedule="constant", checkpoint_every=10)
    assert full.classifier == Recipe(epochs=50, batch_size=32, lr=1e-3, schedule="constant")
    assert all(getattr(full.comparison, scale) == Scale() for scale in SCALES), "nothing is shortened"


def test_presets_grow_in_cost():
    demo, quick, full = (preset(name) for name in ("demo", "quick", "full"))
    assert demo.image_size < quick.image_size <= full.image_size
    assert demo.unet_denoiser.epochs <= quick.unet_denoiser.epochs < full.unet_denoiser.epochs
    assert len(demo.ablation.seeds) <= len(quick.ablation.seeds) <= len(full.ablation.seeds)
    assert demo.ablation.image_size <= quick.ablation.image_size <= full.ablation.image_size


def test_presets_shorten_the_comparison_less_and_less():
    demo, quick = (preset(name).comparison for name in ("demo", "quick"))
    for scale in SCALES:
        short, longer = getattr(demo, scale), getattr(quick, scale)
        assert 0 < short.epochs < longer.epochs and 0 < short.train_images < longer.train_images
        assert 0 < short.image_size <= longer.image_size
        assert short.test_images and not longer.test_images, "what is measured is measured on every test film"
    assert len(demo.seeds) <= len(quick.seeds) <= len(preset("full").comparison.seeds)


@pytest.mark.parametrize("name", ["quick", "full"])
def test_real_presets_need_a_folder(name):
    with pytest.raises(UsageError, match=f"'{name}' needs data_dir"):
        make(name)
    assert make("demo").data_dir == ""


def test_phantoms_stand_in_for_a_folder():
    assert make("demo").phantoms > 0
    with pytest.raises(UsageError, match="'demo' needs data_dir"):
        make("demo", phantoms=0.0)
    assert make("demo", phantoms=0.0, data_dir="films").data_dir == "films"
    assert make("quick", phantoms=1.0).data_dir == ""


def test_overrides_replace_one_field():
    config = make("demo", sigma=0.3, seed=7, denoiser="autoencoder")
    assert config == dataclasses.replace(make("demo"), sigma=0.3, seed=7, denoiser="autoencoder")


def test_none_keeps_the_preset_and_an_int_may_stand_for_a_float():
    assert make("demo", sigma=None, epochs=None) == make("demo")
    sigma = make("demo", sigma=1).sigma
    assert (sigma, type(sigma)) == (1.0, float)


@pytest.mark.parametrize("field", ["epochs", "batch_size"])
def test_epochs_and_batch_size_set_all_three_recipes(field):
    before, after = make("demo"), make("demo", **{field: 2})
    for network in NETWORKS:
        assert getattr(after, network) == dataclasses.replace(getattr(before, network), **{field: 2})
    assert after.ablation == before.ablation


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("field", ["epochs", "batch_size"])
def test_epochs_and_batch_size_reach_every_scale_of_the_comparison(name, field):
    before, after = preset(name).comparison, preset(name, **{field: 3}).comparison
    for scale in SCALES:
        assert getattr(after, scale) == dataclasses.replace(getattr(before, scale), **{field: 3})
    assert after.seeds == before.seeds


@pytest.mark.parametrize("name", PRESETS)
def test_the_image_side_bounds_the_systems_and_leaves_what_is_small_on_purpose(name):
    before, after = preset(name), preset(name, image_size=96)
    assert after.image_size == 96
    systems = dataclasses.replace(before.comparison.systems, image_size=96)
    assert after.comparison == dataclasses.replace(before.comparison, systems=systems)
    assert after.ablation == before.ablation


def test_a_comparison_can_be_replaced_whole():
    none = Comparison(systems=Scale(), architectures=Scale(epochs=1), attention=Scale(), controls=Scale(), seeds=(3,))
    assert make("demo", comparison=none).comparison == none


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"preset": "dmeo"}, "Did you mean 'demo'"),
        ({"preset": "fast"}, "one of demo, quick, full"),
        ({"sigmaa": 0.3}, "Did you mean 'sigma'"),
        ({"image_sise": 64}, "Did you mean 'image_size'"),
        ({"zzz": 1}, "There are: ablation"),
        ({"denoiser": "autoencodr"}, "Did you mean 'autoencoder'"),
        ({"noise_kind": "gausian"}, "Did you mean 'gaussian'"),
        ({"precision": "fp16"}, "one of auto, bf16, no"),
    ],
)
def test_an_unknown_name_is_refused_with_a_suggestion(arguments, said):
    with pytest.raises(UsageError, match=said):
        make(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sigma": "0.5"}, "sigma is '0.5', a str; it must be a float"),
        ({"seed": 1.0}, "seed is 1.0, a float; it must be a int"),
        ({"seed": True}, "seed is True, a bool"),
        ({"epochs": "3"}, "epochs is '3', a str"),
        ({"batch_size": 8.0}, "batch_size is 8.0, a float"),
        ({"epochs": True}, "epochs is True, a bool"),
        ({"data_dir": 3}, "data_dir is 3"),
        ({"image_size": "64"}, "image_size is '64', a str; it must be a int"),
        ({"image_size": True}, "image_size is True, a bool"),
        ({"comparison": {"seeds": [0]}}, "it must be a Comparison"),
        ({"classifier": {"epochs": 3}}, "it must be a Recipe"),
        ({"denoiser": 3}, "denoiser is 3"),
    ],
)
def test_a_wrong_type_is_refused(arguments, said):
    with pytest.raises(UsageError, match=said):
        make("demo", **arguments)


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "image_size": (0, -32, 2048),
        "sigma": (-0.1, 2.01, inf, nan),
        "seed": (-1, 2**31 + 1),
        "val_fraction": (0.0, 0.6, nan),
        "epochs": (0, -1, 10_001),
        "batch_size": (0, 5000),
        "noise_share": (-0.1, 1.1),
        "target_accuracy": (0.0, 95.0),
        "bootstrap": (0, -5),
        "audit_sample": (0,),
        "compare_films": (0,),
        "phantoms": (-0.1, 101.0),
    }.items(),
)
def test_a_value_out_of_range_is_refused_by_name(field, values):
    for value in values:
        with pytest.raises(UsageError, match=rf"{field} is .* must lie between"):
            make("demo", **{field: value})


def test_the_image_side_must_fit_the_networks():
    with pytest.raises(UsageError, match="image_size is 100; the networks need a multiple of 32"):
        make("demo", image_size=100)
    assert make("demo", image_size=96).image_size == 96


@pytest.mark.parametrize(("kind", "highest"), STRENGTHS.items())
def test_the_strength_is_bounded_by_its_kind(kind, highest):
    assert make("demo", noise_kind=kind, sigma=highest).sigma == highest
    with pytest.raises(UsageError, match=f"between 0 and {highest:g}"):
        make("demo", noise_kind=kind, sigma=1.01 * highest)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": 1, "lr": 0.0}, "lr is 0"),
        ({"epochs": 1, "lr": nan}, "lr is nan"),
        ({"epochs": 1, "schedule": "linear"}, "one of constant, cosine"),
        ({"epochs": 1, "checkpoint_every": -1}, "checkpoint_every is -1"),
        ({"epochs": 1, "patience": -1}, "patience is -1"),
    ],
)
def test_an_impossible_recipe_is_refused(fields, said):
    with pytest.raises(UsageError, match=said):
        Recipe(**fields)


def test_a_classifier_sees_whole_films():
    cut = dataclasses.replace(make("tiny").classifier, crop=32)
    with pytest.raises(UsageError, match="classifier's crop is 32; it must be 0"):
        make("tiny", classifier=cut)


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json(name):
    config = preset(name, sigma=0.3, epochs=4, val_fraction=0.2)
    text = json.dumps(config.to_dict(), allow_nan=False)
    back = from_dict(json.loads(text))
    assert back == config
    assert hash(back) == hash(config), "tuples must not come back as lists"
    assert {field.name for field in dataclasses.fields(Config)} == json.loads(text).keys()


def test_augmentation_and_comparison_survive_json():
    how = Augmentation(rotation=10, zoom=(0.9, 1.1), flip=True)
    classifier = Recipe(epochs=3, min_delta=0.01, imbalance="weighted", augmentation=how)
    scales = {
        "systems": Scale(image_size=96, epochs=2),
        "architectures": Scale(),
        "attention": Scale(val_images=3, test_images=3),
        "controls": Scale(train_images=7),
    }
    planned = Comparison(**scales, seeds=(5, 8), conditions=("clean", "denoised"))
    config = make("demo", classifier=classifier, comparison=planned)
    back = from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert back == config and hash(back) == hash(config)
    assert (back.classifier.augmentation, back.comparison) == (how, planned)


@pytest.mark.parametrize("part", ["classifier", "comparison"])
def test_from_dict_checks_what_is_nested(part):
    stored = make("demo").to_dict()
    nested = {"classifier": stored["classifier"]["augmentation"], "comparison": stored["comparison"]["systems"]}[part]
    name = {"classifier": "rotation", "comparison": "train_images"}[part]
    nested[name] = -1
    with pytest.raises(UsageError, match=f"{name} is -1"):
        from_dict(stored)


def test_from_dict_checks_what_it_reads():
    with pytest.raises(UsageError, match="sigma is 9"):
        from_dict(make("demo").to_dict() | {"sigma": 9.0})
    with pytest.raises(TypeError, match="colour"):
        from_dict(make("demo").to_dict() | {"colour": "red"})
