"""A trained network as it is given away: rounded, tested as it is, with the terms of its films, and usable at once."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_trials
import torch

from pneumo_lib import (
    answers,
    diagnosis,
    evaluation,
    evidence,
    model_card,
    pipeline,
    publish,
    release,
    robustness,
    runs,
    trials,
)
from pneumo_lib.data import ImageSet, open_folder
from pneumo_lib.data.licences import UNKNOWN
from pneumo_lib.errors import DataError, UsageError
from pneumo_lib.pipeline import Protocol
from pneumo_lib.trials import Trial

NAME = "systems/chest_xray_kermany/cnn5"
CLEAN, NOISY, NOISE = "clean", "test_noise", 0.3


@pytest.fixture(scope="module")
def films(tmp_path_factory, cache_dir) -> ImageSet:
    """Two classes whose training films are free; one test film is not."""
    root = tmp_path_factory.mktemp("set") / "chest_xray_kermany"
    tiny_trials.draw(root, tiny_trials.KERMANY, {"train": 40, "test": 12})
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    terms = ["CC BY-NC 4.0" if path == paths[0] else "CC BY 4.0" if "NORMAL" in path else "CC0 1.0" for path in paths]
    assert paths[0].startswith("test/")
    pd.DataFrame({"path": paths, "licence": terms}).to_csv(root / "manifest.csv", index=False)
    return open_folder(root, image_size=32, cache_dir=cache_dir, val_fraction=0.3, seed=0)


@pytest.fixture(scope="module")
def trained(films, tmp_path_factory) -> Path:
    """A run folder with one system that learned from noisy films and was tested on both kinds; read only."""
    run = tmp_path_factory.mktemp("runs") / "full"
    ways = {"sigma": NOISE, "protocol": NOISY, "more_protocols": (Protocol(CLEAN, "", "test", 0.0),)}
    options = {"precision": "no", "val_fraction": 0.3, "dataset": "chest_xray_kermany"} | ways
    trials.answer(Trial(tiny_trials.system("cnn5", epochs=6), films, folder=run / NAME, **options))
    return run


@pytest.fixture
def figures(tmp_path) -> Path:
    return tmp_path / "figures"


@pytest.fixture
def released(trained, films, figures) -> answers.Finished:
    return release.release(trained / NAME, figures / NAME, films)


@pytest.fixture
def tampered(trained, tmp_path) -> Callable[..., Path]:
    """A copy of the run's system whose card says something else."""

    def change(**card: object) -> Path:
        shutil.copytree(trained / NAME, tmp_path / "other" / NAME)
        runs.write_card(tmp_path / "other" / NAME, answers.read_card(trained / NAME) | card)
        return tmp_path / "other" / NAME

    return change


# ---- the weights ----------------------------------------------------------------------------------------------------


def test_weights_take_half_the_place_and_load_as_the_nearest_float16(released, trained):
    small, large = (folder / release.WEIGHTS for folder in (released.folder, trained / NAME))
    assert small.stat().st_size < 0.55 * large.stat().st_size
    before, after = (runs.load_model(path.parent).model.state_dict() for path in (large, small))
    floats = [name for name in before if before[name].is_floating_point()]
    assert floats and all(after[name].dtype == torch.float32 for name in floats)
    assert all(torch.equal(after[name], before[name].half().float()) for name in floats)
    assert any(not torch.equal(after[name], before[name]) for name in floats), "something was rounded"
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - set(floats))


def test_every_float16_is_read_exactly():
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = every[every.isfinite()]
    layer = torch.nn.Linear(len(finite), 1, bias=False)
    layer.load_state_dict({"weight": finite[None]})
    assert layer.weight.dtype == torch.float32 and np.array_equal(
        layer.weight.detach().numpy()[0], finite.numpy().astype(np.float32)
    )


def test_what_float16_cannot_hold_is_refused_by_name():
    with pytest.raises(DataError, match=r"layer\.weight holds numbers beyond 65504"):
        release.halved({"layer.weight": torch.tensor([1e5]), "steps": torch.tensor(10**6)})


def test_what_is_published_was_said_by_the_rounded_network(released, trained, films):
    rounded = runs.load_model(released.folder)
    said = pd.concat(trials.say(Protocol(**one), films, rounded) for one in rounded.card["protocols"])
    stored = answers.read_predictions(released.folder / answers.PREDICTIONS)
    assert stored["protocol"].unique().tolist() == [NOISY, CLEAN]
    names = ["p_NORMAL", "p_PNEUMONIA"]
    np.testing.assert_array_equal(stored[names], said[names])
    unrounded = answers.read_predictions(trained / NAME / answers.PREDICTIONS)
    apart = (stored[names] - unrounded[names]).abs().to_numpy().max()
    told = released.card["rounding"]
    assert told["answers"] == 48 and told["largest"] == pytest.approx(apart, abs=1e-6) and apart > 0
    assert told["turned"] == (stored["predicted"] != unrounded["predicted"]).sum()


# ---- the card -------------------------------------------------------------------------------------------------------


def test_the_card_says_which_weights_and_whose_films_and_no_folder(released, trained, films):
    card, before = released.card, answers.read_card(trained / NAME)
    assert card["sha256"] == runs.sha256(released.folder / release.WEIGHTS) != before["sha256"]
    assert (card["precision"], card["trained_sha256"]) == ("float16", before["sha256"])
    assert card["films"] == "chest_xray_kermany"
    assert card["licences"] == {"NORMAL": {"CC BY 4.0": 40}, "PNEUMONIA": {"CC0 1.0": 40}}
    assert "root" in before and "root" not in card
    assert not any(str(films.root.parent) in path.read_text() for path in released.folder.glob("*.[cj]s*"))


def test_what_validation_fixed_stays(released, trained):
    assert released.card["decision"] == answers.read_card(trained / NAME)["decision"]


def test_the_check_knows_films_as_every_protocol_shows_them(released, trained, films):
    check, model = evaluation.load_check(released.folder, released.card), runs.load_model(released.folder).model
    test = pipeline.films(films, "test")
    for name, view in ((CLEAN, evaluation.View()), (NOISY, evaluation.View("gaussian", NOISE))):
        found = evaluation.refused(check, model, test, view)
        assert found.mean() < 0.4, name
        counts = {"NORMAL": found[test.labels == 0].sum(), "PNEUMONIA": found[test.labels == 1].sum()}
        assert released.card["refused"][name] == counts
    black = replace(test, images=np.zeros_like(test.images))
    assert evaluation.refused(check, model, black, evaluation.View()).all()


def test_a_system_for_noisy_films_takes_clean_ones_for_films_too(trained, films):
    folder = trained / NAME
    check, model = evaluation.load_check(folder, answers.read_card(folder)), runs.load_model(folder).model
    for view in (evaluation.View(), evaluation.View("gaussian", NOISE)):
        assert evaluation.refused(check, model, pipeline.films(films, "test"), view).mean() < 0.4


def test_only_what_it_learned_from_must_be_free(trained, figures, films, tmp_path):
    root = tmp_path / "chest_xray_kermany"
    shutil.copytree(films.root, root)
    manifest = pd.read_csv(root / "manifest.csv")
    learned = manifest["path"].str.startswith("train/NORMAL")
    manifest.loc[learned & (np.cumsum(learned) <= 3), "licence"] = "CC BY-NC 4.0"
    manifest.loc[learned & (np.cumsum(learned) == 5), "licence"] = ""
    manifest.to_csv(root / "manifest.csv", index=False)
    said = "4 of the 80 films .* 3 of NORMAL under CC BY-NC 4.0, 1 of NORMAL under unknown"
    with pytest.raises(DataError, match=said):
        release.release(trained / NAME, figures / NAME, replace(films, root=root))
    assert not list(figures.rglob("*.*")), "nothing is left behind"
    names = ["CC BY", "CC0", "CC BY-NC", UNKNOWN]
    assert release.release(trained / NAME, figures / NAME, replace(films, root=root), names=names).card["licences"] == {
        "NORMAL": {"CC BY 4.0": 36, "CC BY-NC 4.0": 3, UNKNOWN: 1},
        "PNEUMONIA": {"CC0 1.0": 40},
    }
    (root / "manifest.csv").unlink()
    with pytest.raises(DataError, match=r"no manifest\.csv"):
        release.release(trained / NAME, figures / NAME, replace(films, root=root))


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"train_images": 55}, "speaks of 55 films in train, and .* gives 56"),
        ({"fold": {"k": 5, "number": 0, "repeat": 0}}, "one fold of a cross-validation"),
        ({"preprocessing": {"image_size": 32, "denoiser": "not stored"}}, "behind a denoiser"),
        ({"classes": ["COVID", "NonCOVID"]}, "was trained for the classes"),
    ],
)
def test_a_system_that_does_not_fit_is_not_published(tampered, figures, films, card, said):
    with pytest.raises(DataError, match=said):
        release.release(tampered(**card), figures / NAME, films)
    assert not (figures / NAME).exists()


def test_several_processes_do_not_publish(trained, figures, films, monkeypatch):
    monkeypatch.setattr(release.processes, "count", lambda: 2)
    with pytest.raises(UsageError, match="one process"):
        release.release(trained / NAME, figures / NAME, films)


def test_a_network_takes_the_place_of_an_earlier_one_only_when_it_is_whole(
    released, trained, figures, films, monkeypatch
):
    (released.folder / robustness.CORRUPTIONS).write_text("of the earlier one")
    before = {path.name: path.read_bytes() for path in released.folder.iterdir()}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trials, "test", stop)
        with pytest.raises(KeyboardInterrupt):
            release.release(trained / NAME, figures / NAME, films)
    assert {path.name: path.read_bytes() for path in released.folder.iterdir()} == before
    release.release(trained / NAME, figures / NAME, films)
    assert [path.name for path in figures.glob("systems/*/*")] == ["cnn5"]
    assert not (released.folder / robustness.CORRUPTIONS).exists(), "that was said by other weights"


# ---- whoever has the clone ------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """The working directory, which looks like a clone of the project: figures and nothing that a command has made."""
    for name in ("pneumo_lib", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_clone_diagnoses_with_the_published_network(released, clone, films):
    assert diagnosis.default_run() == diagnosis.PUBLISHED
    diagnoser = diagnosis.Diagnoser.load(diagnosis.default_run())
    said = answers.read_predictions(released.folder / answers.PREDICTIONS)
    clean = said[said["protocol"] == CLEAN].set_index("path")
    told = [diagnoser.diagnose(films.root / path) for path in clean.index]
    statuses = pd.Series([one.status for one in told])
    assert statuses.isin(["ok", "undecided"]).mean() > 0.6
    assert (statuses == "refused").sum() == sum(released.card["refused"][CLEAN].values())
    for path, one in zip(clean.index, told, strict=True):
        if one.probabilities:
            assert one.probabilities["PNEUMONIA"] == pytest.approx(clean.loc[path, "p_PNEUMONIA"], abs=2e-3)


def test_without_a_published_network_the_demo_is_taken(clone):
    assert diagnosis.default_run() == diagnosis.DEMO
    runs.write_card(clone / "figures" / NAME, {"answers": "alone"})
    assert diagnosis.default_run() == diagnosis.DEMO, "answers without weights diagnose nothing"


def test_the_table_of_systems_is_made_of_the_rounded_answers_too(released, figures):
    publish.publish_systems(figures, [released], figures)
    assert (released.folder / release.WEIGHTS).exists(), "its own folder is not emptied"
    assert (figures / "systems.md").read_text() == publish.systems_table([released])


# ---- model card -----------------------------------------------------------------------------------------------------


def test_the_model_card_tells_what_the_files_say(released, figures, films):
    assert model_card.write(figures) == [figures / model_card.CARD]
    text = (figures / model_card.CARD).read_text()
    assert "not a medical device" in text and released.card["sha256"] in text
    accuracy = answers.metrics.accuracy(released.y_true, released.y_pred).percent()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{NOISY}` | `test` + gaussian noise 0.3 |")]
    assert accuracy in row and "50.0%" in row, "the share of the commonest class"
    assert f"| `{CLEAN}` | `test` as it is |" in text
    assert f"\n- Augmentation in training: {released.card['augmentation']}.\n" in text
    assert "| NORMAL | CC BY 4.0 | 40 |" in text and "| PNEUMONIA | CC0 1.0 | 40 |" in text
    assert "pneumo train cnn5 --preset full --data FOLDER -p sigma=0.3 --run RUN" in text
    assert "Children of one hospital" in text, "the flaws of the data set's card"
    assert "under corruptions" not in text and "Without copies" not in text and "from which something" not in text
    for heading in (
        *("Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data"),
        *("Quantitative analyses", "Ethical considerations and caveats", "Make it again"),
    ):
        assert f"\n## {heading}\n" in text
    assert not re.search(r"\{\{|\{%|\bNone\b|\bnan\b|Undefined", text)


def test_copies_corruptions_and_controls_are_told_where_they_were_measured(released, figures, films):
    (film,) = released.predictions["path"].head(1)
    pair = {"path_a": film, "split_a": "test", "label_a": "NORMAL", "path_b": "train/x.png", "split_b": "train"}
    pd.DataFrame([pair | {"label_b": "NORMAL", "kind": "near", "similarity": 1}]).to_csv(
        figures / publish.PAIRS, index=False
    )
    row = {"control": "border only", "mean": 0.625} | {name: {"value": 0.75} for name in tiny_trials.KERMANY}
    (figures / "metrics.json").write_text(json.dumps({"05": {"controls": [row]}}))
    levels = pd.DataFrame({"kind": "blur", "level": [0.0, 2.0], "value": [0.9, 0.6]})
    levels.to_csv(released.folder / robustness.CORRUPTIONS, index=False)
    text = model_card.text(figures, released.folder)
    assert re.search(rf"^\| `{CLEAN}` .* n = 24 .* n = 23 \|$", text, re.M) and "*Without copies* leaves" in text
    (other,) = released.predictions["path"].tail(1)
    (figures / evidence.FACTS).write_text(json.dumps({"acquainted": [film, other]}))
    facts = model_card._known(figures)
    assert facts == ("copies or known patients", {film, other})
    (figures / evidence.FACTS).unlink()
    assert "| border only | 75.0% | 75.0% | 62.5% |" in text
    assert "| blur | 90.0% | 2: 60.0% | 0.750 |" in text


def test_without_weights_there_is_no_model_card(released, figures):
    model_card.write(figures)
    (released.folder / release.WEIGHTS).unlink()
    assert model_card.write(figures) == [] and not (figures / model_card.CARD).exists()


def test_the_command_that_trains_it_names_what_differs():
    card = {"system": "cnn5", "preset": "full", "seed": 0, "noise": {"strength": 0.5}, "scale": {"epochs": 8}}
    assert model_card.training(card).endswith("--data FOLDER -p epochs=8 --run RUN")
    card |= {"seed": 3, "noise": {"strength": 0.25}, "scale": {"image_size": 160, "epochs": 0}}
    assert "-p image_size=160 -p sigma=0.25 -p seed=3" in model_card.training(card)
    assert "epochs" not in model_card.training(card | {"preset": "quick", "scale": {"epochs": 3}})
