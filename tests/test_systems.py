"""The table of systems against what SYSTEMS.md says of them, and a system of one's own put into it."""

import dataclasses
import itertools
import sys
from dataclasses import replace
from math import isnan

import pandas as pd
import pytest
from typer.testing import CliRunner

from pneumo_lib import cli, models, systems
from pneumo_lib.config import PRESETS
from pneumo_lib.data import CARDS
from pneumo_lib.errors import UsageError
from pneumo_lib.recipe import Augmentation, Recipe, Scale
from pneumo_lib.systems import SYSTEMS, System

FIGURES = ("accuracy", "precision", "recall", "f1", "auc")
COVID, KERMANY = "chest_xray_covid", "chest_xray_kermany"
OF_THE_REPORTS = {
    "A": ["cnn2"],
    "B": ["aernet", "alexnet", "vgg16", "googlenet", "resnet50", "densenet121"],
    "C": ["cnn5"],
    "D": ["cnn3"],
    "E": ["cnn4", "resnet34"],
}
EVERY = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


def reported(name, protocol):
    """(accuracy, precision, recall, f1, auc) of a source."""
    return tuple(getattr(SYSTEMS[name].reported[protocol], figure) for figure in FIGURES)


# ---- the rows -------------------------------------------------------------------------------------------------------


def test_every_system_of_the_reports_has_a_row():
    by_report = {}
    for system in SYSTEMS.values():
        by_report.setdefault(system.report, []).append(system.name)
    assert "resnet18_x3" in by_report.pop("ours")
    assert by_report == OF_THE_REPORTS


@EVERY
def test_every_name_in_the_table_exists(system):
    assert SYSTEMS[system.name] is system
    assert system.model in models.CLASSIFIERS
    assert not system.denoiser or system.denoiser in models.DENOISERS
    assert set(system.datasets) <= set(CARDS)
    assert set(system.reported) <= {*system.datasets, "test_noise", "noisy_test", "comparison"}
    assert len(system.datasets) > 0 and system.source and system.title


@EVERY
def test_reported_counts_round_to_the_reported_figure(system):
    for figure in system.reported.values():
        assert 0.5 < figure.accuracy < 1, "a fraction, not a percentage"
        assert (figure.correct is None) == (figure.n is None)
        if figure.n:
            fitting = [k for k in range(figure.n + 1) if round(k / figure.n, 4) == round(figure.accuracy, 4)]
            assert fitting == [figure.correct], figure.protocol


@EVERY
def test_a_system_can_be_built_as_its_row_says(system):
    assert systems.parameters(system) == systems.parameters(system, len(CARDS[system.datasets[0]].classes))
    assert systems.parameters(system, 5) > systems.parameters(system, 2)


# Counts of torchvision's documentation at 1000 classes, and the width of what goes into the last layer.
PUBLISHED = {
    "alexnet": (61_100_840, 4096),
    "vgg16": (138_357_544, 4096),
    "googlenet": (6_624_904, 1024),
    "resnet50": (25_557_032, 2048),
    "densenet121": (7_978_856, 1024),
    "resnet34": (21_797_672, 512),
    "resnet18": (11_689_512, 512),
}
COUNTED = {
    "cnn2": 46_817 + 16_786_371,
    "aernet": (25_557_032 - 2049 * 1000)  # ResNet-50 without its head
    + sum(2 * width * width // 16 + 2 * 7 * 7 for width in (256, 512, 1024, 2048))  # CBAM
    + (2048 * 512 + 512 + 512 * 3 + 3),
    "cnn5": 6_638_818,
    "cnn3": 2_424_194,
    "cnn4": 104_838_274,
    "resnet18_s2d": 1_576_659,
}


@EVERY
def test_parameters_of_both_networks_are_counted(system):
    if system.model in PUBLISHED:
        count, width = PUBLISHED[system.model]
        n_classes = 3 if system.datasets[0] == COVID else 2
        expected = count - (1000 - n_classes) * (width + 1)
    elif "_x" in system.name:
        resnet18, googlenet = (
            count - 998 * (width + 1) for count, width in map(PUBLISHED.get, ("resnet18", "googlenet"))
        )
        expected = 3 * resnet18 if system.model == "resnet18_x3" else 2 * (resnet18 + googlenet)
    else:
        expected = COUNTED[system.name]
    assert systems.parameters(system) == expected


def test_an_unknown_system_is_answered_with_the_nearest():
    assert systems.system("resnet34") is SYSTEMS["resnet34"]
    with pytest.raises(UsageError, match=r"'resnet43'; it must be one of cnn2, aernet, .*Did you mean 'resnet34'\?"):
        systems.system("resnet43")
    with pytest.raises(UsageError, match=r"'zzz'; it must be one of cnn2, .*[^?]$"):
        systems.system("zzz")


# ---- A --------------------------------------------------------------------------------------------------------------


def test_system_a_is_trained_as_its_source_says():
    row = SYSTEMS["cnn2"]
    denoiser = PRESETS["full"]()[row.denoiser]
    assert (row.denoiser, row.image_size, row.datasets) == ("autoencoder", 256, (COVID,))
    assert row.recipe == Recipe(epochs=50, batch_size=32, lr=1e-3, schedule="constant")
    assert denoiser == Recipe(epochs=50, batch_size=32, lr=1e-3, schedule="constant", checkpoint_every=10)


def test_system_a_reports_both_protocols():
    assert {name: (r.accuracy, r.correct, r.n) for name, r in SYSTEMS["cnn2"].reported.items()} == {
        "test_noise": (0.9457, 1218, 116 + 317 + 855),
        "noisy_test": (0.9697, 64, 26 + 20 + 20),
    }


# ---- B --------------------------------------------------------------------------------------------------------------

COMPARISON = {  # accuracy, precision, recall, F1, AUC, million parameters, milliseconds
    "alexnet": (0.852, 0.845, 0.859, 0.852, 0.952, 61.1, 12.3),
    "vgg16": (0.893, 0.886, 0.900, 0.893, 0.971, 138.4, 25.6),
    "googlenet": (0.915, 0.908, 0.922, 0.915, 0.980, 6.8, 18.9),
    "resnet50": (0.932, 0.925, 0.939, 0.932, 0.985, 25.6, 22.4),
    "densenet121": (0.941, 0.934, 0.948, 0.941, 0.988, 8.0, 20.7),
    "aernet": (0.961, 0.954, 0.968, 0.961, 0.992, 26.2, 24.1),
}


@pytest.mark.parametrize("name", COMPARISON)
def test_the_comparison_table_of_report_b(name):
    protocol = "comparison" if name == "aernet" else COVID
    figure = SYSTEMS[name].reported[protocol]
    assert (*reported(name, protocol), figure.parameters, figure.milliseconds) == COMPARISON[name]


def test_aernet_on_its_three_data_sets():
    assert SYSTEMS["aernet"].datasets == (COVID, "covid_ct", "brain_mri")
    assert reported("aernet", COVID) == (0.953, 0.946, 0.959, 0.953, 0.990)
    assert reported("aernet", "covid_ct") == (0.972, 0.967, 0.978, 0.972, 0.995)
    assert reported("aernet", "brain_mri") == (0.969, 0.963, 0.974, 0.969, 0.993)


@pytest.mark.parametrize("name", COMPARISON)
def test_report_b_is_trained_as_aernet_says(name):
    row = SYSTEMS[name]
    assert row.image_size == 224 and row.datasets[0] == COVID
    expected = Recipe(
        epochs=100, batch_size=32, lr=1e-4, schedule="cosine", patience=10, optimizer="adam", weight_decay=1e-4
    )
    assert replace(row.recipe, label_smoothing=0.0, augmentation=Augmentation()) == expected
    assert row.recipe.label_smoothing == 0.1
    how = row.recipe.augmentation
    assert (how.rotation, how.flip, how.brightness, how.contrast) == (15, True, 0.2, 0.2)
    assert how.zoom == pytest.approx((1.0, 0.8**-0.5), abs=0.005), "a crop of 80 % of the area, resized"
    assert (how.shift, how.shear, how.gamma) == (0, 0, 0)


# ---- C, D, E --------------------------------------------------------------------------------------------------------


def test_report_c():
    row = SYSTEMS["cnn5"]
    assert (row.image_size, row.datasets) == (224, (KERMANY,))
    how = Augmentation(rotation=10, zoom=(0.7, 1.3), shear=0.2)
    assert row.recipe == Recipe(
        epochs=100, batch_size=32, lr=1e-3, patience=10, min_delta=0.001, keep="loss", augmentation=how
    )
    accuracy, *_, auc = reported("cnn5", KERMANY)
    assert (accuracy, auc) == (0.97, 0.97)
    assert "vertical flip" in row.corrected and "upside down" in row.corrected
    assert "test set" in row.corrected


def test_report_d():
    row = SYSTEMS["cnn3"]
    assert (row.image_size, row.datasets) == (150, (KERMANY,))
    how = Augmentation(shift=0.1, shear=0.2, flip=True)
    assert row.recipe == Recipe(epochs=20, batch_size=50, lr=1e-4, augmentation=how)
    (tn, fp), (fn, tp) = [[163, 71], [18, 342]]
    figure = row.reported[KERMANY]
    assert (figure.correct, figure.n) == (tn + tp, tn + fp + fn + tp) == (505, 594)
    assert reported("cnn3", KERMANY)[:3] == ((tn + tp) / 594, tp / (tp + fp), tp / (tp + fn))
    assert figure.recall > figure.precision, "the source prints them exchanged"
    assert "exchanged" in row.corrected


@pytest.mark.parametrize(("name", "accuracy", "correct"), [("cnn4", 0.875, 14), ("resnet34", 0.9375, 15)])
def test_report_e(name, accuracy, correct):
    row = SYSTEMS[name]
    assert (row.image_size, row.datasets) == (224, (KERMANY,))
    assert replace(row.recipe, lr=1e-3) == Recipe(epochs=10, optimizer="adam", keep="score")
    assert f"learning rate not stated: {row.recipe.lr:g}" in row.corrected
    figure = row.reported[KERMANY]
    assert (figure.accuracy, figure.correct, figure.n) == (accuracy, correct, 16)


def test_what_a_source_does_not_say_is_no_figure():
    assert all(isnan(value) for value in reported("cnn2", "test_noise")[1:])
    assert all(system.reported == {} for system in SYSTEMS.values() if system.report == "ours")


@EVERY
def test_no_chest_is_turned_upside_down(system):
    how = system.recipe.augmentation
    assert how.rotation <= 15 and how.shear <= 5
    assert not {field.name for field in dataclasses.fields(how)} & {"vertical_flip", "flip_vertical", "flipud"}


@EVERY
def test_validation_is_a_split_of_its_own(system):
    if system.report in "ABCDE":
        assert "validation is taken from train" in system.corrected or "published splits" in system.corrected


# ---- shortened ------------------------------------------------------------------------------------------------------


@EVERY
def test_an_empty_scale_leaves_a_system_as_it_is(system):
    assert system.shortened(Scale()) == system


@EVERY
def test_shortened_never_lengthens_and_changes_nothing_else(system):
    for epochs, size, batch in itertools.product((0, 1, 10, 40, 1000), (0, 32, 150, 224, 4096), (0, 4)):
        short = system.shortened(Scale(epochs=epochs, image_size=size, batch_size=batch, train_images=9))
        assert short.recipe.epochs == min(system.recipe.epochs, epochs or 10**9)
        assert short.image_size == min(system.image_size, size or 10**9)
        assert short.recipe.batch_size == (batch or system.recipe.batch_size)
        recipe = replace(short.recipe, epochs=system.recipe.epochs, batch_size=system.recipe.batch_size)
        assert replace(short, image_size=system.image_size, recipe=recipe) == system


@EVERY
def test_no_preset_shortens_to_less_than_the_network_takes(system):
    scales = [PRESETS[preset]()["comparison"].systems for preset in PRESETS]
    smallest = min((system.shortened(scale) for scale in scales), key=lambda short: short.image_size)
    assert 0 < systems.parameters(smallest) <= systems.parameters(system)


# ---- the printed table ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return systems.table()


def test_one_row_per_system_and_no_empty_cell(table):
    assert list(table.index) == list(SYSTEMS) and table.index.name == "system"
    assert list(table) == [
        *("report", "title", "networks", "parameters", "input", "recipe"),
        *("augmentation", "data", "reported", "corrected"),
    ]
    for name, row in table.iterrows():
        assert row["parameters"] > 1_000_000, name
        assert all(isinstance(cell, str) and cell.strip() for cell in row.drop("parameters")), name


def test_the_table_counts_both_networks(table):
    row = table.loc["cnn2"]
    assert row["parameters"] == 16_833_188
    assert row["networks"] == "autoencoder + cnn2"
    once = "50 epochs, batch 32, adam 0.001, lowest validation loss"
    assert row["recipe"] == f"{once}; then {once}"
    assert row["input"] == "256 x 256 gray"
    assert "94.57% of 1288" in row["reported"] and "96.97% of 66" in row["reported"]


def test_the_table_says_what_each_source_did(table):
    assert table.loc["aernet", "augmentation"] == "rotation ±15°, zoom 1.0-1.12, flip, brightness ±0.2, contrast ±0.2"
    assert "label smoothing 0.1, stops after 10 epochs" in table.loc["aernet", "recipe"]
    assert table.loc["aernet", "data"] == "chest_xray_covid, covid_ct, brain_mri"
    assert "without a gain of 0.001" in table.loc["cnn5", "recipe"]
    assert table.loc["cnn3", "input"] == "150 x 150 gray"
    assert table.loc["cnn3", "reported"] == "85.02% of 594 (594 of the test films)"
    assert table.loc["cnn4", "recipe"].endswith("highest validation accuracy")
    assert table.loc["resnet18_x3", "reported"] == "nothing" and table.loc["resnet18_x3", "report"] == "ours"
    assert table.loc["cnn4", "augmentation"] == "none"


# ---- a system of one's own is one file and one row ------------------------------------------------------------------

FILE = '''"""A network that looks at sixteen patches."""

from torch import nn


def toy(image_size=32, n_classes=3):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, n_classes))


NETWORKS = {"toy": toy}
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The network and the row; afterwards nothing is left of either."""
    before = dict(models.MODELS), models.CLASSIFIERS, models.DENOISERS
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "toy_of_tests.py").write_text(FILE)
    models.__path__.append(str(folder))
    models.discover()
    row = System(
        name="toy",
        report="ours",
        title="A toy",
        model="toy",
        image_size=32,
        recipe=Recipe(epochs=5, lr=0.1),
        datasets=(COVID,),
        source="a test",
    )
    with monkeypatch.context() as patch:
        patch.setitem(SYSTEMS, "toy", row)
        yield row
    models.__path__.remove(str(folder))
    sys.modules.pop("pneumo_lib.models.toy_of_tests")
    vars(models).pop("toy_of_tests")
    models.discover()
    assert (dict(models.MODELS), models.CLASSIFIERS, models.DENOISERS) == before and "toy" not in SYSTEMS


def pneumo(*arguments):
    """What a command prints."""
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_new_system_is_one_file_and_one_row(toy, film_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_QUIET", "1")
    run, cache = tmp_path / "run", tmp_path / "cache"
    assert systems.table().loc["toy", ["parameters", "networks", "reported"]].tolist() == [51, "toy", "nothing"]
    assert "toy" in pneumo("systems")
    said = pneumo("train", "toy", "--preset", "tiny", "--data", film_folder, "--run", run, "--cache", cache)
    assert f"toy: {run / 'systems' / film_folder.name / 'toy'}, best epoch 1" in said
    assert "val_loss" in said
    printed = pneumo("evaluate", run, "--cache", cache)
    (row,) = [line for line in printed.splitlines() if "| toy |" in line]
    assert "spots, n = 12" in row and "32 px, 16 films, 1 epochs (best 1)" in row and "preset tiny" in row
    assert (run / "systems.md").read_text().strip() == printed.strip()
    answers = pd.read_csv(run / "systems" / film_folder.name / "toy" / "predictions.csv")
    assert len(answers) == 12 and set(answers["system"]) == {"toy"}
    assert answers.filter(like="p_").sum(axis=1).to_numpy() == pytest.approx(1)


def test_the_toy_of_the_test_before_is_gone():
    assert "toy" not in models.MODELS and "toy" not in SYSTEMS
    with pytest.raises(UsageError, match="no architecture is called 'toy'"):
        models.build("toy")
