"""The run folder: what comes back is what was stored, and nothing else is accepted."""

import dataclasses
import json
import os
from math import inf, nan

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pneumo_lib import __version__, models, runs, runtime
from pneumo_lib.config import Config, make
from pneumo_lib.errors import DataError, TrainingError
from pneumo_lib.metrics import Estimate
from pneumo_lib.runs import NOTEBOOKS, load_model, load_run, open_run, run_name, save_model

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")
CARD = {"architecture": "cnn2", "arguments": {"image_size": 32, "n_classes": 3}, "classes": CLASSES}


def strict(text):
    """Parse JSON as the standard has it: without NaN and Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def network(seed=0):
    torch.manual_seed(seed)
    return models.build("cnn2", **CARD["arguments"])


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", network(), CARD)
    return tmp_path / "model"


def edit_card(folder, **changes):
    card = strict((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(json.dumps(card))


def replace_weights(folder, content):
    """Other weights whose hash is that of the card, as a fault before saving would leave them."""
    weights = folder / "model.safetensors"
    weights.write_bytes(content) if isinstance(content, bytes) else save_file(content, weights)
    edit_card(folder, sha256=runs.sha256(weights))


# models


@pytest.mark.parametrize(
    ("name", "arguments"), [("autoencoder", {}), ("cnn2", CARD["arguments"]), ("unet_denoiser", {"widths": [8, 16]})]
)
def test_a_model_comes_back_with_identical_outputs(tmp_path, name, arguments):
    torch.manual_seed(1)
    model, batch = models.build(name, **arguments).eval(), torch.rand(2, 1, 32, 32)
    save_model(tmp_path, model, {"architecture": name, "arguments": arguments})
    saved = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(saved.model(batch), model(batch))
    assert not saved.model.training


def test_the_card_says_what_is_needed_anywhere(folder):
    card = load_model(folder).card
    assert card == strict((folder / "model.json").read_text())
    assert (card["architecture"], card["classes"]) == ("cnn2", list(CLASSES))
    assert (card["sha256"], card["pneumo_lib"]) == (runs.sha256(folder / "model.safetensors"), __version__)
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_saving_leaves_model_and_card_as_they_are(tmp_path):
    model, card = network().train(), dict(CARD)
    save_model(tmp_path / "deep" / "er", model, card)
    assert model.training and card == CARD


def test_saving_again_replaces_the_weights(folder):
    save_model(folder, network(seed=1), CARD)
    loaded = load_model(folder).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network(seed=1).state_dict().items())


def test_a_model_in_another_memory_layout_is_saved(tmp_path):
    save_model(tmp_path, network().to(memory_format=torch.channels_last), CARD)
    assert torch.equal(load_model(tmp_path).model.features[3].weight, network().features[3].weight)


def test_a_card_may_hold_numbers_of_any_kind(tmp_path):
    save_model(tmp_path, network(), CARD | {"metrics": {"auc": Estimate(0.9, nan, nan, 3), "loss": np.float32(nan)}})
    metrics = load_model(tmp_path).card["metrics"]
    assert metrics == {"auc": {"value": 0.9, "low": None, "high": None, "n": 3}, "loss": None}
    strict((tmp_path / "model.json").read_text())


def test_the_expected_architecture_and_classes_are_accepted(folder):
    assert load_model(folder, architecture="cnn2", classes=CLASSES).card["architecture"] == "cnn2"
    assert load_model(str(folder)).model is not None


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"architecture": "resnet34"}, "holds the architecture 'cnn2'; 'resnet34' was expected"),
        ({"classes": ("NORMAL", "PNEUMONIA")}, r"\['COVID19', 'NORMAL', 'PNEUMONIA'\]; \['NORMAL', 'PNEUMONIA'\] were"),
        ({"classes": CLASSES[::-1]}, r"\['PNEUMONIA', 'NORMAL', 'COVID19'\] were expected"),
    ],
)
def test_another_architecture_or_class_list_is_refused_by_name(folder, wanted, said):
    with pytest.raises(DataError, match=said):
        load_model(folder, **wanted)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=r"not a model folder: it needs model\.safetensors and model\.json"):
        load_model(folder)


def test_other_weights_than_the_card_describes_are_refused(folder):
    runs.save_weights(folder / "model.safetensors", network(seed=1).state_dict())
    with pytest.raises(DataError, match=r"model\.safetensors is not the file its card describes \(SHA-256"):
        load_model(folder)


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for kept in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:kept])
        with pytest.raises(DataError, match="SHA-256"):
            load_model(folder)
        replace_weights(folder, whole[:kept])
        with pytest.raises(DataError, match="damaged or not a safetensors file"):
            load_model(folder)


def test_weights_of_another_shape_are_refused(folder):
    replace_weights(folder, models.build("autoencoder").state_dict())
    with pytest.raises(DataError, match="does not fit CNN2"):
        load_model(folder)


@pytest.mark.parametrize("value", [nan, inf])
def test_weights_that_are_not_numbers_are_refused_by_name(folder, value):
    state = network().state_dict()
    state["features.3.bias"][0] = value
    replace_weights(folder, state)
    with pytest.raises(DataError, match=r"NaN or infinity in features\.3\.bias: its training failed"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"architecture": "cnn2"}', '"card"'])
def test_a_card_that_is_none_is_refused(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(DataError, match=r"model\.json is not a model card"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "cnn9"}, r"cannot build: no architecture is called 'cnn9'\. Did you mean 'cnn"),
        ({"arguments": {"colour": 1}}, "cannot build: architecture 'cnn2' cannot be built from"),
        ({"arguments": 3}, "is not a model card"),
    ],
)
def test_a_card_of_an_unknown_network_is_refused_with_its_file(folder, changes, said):
    edit_card(folder, **changes)
    with pytest.raises(DataError, match=rf"model\.json .*{said}"):
        load_model(folder)


def test_weights_fill_a_network_of_the_same_kind_only(tmp_path):
    runs.save_weights(tmp_path / "w.safetensors", network(seed=1).state_dict())
    filled = runs.load_weights(network(), tmp_path / "w.safetensors")
    assert torch.equal(filled.features[0].weight, network(seed=1).features[0].weight)
    with pytest.raises(DataError, match="does not fit Linear"):
        runs.load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")


# run folders


def test_a_run_folder_is_made_and_opened_again(tmp_path):
    config = make("demo", sigma=0.3)
    made = open_run(tmp_path / "run", config)
    assert (made.path, made.config) == (tmp_path / "run", config)
    strict((tmp_path / "run" / "config.json").read_text())
    assert open_run(tmp_path / "run", config) == made == load_run(tmp_path / "run")


def test_another_configuration_is_refused_and_the_differences_are_named(tmp_path):
    open_run(tmp_path, make("demo", sigma=0.3))
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(TrainingError) as refused:
        open_run(tmp_path, make("demo", sigma=0.4, seed=1))
    assert "(seed: 0 there, 1 now; sigma: 0.3 there, 0.4 now)" in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert (tmp_path / "config.json").read_text() == before


def test_a_difference_inside_a_recipe_is_named(tmp_path):
    open_run(tmp_path, make("demo", epochs=2))
    with pytest.raises(TrainingError, match=r"autoencoder: .*'epochs': 2.* there, .*'epochs': 3.* now; classifier: "):
        open_run(tmp_path, make("demo", epochs=3))


def test_an_unnamed_run_stands_in_the_project_under_its_name(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pneumo_lib").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert runtime.project_root() == tmp_path
    assert open_run("", make("demo")).path == tmp_path / "runs" / "demo"
    assert load_run("runs/demo").config == make("demo")


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not a run folder: it has no config\.json"):
        load_run(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists(), "reading makes no folder"


@pytest.mark.parametrize("change", [{"sigma": 99.0}, {"sigma": "0.5"}, {"colour": 1}, {"ablation": None}, "no JSON"])
def test_a_config_that_cannot_be_read_is_refused_with_its_file(tmp_path, change):
    stored = make("demo").to_dict()
    text = change if isinstance(change, str) else json.dumps(stored | change)
    (tmp_path / "config.json").write_text(text)
    for opened in (lambda: load_run(tmp_path), lambda: open_run(tmp_path, make("demo"))):
        with pytest.raises(DataError, match=r"config\.json is not a configuration of this version"):
            opened()


@pytest.mark.parametrize(("preset", "films"), [("demo", ""), ("demo", "films"), ("quick", "films"), ("full", "films")])
def test_run_names(preset, films):
    plain, changed = make(preset, data_dir=films), make(preset, data_dir=films, sigma=0.3)
    assert run_name(plain) == preset
    assert run_name(changed).startswith(f"{preset}-") and len(run_name(changed)) == len(preset) + 7
    assert run_name(changed) == run_name(make(preset, data_dir=films, sigma=0.3))
    assert run_name(changed) != run_name(make(preset, data_dir=films, sigma=0.4))
    assert run_name(changed) == run_name(dataclasses.replace(changed, data_dir="elsewhere")), "a name, not a place"


def test_every_field_but_the_data_changes_the_name():
    other = {
        "preset": "quick",
        "noise_kind": "speckle",
        "denoiser": "autoencoder",
        "precision": "no",
        "data_dir": "elsewhere",
        "image_size": 64,
    }
    config = make("quick", data_dir="films", sigma=0.3)
    same = []
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if field.name in other and value != other[field.name]:
            value = other[field.name]
        elif field.name == "comparison":
            value = dataclasses.replace(value, seeds=(*value.seeds, 99))
        elif dataclasses.is_dataclass(value):
            value = dataclasses.replace(value, epochs=value.epochs + 1)
        elif field.name != "preset":
            value = value / 2 + 0.1 if isinstance(value, float) else value + 1
        if run_name(dataclasses.replace(config, **{field.name: value})) == run_name(config):
            same.append(field.name)
    assert same == ["preset", "data_dir"]


@pytest.mark.parametrize(("role", "maker"), [("denoiser", "02_denoiser_training"), ("classifier", "03_classifier")])
def test_a_missing_model_names_the_notebook_that_makes_it(tmp_path, role, maker):
    run = open_run(tmp_path, make("demo"))
    with pytest.raises(
        DataError, match=rf"{role}.cnn2 is missing\. It is made by notebook {maker}.*run that one first"
    ):
        run.load_model(role, "cnn2")
    save_model(run.model_folder(role, "cnn2"), network(), CARD)
    assert run.load_model(role, "cnn2").card["architecture"] == "cnn2"


@pytest.mark.parametrize(("number", "name"), NOTEBOOKS.items())
def test_missing_metrics_name_the_notebook_that_makes_them(tmp_path, number, name):
    with pytest.raises(DataError, match=rf"metrics_{number}\.json is missing\. It is made by notebook {name}"):
        open_run(tmp_path, make("demo")).read_metrics(number)


def test_the_notebooks_that_errors_name_exist():
    stored = runtime.Path(runs.__file__).parents[1] / "notebooks"
    if not stored.is_dir():
        pytest.skip("the library is installed without its notebooks")
    assert {f"{name}.ipynb" for name in NOTEBOOKS.values()} <= {path.name for path in stored.iterdir()}


def test_require_gives_back_what_exists(tmp_path):
    assert runs.require(tmp_path, made_by="nobody") == tmp_path


def test_figures_have_their_folders(tmp_path):
    run = open_run(tmp_path, make("demo"))
    assert (run.figures, run.film_figures) == (tmp_path / "figures", tmp_path / "film_figures")


# metrics and tables


def stored_as(run, value):
    path = run.write_metrics("06", {"x": value})
    assert strict(path.read_text())["x"] == run.read_metrics("06")["x"]
    return run.read_metrics("06")["x"]


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (Estimate(0.5, 0.4, 0.6, 9), {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}),
        (Estimate(nan, nan, inf, 0), {"value": None, "low": None, "high": None, "n": 0}),
        (np.float32(0.5), 0.5),
        (np.float64(0.25), 0.25),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array([1.0, nan, -inf]), [1.0, None, None]),
        (torch.tensor([1.0, nan]), [1.0, None]),
        (torch.tensor(2.0), 2.0),
        (nan, None),
        (inf, None),
        (np.float64(nan), None),
        ([nan, (1, nan)], [None, [1, None]]),
        ({"a": {"b": nan}, 3: np.int64(1)}, {"a": {"b": None}, "3": 1}),
        ({np.int64(2): 1, np.int64(10): 2}, {"2": 1, "10": 2}),
        (pd.Series({"a": 1.0, "b": nan}), {"a": 1.0, "b": None}),
        (pd.DataFrame({"a": [1, 2]}, index=["p", "q"]), {"a": {"p": 1, "q": 2}}),
        ([{"e": Estimate(1.0, 0.9, 1.0, 2)}], [{"e": {"value": 1.0, "low": 0.9, "high": 1.0, "n": 2}}]),
        (runtime.Path("a/b"), "a/b"),
        (None, None),
        (True, True),
        ("naïve ± 5 %", "naïve ± 5 %"),
    ],
    ids=str,
)
def test_metrics_of_any_kind_become_strict_json(tmp_path, value, read):
    found = stored_as(open_run(tmp_path, make("demo")), value)
    assert found == read and type(found) is type(read)


def test_metrics_are_sorted_so_that_equal_numbers_give_equal_files(tmp_path):
    run = open_run(tmp_path, make("demo"))
    first = run.write_metrics("04", {"b": 1, "a": {"d": 1, "c": 2}}).read_bytes()
    assert run.write_metrics("04", {"a": {"c": 2, "d": 1}, "b": 1}).read_bytes() == first
    assert run.path / "metrics_04.json" in run.path.iterdir()


def test_tables_come_back(tmp_path):
    run = open_run(tmp_path, make("demo"))
    table = pd.DataFrame({"path": ["a, b.png", "肺.png"], "p": [0.1, nan]}, index=[5, 6])
    path = run.write_table("predictions", table)
    assert path.name == "predictions.csv"
    pd.testing.assert_frame_equal(pd.read_csv(path), table.reset_index(drop=True))


# whole files or none


def test_replacing_writes_the_file_and_makes_its_folder(tmp_path):
    with runs.replacing(tmp_path / "new" / "file.txt") as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path / "new", "a rename must not cross file systems"
        assert not (tmp_path / "new" / "file.txt").exists()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.txt"]
    assert (tmp_path / "new" / "file.txt").read_text() == "whole"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    runs.write_text(target, "old")
    with pytest.raises(RuntimeError, match="half way"), runs.replacing(target) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half way")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    target = tmp_path / "file.txt"
    runs.write_text(target, "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        runs.write_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    steps = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(os, step, lambda *args, step=step, real=real: (steps.append(step), real(*args))[1])
    runs.write_text(tmp_path / "file.txt", "x")
    assert steps == ["fsync", "replace"]


def test_a_model_whose_saving_fails_is_still_the_old_one(folder, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_model(folder, network(seed=1), CARD)
    assert torch.equal(load_model(folder).model.features[0].weight, network().features[0].weight)


def test_move_folder_moves_everything(tmp_path):
    (tmp_path / "half" / "sub").mkdir(parents=True)
    (tmp_path / "half" / "sub" / "a").write_text("a")
    (tmp_path / "half" / "b").write_text("b")
    runs.move_folder(tmp_path / "half", tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "sub", "whole"]
    assert (tmp_path / "whole" / "sub" / "a").read_text() == "a"


def test_move_folder_flushes_every_file_first(tmp_path, monkeypatch):
    (tmp_path / "half").mkdir()
    for name in "abc":
        (tmp_path / "half" / name).write_text(name)
    flushed, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append((tmp_path / "whole").exists()), real(fd))[1])
    runs.move_folder(tmp_path / "half", tmp_path / "whole")
    assert flushed == [False, False, False]


def test_move_folder_takes_no_name_that_is_in_use(tmp_path):
    for name in ("half", "whole"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError):
        runs.move_folder(tmp_path / "half", tmp_path / "whole")
    assert [(tmp_path / name / "file").read_text() for name in ("half", "whole")] == ["half", "whole"]
