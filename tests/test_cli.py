"""The verbs on the command line: what they print, how they end, and that a fault is one plain message."""

import csv
import json
import re
import shutil
import subprocess
import sys
import urllib.error
from functools import partial
from pathlib import Path
from typing import NamedTuple

import kagglehub
import nbformat
import numpy as np
import pandas as pd
import pytest
import tiny_trials
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from typer.main import get_command

from pneumo_lib import answers, cli, diagnosis, evaluation, pipeline, robustness, runs, systems
from pneumo_lib.data import CLASSES, phantom
from pneumo_lib.decision import Diagnosis

ROOT = Path(__file__).parents[1]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def fault(self, code: int) -> str:
        """The message of a command that failed with this code: plain, alone, and on standard error."""
        assert self.code == code, self
        assert self.err.startswith("pneumo: ") and "Traceback" not in self.err and self.out == ""
        assert len(self.err) < 800, "one message"
        return self.err

    def fault_after_notes(self, code: int) -> str:
        """The same where something was printed before it, and notes on the films were told."""
        told = [line for line in self.err.splitlines(keepends=True) if not line.startswith("- ")]
        return Ended(self.code, "", "".join(told)).fault(code)


@pytest.fixture
def pneumo(capsys, monkeypatch, tmp_path):
    """Calls `pneumo` in an empty folder."""
    monkeypatch.setenv("PNEUMO_QUIET", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # a fork server begun there outlives the test: no empty package for it
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pneumo", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def clone(tmp_path, monkeypatch, pneumo) -> Path:
    """What looks like a clone: the notebooks are there, nothing else is."""
    (tmp_path / "pneumo_lib").mkdir()
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    return tmp_path


# ---- help -----------------------------------------------------------------------------------------------------------


def _verbs() -> dict[tuple[str, ...], object]:
    commands = get_command(cli.app).commands
    found = {(name,): command for name, command in commands.items() if name != "data"}
    return found | {("data", name): command for name, command in commands["data"].commands.items()}


def _plain(text: str) -> str:
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


@pytest.mark.parametrize("verb", _verbs(), ids=" ".join)
def test_help_of_every_verb_says_what_it_does(pneumo, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "120")
    ended = pneumo(*verb, "--help")
    text, command = _plain(ended.out), _verbs()[verb]
    assert ended.code == 0 and _plain(command.help.split("\n\n")[0]).strip() in text
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, f"{parameter.name} has no help"
            assert parameter.name.upper() in text or parameter.opts[0] in text


def test_the_program_lists_its_verbs_and_its_exit_status(pneumo):
    ended = pneumo("--help")
    text = _plain(ended.out)
    assert ended.code == 0 and "not a medical device" in text
    assert all(re.search(rf"\b{verb}\b", text) for verb in (*get_command(cli.app).commands,))
    assert "0 done, 2 wrong usage, 3 data, 4 training, 5 report" in text


def test_python_m_is_the_same_program():
    ended = subprocess.run([sys.executable, "-m", "pneumo_lib", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr == ""
    assert all(verb in ended.stdout for verb in ("report", "train", "evaluate", "diagnose", "systems", "doctor"))


@pytest.mark.slow
def test_faults_end_the_process_with_their_status(tmp_path):
    command = [sys.executable, "-m", "pneumo_lib", "diagnose", str(tmp_path / "gone.png")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    Ended(ended.returncode, ended.stdout, ended.stderr).fault(3)
    assert list(tmp_path.iterdir()) == [], "nothing is made before the fault is found"


# ---- 2: wrong usage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "No such command"),
        (["report", "--preset", "dmeo"], "demo"),
        (["report", "--lang", "cn"], "'en', 'zh'"),
        (["report", "--sigma", "0.3"], "No such option"),
        (["data", "describe"], "Missing argument 'folder'"),
        (["train"], "Missing argument 'name'"),
    ],
)
def test_an_unknown_word_is_refused_with_the_usage(pneumo, monkeypatch, arguments, said):
    monkeypatch.setenv("COLUMNS", "120")
    ended = pneumo(*arguments)
    assert ended.code == 2 and said.lower() in _plain(ended.err).lower() and "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ("sigmaa=0.3", "Did you mean 'sigma'?"),
        ("epoch=3", "Did you mean 'epochs'?"),
        ("sigma=much", "sigma"),
        ("sigma=9", "sigma is 9"),
        ("image_size=100", "multiple of 32"),
        ("seed=1.5", "seed"),
        ("sigma", "write NAME=VALUE, for example sigma=0.3"),
        ("=3", "write NAME=VALUE"),
    ],
)
def test_a_bad_parameter_is_refused_before_anything_is_made(pneumo, clone, parameter, said):
    before = sorted(clone.iterdir())
    for verb in (["report"], ["train", "autoencoder"]):
        assert said in pneumo(*verb, "--preset", "tiny", "-p", parameter).fault(2)
    assert sorted(clone.iterdir()) == before, "no data drawn, no run opened, no cell run"


def test_real_presets_ask_for_their_data(pneumo, clone):
    assert "'quick' needs data_dir" in pneumo("report", "--preset", "quick").fault(2)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("cnn33", "cnn3"), ("resnet", "resnet"), ("arenet", "aernet"), ("unet_denoise", "unet_denoiser")],
)
def test_a_network_that_does_not_exist_cannot_be_trained(pneumo, tmp_path, name, meant):
    message = pneumo("train", name, "--preset", "tiny").fault(2)
    assert f"'{name}'" in message and f"Did you mean '{meant}" in message
    assert all(known in message for known in (*systems.SYSTEMS, "autoencoder, unet_denoiser, classifier"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cnn3", "--weights", "imagenot"], "Did you mean 'imagenet'?"),
        (["cnn3", "--weights", "imagenet"], "there are no ImageNet weights for 'cnn3'"),
        (["cnn2", "--weights", "imagenet"], "cnn2 is none"),
        (["classifier", "--folds", "3"], "classifier is none"),
    ],
)
def test_weights_and_folds_that_make_no_sense_are_refused(pneumo, system_options, tmp_path, arguments, said):
    assert said in pneumo("train", *arguments, *system_options).fault_after_notes(2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [("--folds", "-1"), ("--repeats", "0")], ids=" ".join)
def test_fewer_than_no_folds_are_refused_with_the_usage(pneumo, system_options, option):
    ended = pneumo("train", "cnn3", *system_options, *option)
    assert ended.code == 2 and "Invalid value" in ended.err and "Traceback" not in ended.err


def test_a_report_needs_a_clone(pneumo):
    assert "run this from a clone" in pneumo("report").fault(2)


# ---- 3: data --------------------------------------------------------------------------------------------------------


def test_a_data_folder_that_is_missing(pneumo, clone):
    for verb in (["report"], ["train", "autoencoder", "--run", "r"]):
        assert "nowhere" in pneumo(*verb, "--preset", "quick", "--data", "nowhere").fault(3)
    assert "nowhere" in pneumo("data", "describe", "nowhere").fault(3)
    assert "nowhere" in pneumo("data", "audit", "nowhere").fault(3)


def test_a_run_that_is_missing_or_broken(pneumo, film_folder, tiny_run, tmp_path):
    film = next(film_folder.rglob("*.png"))
    assert "not a run folder" in pneumo("diagnose", film, "--run", "nowhere").fault(3)
    assert "not a run folder" in pneumo("evaluate", "nowhere").fault(3)
    copy = shutil.copytree(tiny_run.path, tmp_path / "copy")
    (copy / "classifier" / "cnn2_on_unet_denoiser" / "model.json").write_text("{")
    assert "is not a model card" in pneumo("diagnose", film, "--run", copy).fault(3)
    shutil.rmtree(copy / "classifier")
    assert "run that one first" in pneumo("evaluate", copy).fault(3)
    (copy / "config.json").write_text("[]")
    assert "not a configuration of this version" in pneumo("diagnose", film, "--run", copy).fault(3)


def test_what_the_operating_system_refuses_is_a_plain_message(pneumo, film_folder, tiny_run, tmp_path):
    (tmp_path / "taken").mkdir()
    film = next(film_folder.rglob("*.png"))
    message = pneumo("diagnose", film, "--run", tiny_run.path, "--csv", tmp_path / "taken").fault(3)
    assert "taken" in message and "Check" in message
    assert list((tmp_path / "taken").iterdir()) == [] and len(list(tmp_path.iterdir())) == 1


def test_control_c_is_no_fault(pneumo, monkeypatch):
    monkeypatch.setattr(systems, "table", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    ended = pneumo("systems")
    assert ended.code in (1, 130) and "Traceback" not in ended.err


# ---- training and 4 -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache_dir, film_folder) -> tuple[Path, list[str]]:
    """A run whose denoiser is trained, and the options that made it."""
    run = tmp_path_factory.mktemp("cli") / "run"
    options = ["--preset", "tiny", "--data", str(film_folder), "--run", str(run), "--cache", str(cache_dir)]
    return run, [*options, "-p", "image_size=32", "-p", "val_fraction=0.3"]


def test_train_stores_and_prints_the_history(pneumo, trained):
    run, options = trained
    ended = pneumo("train", "unet_denoiser", *options)
    assert ended.code == 0 and f"run folder: {run}" in ended.out
    history = pd.read_csv(run / "denoiser" / "unet_denoiser" / "history.csv")
    assert len(history) == 1 and all(column in ended.out for column in history)
    assert pneumo("train", "unet_denoiser", *options).out == ended.out, "what is finished is not trained again"
    ended = pneumo("train", "classifier", *options)
    assert ended.code == 0 and (run / "classifier" / "cnn2_on_unet_denoiser" / "model.safetensors").exists()


def test_a_training_with_another_configuration_is_refused(pneumo, trained):
    run, options = trained
    pneumo("train", "unet_denoiser", *options)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    message = pneumo("train", "unet_denoiser", *options, "-p", "sigma=0.3").fault(4)
    assert "sigma: 0.5 there, 0.3 now" in message and "Choose another run folder" in message
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_loss_that_is_not_a_number_ends_with_4(pneumo, trained, tmp_path, monkeypatch):
    class Broken(pipeline.steps.DenoisingStep):
        def __call__(self, *batch):
            outcome = super().__call__(*batch)
            return outcome._replace(loss=outcome.loss * np.nan)

    monkeypatch.setattr(pipeline.steps, "DenoisingStep", Broken)
    options = [tmp_path / "run" if option == str(trained[0]) else option for option in trained[1]]
    assert "the loss is not a number in epoch 1, at step 1" in pneumo("train", "autoencoder", *options).fault(4)


def test_a_parameter_may_stand_for_an_option(pneumo, cache_dir, film_folder, tmp_path):
    given = ["-p", "preset=tiny", "-p", f"data_dir={film_folder}", "-p", "image_size=32", "-p", "sigma=0.2"]
    ended = pneumo("train", "autoencoder", "--run", tmp_path / "run", "--cache", cache_dir, *given)
    assert ended.code == 0
    config = runs.load_run(tmp_path / "run").config
    assert (config.preset, config.sigma, config.data_dir) == ("tiny", 0.2, str(film_folder))


# ---- systems: train and evaluate ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory) -> Path:
    """A small set of two classes whose card has an operating point."""
    root = tmp_path_factory.mktemp("two") / "chest_xray_kermany"
    return tiny_trials.draw(root, tiny_trials.KERMANY, {"train": 9, "test": 5})


@pytest.fixture
def system_options(two_classes, cache_dir, tmp_path) -> list[object]:
    """What trains a system on these films within a second."""
    options = ["--preset", "tiny", "--data", two_classes, "--run", tmp_path / "run", "--cache", cache_dir]
    return [*options, "-p", "image_size=32", "-p", "val_fraction=0.3", "-p", "precision=no"]


def test_a_system_is_trained_by_its_name_and_tested_apart(pneumo, system_options, cache_dir, tmp_path):
    ended = pneumo("train", "cnn3", *system_options)
    folder = tmp_path / "run" / "systems" / "chest_xray_kermany" / "cnn3"
    assert ended.code == 0 and f"cnn3: {folder}, best epoch 1" in ended.out
    assert all(column in ended.out for column in pd.read_csv(folder / "history.csv"))
    assert not (folder / "predictions.csv").exists(), "test films stay closed"
    assert pneumo("train", "cnn3", *system_options).out == ended.out, "what is finished is not trained again"
    pneumo("train", "cnn5", *system_options)
    ended = pneumo("evaluate", tmp_path / "run", "--cache", cache_dir)
    table = (tmp_path / "run" / "systems.md").read_text()
    assert ended.code == 0 and ended.out.strip() == table.strip()
    assert "| chest_xray_kermany, n = 10 | cnn3 |" in table and "| cnn5 |" in table and "85.0%" in table
    assert (folder / "predictions.csv").exists() and not (tmp_path / "figures").exists()


def test_evaluate_shows_systems_corrupted_films_if_asked_and_says_where_it_cannot(
    pneumo, system_options, cache_dir, tmp_path
):
    for name in ("cnn3", "resnet18_s2d"):
        assert pneumo("train", name, *system_options).code == 0
    folder = tmp_path / "run" / "systems" / "chest_xray_kermany" / "resnet18_s2d"
    assert pneumo("evaluate", tmp_path / "run", "--cache", cache_dir).code == 0
    assert not (folder / robustness.CORRUPTIONS).exists()
    (tmp_path / "run" / "systems" / "chest_xray_kermany" / "cnn3" / "model.safetensors").unlink()
    ended = pneumo("evaluate", tmp_path / "run", "--cache", cache_dir, "--corruptions", "--publish")
    assert ended.code == 0 and "cnn3: its weights were not kept" in ended.out
    table = pd.read_csv(folder / robustness.CORRUPTIONS)
    assert "salt_pepper" in ended.out and "low_contrast" in ended.out and set(table["n"]) == {10}
    assert f"figure: {folder.parent / robustness.FIGURE}" in ended.out
    published = tmp_path / "figures" / "systems" / "chest_xray_kermany" / "resnet18_s2d"
    pd.testing.assert_frame_equal(pd.read_csv(published / robustness.CORRUPTIONS), table)
    drawn = [place.parent / robustness.FIGURE for place in (folder, published)]
    assert drawn[0].read_bytes() == drawn[1].read_bytes(), "the same systems are there"
    protocols = pd.read_csv(published / "predictions.csv")["protocol"]
    assert protocols.unique().tolist() == ["test_noise", "clean"], "a system for noisy films is tested both ways"


@pytest.fixture
def licensed(two_classes, tmp_path) -> Path:
    """The films of two classes in another place, with a manifest that says they are free."""
    root = tmp_path / "elsewhere" / "chest_xray_kermany"
    shutil.copytree(two_classes, root)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    pd.DataFrame({"path": paths, "licence": "CC BY 4.0"}).to_csv(root / "manifest.csv", index=False)
    return root


def test_a_published_network_diagnoses_without_a_run_and_has_its_card(pneumo, clone, system_options, licensed):
    name = "systems/chest_xray_kermany/resnet18_s2d"
    assert pneumo("train", "resnet18_s2d", *system_options).code == 0
    cache = ["--cache", clone / "cache"]
    assert "no manifest.csv" in pneumo("publish", "run", *cache).fault(3)
    ended = pneumo("publish", "run", "--data", licensed, "--corruptions", *cache)
    assert ended.code == 0 and f"figures/{name}: 3." in ended.out and "rounding turned" in ended.out, ended
    assert "model_card.md" in ended.out and (clone / "figures" / name / robustness.CORRUPTIONS).exists()
    shutil.rmtree(clone / "run")
    ended = pneumo("diagnose", next(licensed.rglob("test/NORMAL/*.png")), "--json")
    assert ended.code == 0 and json.loads(ended.out)["status"] in ("ok", "undecided", "refused")
    assert ended.err.startswith("no --run given: figures, the published model")
    assert "published without the folder" in pneumo("evaluate", "figures", "--corruptions", *cache).out
    worse = clone / "figures" / name / robustness.CORRUPTIONS
    measured, weights = worse.read_bytes(), (clone / "figures" / name / "model.safetensors").read_bytes()
    worse.unlink()
    assert "published already" in pneumo("publish", "figures", "--data", licensed, *cache).fault(2)
    assert pneumo("publish", "figures", "--data", licensed, "--corruptions", *cache).code == 0
    assert worse.read_bytes() == measured
    assert (clone / "figures" / name / "model.safetensors").read_bytes() == weights
    card = (clone / "figures" / "model_card.md").read_text()
    assert pneumo("cards", "--data", licensed).out.splitlines() == [
        f"written: {clone / 'figures' / file}" for file in ("data_card.md", "model_card.md")
    ]
    again = (clone / "figures" / "model_card.md").read_text()
    assert again == card.replace(
        "they are not quite unseen.", "they are not quite unseen. `data_card.md` describes the whole set."
    )
    assert str(licensed) not in again + (clone / "figures" / "data_card.json").read_text()


def test_answers_of_another_network_take_published_weights_out_and_say_so(pneumo, clone, system_options, cache_dir):
    place = clone / "figures" / "systems" / "chest_xray_kermany" / "cnn3"
    place.mkdir(parents=True)
    (place / "model.safetensors").touch()
    (clone / "figures" / "model_card.md").touch()
    assert pneumo("train", "cnn3", *system_options).code == 0
    ended = pneumo("evaluate", "run", "--cache", cache_dir, "--publish")
    assert ended.code == 0 and "weights were taken out" in ended.err and str(place) in ended.err, ended
    assert (place / "predictions.csv").exists() and not (place / "model.safetensors").exists()
    assert not (clone / "figures" / "model_card.md").exists()
    assert "taken out" not in pneumo("evaluate", "figures", "--publish").err


def test_which_network_is_published_must_be_plain(pneumo, system_options, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "`pneumo train NAME` makes one" in pneumo("publish", "empty").fault(2)
    for name in ("cnn3", "cnn5"):
        assert pneumo("train", name, *system_options).code == 0
    both = "systems/chest_xray_kermany/cnn3, systems/chest_xray_kermany/cnn5"
    assert f"choose one with --model: {both}" in pneumo("publish", "run").fault(2)
    assert "no system 'cnn3'" in pneumo("publish", "run", "--model", "cnn3").fault(2)


def test_cards_without_anything_published_say_so(pneumo, clone):
    assert "--data FOLDER" in pneumo("cards").fault(3)


def test_a_system_in_a_folder_of_another_recipe_ends_with_4(pneumo, system_options):
    assert pneumo("train", "cnn3", *system_options).code == 0
    message = pneumo("train", "cnn3", *system_options, "-p", "seed=1").fault_after_notes(4)
    assert "other data, recipe, seed or starting weights" in message


@pytest.mark.slow
def test_a_system_is_cross_validated_with_folds(pneumo, system_options, cache_dir, tmp_path):
    ended = pneumo("train", "cnn3", *system_options, "--folds", 2, "--repeats", 2)
    assert ended.code == 0
    names = [f"repeat_{repeat}_fold_{number}" for repeat in (0, 1) for number in (0, 1)]
    assert re.findall(r"repeat_\d_fold_\d", ended.out) == names
    ended = pneumo("evaluate", tmp_path / "run", "--cache", cache_dir, "--publish")
    first = [pd.read_csv(path) for path in (tmp_path / "run").rglob("repeat_0_fold_?/predictions.csv")]
    films = pd.concat(first)["path"]
    assert films.is_unique and len(films) > 20, "28, less those that look too much alike"
    assert ended.code == 0 and "2 x 2 folds" in ended.out and f"n = {len(films)}" in ended.out
    assert (tmp_path / "figures" / "systems.md").read_text() == (tmp_path / "run" / "systems.md").read_text()


def test_imagenet_weights_without_network_end_with_3_and_say_what_to_do(pneumo, system_options, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    message = pneumo("train", "resnet34", *system_options, "--weights", "imagenet").fault_after_notes(3)
    assert "no network" in message and re.search(r"Put the file resnet34-\w+\.pth from https://\S+ into ", message)
    assert "--weights none" in message and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_system_a_is_trained_by_its_name_both_networks(pneumo, trained, tmp_path):
    options = [tmp_path / "run" if option == str(trained[0]) else option for option in trained[1]]
    ended = pneumo("train", "cnn2", *options)
    assert ended.code == 0 and f"run folder: {tmp_path / 'run'}" in ended.out
    found = {path.parent.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("model.json")}
    assert found == {"denoiser/autoencoder", "classifier/cnn2_on_autoencoder"}


def test_evaluate_prints_the_accuracies_of_each_protocol(pneumo, tiny_run, tiny_images, cache_dir):
    ended = pneumo("evaluate", tiny_run.path, "--cache", cache_dir)
    protocols = pipeline.protocols(tiny_run.config, tiny_images)
    tables = [pipeline.predict(tiny_run, tiny_images, "unet_denoiser", protocol) for protocol in protocols]
    assert ended.code == 0
    assert ended.out.strip() == evaluation.accuracies(pd.concat(tables)).to_string(index=False).strip()


def test_evaluate_recomputes_what_predictions_say(pneumo, tiny_run, tiny_images, tmp_path):
    protocol = pipeline.protocols(tiny_run.config, tiny_images)[0]
    table = pipeline.predict(tiny_run, tiny_images, "unet_denoiser", protocol)
    table.to_csv(tmp_path / "said.csv", index=False)
    ended = pneumo("evaluate", "--predictions", tmp_path / "said.csv")
    assert ended.code == 0 and evaluation.accuracies(table).to_string(index=False).strip() in ended.out
    assert f"cnn2_on_unet_denoiser, {protocol.name}:" in ended.out and "macro average" in ended.out
    told = pneumo("evaluate", "--predictions", tmp_path / "said.csv", "--temperature", "2", "--threshold", "0.99").out
    assert "at temperature 2, undecided below 0.99:" in told and told != ended.out
    pd.DataFrame({"path_a": table["path"][:20], "split_a": "test", "path_b": "train/x.png", "split_b": "train"}).to_csv(
        tmp_path / "pairs.csv", index=False
    )
    left = pneumo("evaluate", "--predictions", tmp_path / "said.csv", "--pairs", tmp_path / "pairs.csv").out
    assert evaluation.accuracies(table[20:]).to_string(index=False).strip() in left
    table[:20].to_csv(tmp_path / "copies.csv", index=False)
    alone = pneumo("evaluate", "--predictions", tmp_path / "copies.csv", "--pairs", tmp_path / "pairs.csv").fault(3)
    assert "no film without a copy" in alone
    assert "--pairs and --card go with" in pneumo("evaluate", tiny_run.path, "--pairs", tmp_path / "pairs.csv").fault(2)
    for option, value in (("--temperature", "0"), ("--temperature", "nan"), ("--threshold", "1.5")):
        assert "expected are" in pneumo("evaluate", "--predictions", tmp_path / "said.csv", option, value).fault(2)
    assert "either" in pneumo("evaluate").fault(2)
    assert "either" in pneumo("evaluate", tiny_run.path, "--predictions", tmp_path / "said.csv").fault(2)
    assert "cannot be read" in pneumo("evaluate", "--predictions", tmp_path / "nothing.csv").fault(3)


def test_evaluate_with_a_card_tells_the_conformal_sets_of_its_system(pneumo, tiny_run, tiny_images, tmp_path):
    protocol = pipeline.protocols(tiny_run.config, tiny_images)[0]
    table = pipeline.predict(tiny_run, tiny_images, "unet_denoiser", protocol)
    said, card = tmp_path / "said.csv", tiny_run.model_folder("classifier", "cnn2_on_unet_denoiser") / "model.json"
    pd.concat([table.assign(system="other"), table]).to_csv(said, index=False)
    plain = pneumo("evaluate", "--predictions", said)
    assert plain.code == 0 and "surest" in plain.out and "conformal" not in plain.out
    told = pneumo("evaluate", "--predictions", said, "--card", card)
    decision = json.loads(card.read_text())["decision"]
    assert told.code == 0 and f"at temperature {decision['temperature']:g}, undecided below" in told.out
    surest, sets = told.out.partition("surest of:")[2].split("conformal sets:")
    assert "other" not in surest and surest.count("cnn2_on_unet_denoiser") == 3, "80, 90 and 95 %"
    found = answers.conformal(table, decision)
    assert all(cell.text() in sets for name in ("all", *CLASSES) for cell in found[name])
    assert "either it or those two" in pneumo(
        "evaluate", "--predictions", said, "--card", card, "--temperature", 2
    ).fault(2)
    assert "--card go with --predictions" in pneumo("evaluate", tiny_run.path, "--card", card).fault(2)
    behind = tiny_run.model_folder("denoiser", "unet_denoiser") / "model.json"
    assert "is no card of a classifier" in pneumo("evaluate", "--predictions", said, "--card", behind).fault(3)
    table.assign(system="other").to_csv(said, index=False)
    assert "predictions are of other" in pneumo("evaluate", "--predictions", said, "--card", card).fault(3)


# ---- diagnose -------------------------------------------------------------------------------------------------------


@pytest.fixture
def some(film_folder, tmp_path) -> Path:
    """Four films, one with a name beyond ASCII, and one file that only looks like a film."""
    folder = tmp_path / "some films"
    folder.mkdir()
    for name, film in zip(("=b.png", "c.png", "d.png", "肺炎.png"), sorted(film_folder.rglob("*.png")), strict=False):
        shutil.copyfile(film, folder / name)
    (folder / "'a.png").write_text("no film")
    return folder


def test_json_lines_parse_and_equal_the_library(pneumo, some, tiny_run):
    ended = pneumo("diagnose", some, "--run", tiny_run.path, "--json")
    answers = [json.loads(line) for line in ended.out.splitlines()]
    diagnoser = diagnosis.Diagnoser.load(tiny_run.path)
    expected = diagnoser.diagnose_all(diagnosis.list_films(some))
    assert answers == [json.loads(json.dumps(answer.to_dict())) for answer in expected]
    assert [Path(answer["file"]).name for answer in answers] == ["'a.png", "=b.png", "c.png", "d.png", "肺炎.png"]
    assert "肺炎.png" in ended.out, "names stay readable"
    assert ended.code == 3 and ended.err == "1 of 5 files could not be read; see their messages.\n"
    assert pneumo("diagnose", some, "--run", tiny_run.path, "--json") == ended, "the same answer, always"


def test_films_that_can_be_read_end_with_0(pneumo, some, tiny_run):
    ended = pneumo("diagnose", some / "c.png", "--run", tiny_run.path)
    assert ended.code == 0 and ended.out.startswith(str(some / "c.png")) and ended.out.count("\n") == 1
    assert re.search(r"\((ok|undecided), \d+\.\d%\)$", ended.out.strip())
    assert ended.err.strip() == diagnosis.DISCLAIMER


def test_csv_is_utf8_with_the_same_columns_in_every_row(pneumo, some, tiny_run, tmp_path):
    out = tmp_path / "answers.csv"
    ended = pneumo("diagnose", some, "--run", tiny_run.path, "--csv", out)
    assert (ended.code, ended.out) == (3, "")
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] == "error" for row in rows] == [True, False, False, False, False]
    assert rows[0]["error"] == "not_an_image" and rows[0]["p_NORMAL"] == "", "the first row may be a bad file"
    assert rows[-1]["file"].endswith("肺炎.png")
    for row in rows[1:]:
        rounded = [float(row[f"p_{name}"]) for name in CLASSES]
        assert sum(rounded) == pytest.approx(1, abs=0.0016), "each to three decimals"
    assert None not in rows[0] and set(rows[0]) == set(rows[1])


def test_csv_is_written_whole_or_not_at_all(pneumo, some, tiny_run, tmp_path, monkeypatch):
    out = tmp_path / "out" / "answers.csv"
    out.parent.mkdir()
    out.write_text("older")
    good = Diagnosis.to_row

    def full_disk(self, classes):
        if Path(self.file).name == "d.png":
            raise OSError(28, "No space left on device")
        return good(self, classes)

    monkeypatch.setattr(Diagnosis, "to_row", full_disk)
    assert "No space left" in pneumo("diagnose", some, "--run", tiny_run.path, "--csv", out).fault(3)
    assert out.read_text() == "older" and list(out.parent.iterdir()) == [out]


def test_nothing_to_diagnose(pneumo, tiny_run, tmp_path):
    assert "does not exist" in pneumo("diagnose", "gone.png", "--run", tiny_run.path).fault(3)
    (tmp_path / "empty").mkdir()
    assert "holds no files" in pneumo("diagnose", tmp_path / "empty", "--run", tiny_run.path).fault(3)


# ---- data -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_phantoms(monkeypatch) -> None:
    """The verb draws a few films in place of hundreds."""
    few = partial(phantom.write_folder, counts=phantom.scaled_counts(0.01))
    monkeypatch.setattr(phantom, "write_folder", few)


def test_describe_counts_and_tells_what_was_done(pneumo, film_folder, cache_dir):
    ended = pneumo("data", "describe", film_folder, "--size", 32, "--cache", cache_dir)
    assert ended.code == 0
    for split, n in (("test", 24), ("noisy_test", 9)):
        assert re.search(rf"^{split}\b.*\b{n}\b", ended.out, re.M)
    assert "- Taken from train by patient" in ended.out


def test_describe_refuses_a_folder_without_a_class(pneumo, tmp_path):
    (tmp_path / "set" / "train" / "NORMAL").mkdir(parents=True)
    Image.new("L", (64, 64)).save(tmp_path / "set" / "train" / "NORMAL" / "1.png")
    assert "COVID19, PNEUMONIA" in pneumo("data", "describe", tmp_path / "set").fault(3)


def test_audit_writes_what_it_prints(pneumo, few_phantoms, tmp_path, cache_dir):
    pneumo("data", "phantom", "set", "--size", 64)
    planted = next((tmp_path / "set" / "train" / "NORMAL").glob("*.png"))
    shutil.copyfile(planted, tmp_path / "set" / "test" / "NORMAL" / "copy.png")
    ended = pneumo("data", "audit", tmp_path / "set", "--out", tmp_path / "audit", "--cache", cache_dir)
    assert ended.code == 0 and "written: " in ended.out, ended
    pairs = pd.read_csv(tmp_path / "audit" / "audit_pairs.csv")
    exact = pairs[pairs["kind"] == "exact"]
    assert len(exact) == 1 and "copy.png" in exact[["path_a", "path_b"]].to_string()
    assert {path.name for path in (tmp_path / "audit").iterdir()} >= {"audit_summary.csv", "audit_controls.csv"}


def test_select_keeps_films_of_a_licence(pneumo, film_folder, tmp_path):
    shutil.copytree(film_folder, tmp_path / "all" / "set")
    manifest = pd.read_csv(film_folder / "manifest.csv")
    manifest["licence"] = ["CC BY-NC 4.0" if i % 2 else "CC BY 4.0" for i in range(len(manifest))]
    manifest.to_csv(tmp_path / "all" / "set" / "manifest.csv", index=False)
    ended = pneumo("data", "select", "all/set", "free/set", "--licence", "CC BY")
    assert ended.code == 0 and re.search(r"^ *train +COVID19 +CC BY-NC 4\.0 +\d+ +0$", ended.out, re.M), ended
    left = pd.read_csv(tmp_path / "free" / "set" / "manifest.csv")
    assert set(left.loc[left["split"] == "train", "licence"]) == {"CC BY 4.0"}
    assert (left["split"] == "test").sum() == (manifest["split"] == "test").sum()
    assert "is under CC0" in pneumo("data", "select", "all/set", "none", "--licence", "CC0").fault(3)


def test_phantom_draws_a_set(pneumo, few_phantoms, tmp_path):
    ended = pneumo("data", "phantom", "drawn", "--size", 32, "--seed", 3)
    assert ended.code == 0 and ended.out == "written: drawn\n"
    assert {path.parent.name for path in (tmp_path / "drawn").rglob("*.png")} == set(CLASSES)
    record = json.loads((tmp_path / "drawn" / "phantom.json").read_text())
    assert (record["size"], record["seed"]) == (32, 3)
    assert "at least 32" in pneumo("data", "phantom", "other", "--size", 8).fault(2)


def test_download_without_network_says_what_to_do(pneumo, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(kagglehub, "dataset_download", offline)
    ended = pneumo("data", "download", "chest_xray_covid", "--out", tmp_path / "set")
    assert ended.code == 3 and "Traceback" not in ended.err
    assert "--from-zip" in ended.err and "no network" in ended.err
    assert list(tmp_path.iterdir()) == []
    assert "chest_xray_covid" in pneumo("data", "download", "chest_xray_covd").fault(2)
    assert "There is no file" in pneumo("data", "download", "--from-zip", "gone.zip").fault(3)


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_systems_prints_the_table(pneumo):
    ended = pneumo("systems")
    assert ended.code == 0
    for row in systems.table().itertuples():
        assert row.title in ended.out and row.reported in ended.out and str(row.parameters) in ended.out


def test_doctor_names_what_is_missing_and_how_to_get_it(pneumo, monkeypatch):
    monkeypatch.setattr(cli.shutil, "which", lambda name: None)
    ended = pneumo("doctor")
    assert ended.code == 0 and "torch" in ended.out and "device" in ended.out
    assert re.search(r"^missing Graphviz \(dot\): install graphviz", ended.out, re.M)
    assert re.search(r"^missing notebooks/: run from a clone", ended.out, re.M)
    assert re.search(r"^ok +notebook kernel", ended.out, re.M)


# ---- 5: report ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failing_notebook_ends_with_5_and_is_shown(pneumo, tmp_path, film_folder, cache_dir):
    (tmp_path / "pneumo_lib").mkdir()
    (tmp_path / "notebooks").mkdir()
    names = ("preset", "data_dir", "run_dir", "cache_dir")
    parameters = new_code_cell("\n".join(f'{name}: str = ""' for name in names), metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[parameters, new_code_cell("print('before')"), new_code_cell("1 / 0")])
    nbformat.write(notebook, tmp_path / "notebooks" / "01_fails.ipynb")
    options = ["--preset", "tiny", "--data", film_folder, "-p", f"cache_dir={cache_dir}", "-p", "run_dir=runs/x"]
    ended = pneumo("report", *options, "--out", "out")
    assert ended.code == 5
    assert re.search(r"^pneumo: Notebook 01_fails.ipynb failed: ZeroDivisionError: division by zero$", ended.err, re.M)
    assert "Traceback" not in ended.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "This notebook failed" in page and "before" in page
