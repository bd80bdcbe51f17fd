"""One network trained and tested: what its folder holds, what validation fixes, and that nothing is done twice."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import tiny_trials
import torch

from pneumo_lib import answers, calibration, evaluation, models, pipeline, runs, steps, training, trials
from pneumo_lib.data import CARDS, ImageSet, open_folder
from pneumo_lib.errors import DataError, TrainingError
from pneumo_lib.recipe import Scale
from pneumo_lib.systems import System
from pneumo_lib.trials import Fold, Trial

COUNTS = {"train": 30, "test": 12}


def opened(root: Path, cache: Path) -> ImageSet:
    return open_folder(root, image_size=32, cache_dir=cache, val_fraction=0.3, seed=0)


@pytest.fixture(scope="module")
def films(tmp_path_factory, cache_dir) -> ImageSet:
    """Two classes under the name of a set whose card asks for 95 % of the findings."""
    root = tmp_path_factory.mktemp("set") / "chest_xray_kermany"
    return opened(tiny_trials.draw(root, tiny_trials.KERMANY, COUNTS), cache_dir)


@pytest.fixture
def trial(films, tmp_path) -> Callable[..., Trial]:
    """Makes a trial in a folder of its own; options are fields of Trial."""

    def make(folder: str = "trial", system: System | None = None, **options: object) -> Trial:
        fields = {"precision": "no", "val_fraction": 0.3, "images": films, "dataset": "chest_xray_kermany"} | options
        return Trial(system or tiny_trials.system(), folder=tmp_path / folder, **fields)

    return make


@pytest.fixture
def training_forbidden(monkeypatch) -> Callable[[], None]:
    """Once called, any epoch of training is a failure."""

    def forbid() -> None:
        monkeypatch.setattr(training.Loop, "run_epoch", lambda self: pytest.fail("it trains again"))

    return forbid


def card_of(one: Trial) -> dict:
    return json.loads((one.folder / "model.json").read_text())


# ---- learning -------------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_trained_on_what_and_how(trial, films):
    scale = Scale(image_size=32, epochs=2, train_images=20, val_images=15, test_images=15)
    one = trial(scale=scale, seed=4, sigma=0.1, preset="tiny", protocol="noisy", fold=Fold(5, 2, 1))
    saved = trials.learn(one)
    card = card_of(one)
    assert card == answers.read_card(one.folder) == runs.load_model(one.folder).card
    assert {name: card[name] for name in saved.card} == runs._plain(saved.card)
    assert (card["system"], card["architecture"]) == ("cnn3", "cnn3")
    assert card["arguments"] == {"image_size": 32, "n_classes": 2}
    assert (card["dataset"], card["root"]) == ("chest_xray_kermany", str(films.root))
    assert (card["classes"], card["positive"]) == (["NORMAL", "PNEUMONIA"], "PNEUMONIA")
    assert card["scale"] == vars(scale) and card["val_fraction"] == 0.3
    assert card["fold"] == {"k": 5, "number": 2, "repeat": 1}
    assert card["noise"] == {"kind": "gaussian", "strength": 0.1, "share": 0.0}
    assert (card["seed"], card["preset"], card["protocol"], card["starting_weights"]) == (4, "tiny", "noisy", "none")
    assert (card["train_images"], card["val_images"]) == (20, 15)
    assert card["recipe"] == one.system.recipe.text() and "2 epochs, batch 8, adam 0.001" in card["recipe"]
    assert card["parameters"] == models.count_parameters(models.build("cnn3", **card["arguments"]))
    assert card["preprocessing"]["image_size"] == 32
    assert {"temperature", "threshold", "cut"} <= set(card["decision"])


def test_the_card_repeats_the_history_of_the_training(trial):
    card = trials.learn(one := trial()).card
    history = pd.read_csv(one.folder / "history.csv")
    assert card["epochs"] == len(history) == 2
    assert card["best_epoch"] == history["val_loss"].idxmin() + 1
    assert card["metrics"]["val_loss"] == pytest.approx(history["val_loss"].min())
    assert card["seconds"] == pytest.approx(history["seconds"].sum())


def test_the_weights_depend_on_the_seed_alone(trial):
    one, same, other = (trials.learn(trial(name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert tiny.same_weights(one.model.state_dict(), same.model.state_dict())
    assert not tiny.same_weights(one.model.state_dict(), other.model.state_dict())


def test_what_was_learned_is_read_and_not_learned_again(trial, training_forbidden):
    first = trials.learn(one := trial())
    history = (one.folder / "history.csv").read_text()
    training_forbidden()
    again = trials.learn(one)
    assert again.card["metrics"] == first.card["metrics"] and (one.folder / "history.csv").read_text() == history
    assert tiny.same_weights(first.model.state_dict(), again.model.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"system": tiny_trials.system(lr=1e-4)},
        {"system": tiny_trials.system(label_smoothing=0.1)},
        {"seed": 1},
        {"sigma": 0.2},
        {"scale": Scale(train_images=20)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_training_in_the_same_folder_is_refused(trial, change):
    trials.answer(one := trial())
    before = {path: path.read_bytes() for path in one.folder.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match="other data, recipe, seed"):
        trials.answer(trial(**change))
    assert {path: path.read_bytes() for path in one.folder.rglob("*") if path.is_file()} == before


ENSEMBLE = tiny_trials.system("resnet18_x3")


def test_the_members_of_an_ensemble_are_trained_apart(trial, monkeypatch):
    seeds, fit = [], training.fit
    monkeypatch.setattr(
        training, "fit", lambda model, task, folder: seeds.append(task.seed) or fit(model, task, folder)
    )
    fresh = [member.conv1.weight.detach().clone() for member in trial(system=ENSEMBLE, seed=4).fresh().members]
    learned = [member.conv1.weight for member in trials.learn(trial(system=ENSEMBLE, seed=4)).model.members]
    assert seeds == [4, 5, 6]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations([*fresh, *learned], 2))
    histories = [pd.read_csv(path) for path in sorted(trial().folder.glob("member_?/history.csv"))]
    together = pd.read_csv(trial().folder / "history.csv")
    assert len(histories) == 3 and not histories[0]["train_loss"].equals(histories[1]["train_loss"])
    assert together["val_loss"].tolist() == pytest.approx(np.mean([one["val_loss"] for one in histories], axis=0))
    assert together["seconds"].tolist() == pytest.approx(np.sum([one["seconds"] for one in histories], axis=0))
    assert together["epoch"].tolist() == [1, 2]


def test_an_ensemble_is_read_again_as_it_was_trained(trial, training_forbidden):
    one = trial(system=ENSEMBLE)
    weights = trials.learn(one).model.state_dict()
    training_forbidden()
    again, loaded = trials.learn(one).model.state_dict(), runs.load_model(one.folder).model.state_dict()
    assert all(torch.equal(weights[key], again[key]) and torch.equal(weights[key], loaded[key]) for key in weights)
    trials.answer(one, keep=False)
    assert not list(one.folder.rglob("*.safetensors")) and (one.folder / "history.csv").exists()


def test_learning_never_opens_a_test_film(trial, monkeypatch):
    whole = ImageSet.subset

    def closed(self: ImageSet, split: str) -> ImageSet:
        assert split != "test", "a test film was opened"
        return whole(self, split)

    monkeypatch.setattr(ImageSet, "subset", closed)
    trials.learn(one := trial())
    with pytest.raises(AssertionError, match="was opened"):
        trials.answer(one)


def test_what_is_learned_does_not_depend_on_test_films(trial, films):
    rows = films.table["split"] == "test"
    pixels = films.images.copy()
    pixels[rows.to_numpy()] = 0
    one, other = trials.learn(trial("a")), trials.learn(trial("b", images=replace(films, images=pixels)))
    assert tiny.same_weights(one.model.state_dict(), other.model.state_dict())
    assert one.card["decision"] == other.card["decision"]


def test_the_task_carries_noise_smoothing_and_as_many_films_as_the_scale_allows(trial, films):
    scale = Scale(train_images=10, val_images=5, test_images=5)
    one = trial(system=tiny_trials.system(label_smoothing=0.2), scale=scale, sigma=0.3, noise_kind="blur", seed=3)
    task = one.task()
    assert (len(task.train), len(task.val), len(one.films("test"))) == (10, 5, 5)
    assert task.step == steps.ClassificationStep(None, 0.2)
    assert (task.corruption.kind, task.corruption.strength, task.seed) == ("blur", 0.3, 3)
    assert set(task.train.keys) <= set(films.subset("train").table["path"])
    assert set(task.val.keys) <= set(films.subset("val").table["path"])


# ---- the operating point --------------------------------------------------------------------------------------------


def card_with(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    name = "chest_xray_kermany"
    changed = replace(CARDS[name], **changes)
    monkeypatch.setattr(trials, "CARDS", {**CARDS, name: changed})


def test_the_cut_still_finds_19_of_20_findings(trial, monkeypatch):
    monkeypatch.setattr(calibration, "fit_temperature", lambda logits, y: 2.0)
    scores = np.linspace(-3, 4, 20)  # of the findings; the second lowest is the cut
    logits = np.stack([np.zeros(25), np.r_[scores, np.full(5, -9.0)]], axis=1)
    shuffled = np.random.default_rng(0).permutation(25)
    labels = np.r_[np.ones(20, int), np.zeros(5, int)]
    cut = trials.operating_point(trial(), logits[shuffled], labels[shuffled])["cut"]
    assert cut == pytest.approx(1 / (1 + np.exp(-scores[1] / 2)))


@pytest.mark.parametrize("sensitivity", [0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 7, 10, 20, 40])
def test_no_higher_cut_finds_the_share_that_the_card_asks_for(trial, monkeypatch, sensitivity, n):
    card_with(monkeypatch, sensitivity=sensitivity)
    rng = np.random.default_rng(n)
    logits, labels = rng.normal(size=(n + 9, 2)), np.r_[np.ones(n, int), np.zeros(9, int)]
    cut = trials.operating_point(trial(), logits, labels)["cut"]
    findings = calibration.softmax(logits, calibration.fit_temperature(logits, labels))[:n, 1]
    allowed = [value for value in findings if (findings >= value).mean() >= sensitivity - 1e-12]
    assert cut == max(allowed)


def test_equal_probabilities_stand_on_one_side_of_the_cut(trial, monkeypatch):
    card_with(monkeypatch, sensitivity=0.5)
    logits = np.zeros((8, 2))
    logits[:3, 1], logits[6:, 1] = 1, -5  # three sure films, three equal ones, two that are no findings
    cut = trials.operating_point(trial(), logits, np.r_[np.ones(6, int), 0, 0])["cut"]
    assert cut > 0.5, "three of six are found already"
    card_with(monkeypatch, sensitivity=0.6)
    assert trials.operating_point(trial(), logits, np.r_[np.ones(6, int), 0, 0])["cut"] == pytest.approx(0.5)


def test_the_finding_may_be_the_first_class(trial, monkeypatch):
    card_with(monkeypatch, positive="NORMAL", sensitivity=0.5)
    logits = np.array([[3.0, 0], [2, 0], [1, 0], [0, 0], [0, 9], [0, 9]])
    cut = trials.operating_point(trial(), logits, np.array([0, 0, 0, 0, 1, 1]))["cut"]
    scaled = calibration.softmax(logits, calibration.fit_temperature(logits, [0, 0, 0, 0, 1, 1]))
    assert cut == scaled[1, 0], "two of the four findings"


def test_nothing_is_cut_where_the_card_does_not_ask_for_it(trial, films, monkeypatch):
    logits, labels = np.random.default_rng(0).normal(size=(9, 2)), np.arange(9) % 2
    assert trials.operating_point(trial(), logits, labels)["cut"] is not None
    assert trials.operating_point(trial(dataset="my_films"), logits, labels) == {"cut": None}
    assert trials.operating_point(trial(dataset="covid_ct"), logits, labels) == {"cut": None}
    others = replace(films, classes=("YES", "NO"))
    assert trials.operating_point(trial(images=others), logits, labels) == {"cut": None}


def test_nothing_is_cut_where_validation_has_no_finding(trial):
    logits = np.random.default_rng(0).normal(size=(9, 2))
    assert trials.operating_point(trial(), logits, np.zeros(9, int)) == {"cut": None}


@pytest.mark.parametrize(
    ("dataset", "classes", "expected"),
    [
        ("chest_xray_kermany", ("NORMAL", "PNEUMONIA"), "PNEUMONIA"),
        ("covid_ct", ("COVID", "NonCOVID"), "COVID"),
        ("brain_mri", ("NORMAL", "TUMOR"), "TUMOR"),
        ("covid_ct", ("a", "b"), "b"),
        ("my_films", ("a", "b"), "b"),
        ("chest_xray_covid", ("COVID19", "NORMAL", "PNEUMONIA"), None),
        ("chest_xray_kermany", ("BACTERIA", "NORMAL", "VIRUS"), None),
    ],
)
def test_the_finding_is_the_class_of_the_card_or_the_last(dataset, classes, expected):
    assert trials.positive(dataset, classes) == expected


def test_two_classes_part_at_the_cut_and_three_at_the_most_probable():
    prob = np.array([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.7, 0.3]])
    card = {"classes": ["NORMAL", "PNEUMONIA"], "positive": "PNEUMONIA", "decision": {"cut": 0.4}}
    assert answers.decided(prob, card).tolist() == [0, 1, 1, 0], "the film at the cut is a finding"
    first = {"classes": ["COVID", "NonCOVID"], "positive": "COVID", "decision": {"cut": 0.65}}
    assert answers.decided(prob, first).tolist() == [0, 1, 1, 0]
    assert answers.decided(prob, card | {"decision": {"cut": None}}).tolist() == [0, 0, 1, 0]
    three = {"classes": ["A", "B", "C"], "positive": None, "decision": {"cut": None}}
    assert answers.decided(np.array([[0.2, 0.3, 0.5], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1]]), three).tolist() == [2, 0, 1]


# ---- answering ------------------------------------------------------------------------------------------------------


def test_the_answers_are_those_of_the_network_at_its_temperature_and_cut(trial, films):
    done = trials.answer(one := trial())
    saved, test = runs.load_model(one.folder), films.subset("test")
    with torch.no_grad():
        logits = saved.model(torch.from_numpy(test.images.copy())[:, None].float() / 255).numpy()
    decision = saved.card["decision"]
    prob = calibration.softmax(logits, decision["temperature"])
    assert done.predictions["path"].tolist() == test.table["path"].tolist()
    assert np.allclose(done.y_prob, prob, atol=1e-5)
    assert (done.y_true == test.labels).all()
    clear = np.abs(prob[:, 1] - decision["cut"]) > 1e-4
    assert (done.y_pred == (prob[:, 1] >= decision["cut"]))[clear].all()
    assert set(done.predictions[["split", "protocol", "system"]].to_numpy().ravel()) == {"test", "clean", "cnn3"}


@pytest.mark.slow
def test_a_short_training_tells_the_classes_apart(trial):
    done = trials.answer(trial(system=tiny_trials.system(epochs=12)))
    assert (done.y_prob.argmax(axis=1) == done.y_true).mean() > 0.8


def test_noise_and_denoiser_stand_in_front_of_the_network(trial, films):
    denoiser = tiny.network("unet_denoiser")
    one = trial(denoiser=denoiser, sigma=0.3, seed=2)
    done = trials.answer(one)
    view, saved = evaluation.View("gaussian", 0.3, 2), runs.load_model(one.folder)
    logits = evaluation.classify(saved.model, pipeline.films(films, "test"), view, denoiser=denoiser)
    assert np.allclose(done.y_prob, calibration.softmax(logits, saved.card["decision"]["temperature"]), atol=1e-6)
    bare = trials.answer(trial("bare", sigma=0.3, seed=2))
    assert not np.allclose(bare.y_prob, done.y_prob, atol=1e-6)


def test_what_was_answered_is_read_and_nothing_is_done_again(trial, monkeypatch):
    first = trials.answer(one := trial())
    for name in ("learn", "test"):
        monkeypatch.setattr(trials, name, lambda *_, **__: pytest.fail("it is done again"))
    again = trials.answer(one)
    assert again.card == first.card
    pd.testing.assert_frame_equal(again.predictions, first.predictions)
    pd.testing.assert_frame_equal(answers.read(one.folder).predictions, first.predictions)


def test_what_was_only_learned_is_not_learned_again_to_be_answered(trial, training_forbidden):
    trials.learn(one := trial())
    weights = runs.sha256(one.folder / "model.safetensors")
    training_forbidden()
    assert trials.answer(one).card["sha256"] == weights


def test_weights_may_be_forgotten_and_the_answers_stay(trial, training_forbidden):
    done = trials.answer(one := trial(), keep=False)
    assert {path.name for path in one.folder.iterdir()} == {"model.json", "history.csv", answers.PREDICTIONS}
    assert len(done.history) == 2 and len(done.predictions) == 24
    training_forbidden()
    again = trials.answer(one, keep=False)
    pd.testing.assert_frame_equal(again.predictions, done.predictions)
    with pytest.raises(DataError, match="not a model folder"):
        runs.load_model(one.folder)


def test_answers_of_a_forgotten_network_do_not_pass_for_those_of_the_next(trial):
    trials.answer(trial(), keep=False)
    other = trial(system=tiny_trials.system(lr=1e-4))
    trials.learn(other)  # and stopped before it was tested
    with pytest.raises(DataError, match="no finished trial"):
        answers.read(other.folder)
    elsewhere = trials.answer(replace(other, folder=other.folder.with_name("elsewhere")))
    pd.testing.assert_frame_equal(trials.answer(other).predictions, elsewhere.predictions)


def test_answers_belong_to_what_decides_them_and_not_to_names(trial, films):
    trials.answer(one := trial(), keep=False)
    stored = card_of(one)["trial"]
    told = replace(one.system, title="another title", corrected="told in other words", reported={})
    for same in (replace(one, system=told), replace(one, folder=one.folder / "moved", protocol="x", preset="y")):
        assert trials._identity(same) == stored
    table = films.table.assign(split=films.table["split"].replace({"val": "train", "test": "val"}))
    changes = [{"seed": 1}, {"sigma": 0.1}, {"share": 0.5}, {"weights": "imagenet"}]
    changes += [{"denoiser": tiny.network("unet_denoiser")}]
    changes += [
        {"scale": Scale(val_images=3, test_images=3)},
        {"precision": "bf16"},
        {"images": replace(films, table=table)},
    ]
    changes += [{"system": tiny_trials.system(epochs=3)}, {"system": tiny_trials.system("cnn5")}, {"dataset": "mine"}]
    identities = {trials._identity(replace(one, **change)) for change in changes}
    assert len(identities | {stored}) == len(changes) + 1


def test_test_films_reach_a_network_in_several_ways(trial, films):
    as_they_are = pipeline.Protocol("clean", "test as it is", "test", 0.0)
    done = trials.answer(one := trial(sigma=0.3, share=0.5, protocol="noisy", more_protocols=(as_they_are,)))
    stored = answers.read_predictions(one.folder / answers.PREDICTIONS)
    n = len(pipeline.films(films, "test"))
    assert stored.groupby("protocol", sort=False).size().to_dict() == {"noisy": n, "clean": n}
    assert len(done.predictions) == n and set(done.predictions["protocol"]) == {"noisy"}, "its table shows the first"
    assert done.card["noise"]["share"] == one.task().corruption.share == 0.5
    logits = evaluation.classify(runs.load_model(one.folder).model, pipeline.films(films, "test"), evaluation.View())
    expected = calibration.softmax(logits, done.card["decision"]["temperature"])
    said = stored.loc[stored["protocol"] == "clean", [f"p_{name}" for name in done.classes]]
    np.testing.assert_allclose(said, expected, atol=1e-6)
    assert np.abs(done.y_prob - expected).max() > 1e-4, "noise changes what is said"


def test_a_folder_without_a_finished_trial_is_refused(trial, tmp_path):
    with pytest.raises(DataError, match=f"needs model.json and {answers.PREDICTIONS}"):
        answers.read(tmp_path / "nothing")
    trials.learn(one := trial())
    with pytest.raises(DataError, match="no finished trial"):
        answers.read(one.folder)
    assert answers.read_card(tmp_path / "nothing") == {}


def test_a_network_for_other_classes_is_refused_with_both_lists(trial):
    trials.learn(one := trial())
    with pytest.raises(DataError, match=r"\['NORMAL', 'PNEUMONIA'\].*\['COVID', 'NonCOVID'\]"):
        runs.load_model(one.folder, classes=tiny_trials.CT)


def test_a_finished_trial_speaks_in_class_indices():
    done = tiny_trials.finished([0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], tiny_trials.CT, positive="COVID")
    assert done.classes == ("COVID", "NonCOVID") and done.positive == 0
    assert done.y_true.tolist() == [0, 1, 1] and done.y_pred.tolist() == [0, 0, 1]
    assert done.y_prob.tolist() == [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]
    assert tiny_trials.finished([0], [[0.2, 0.3, 0.5]], ("A", "B", "C")).positive is None
    assert tiny_trials.finished([0], [[0.2, 0.8]], tiny_trials.KERMANY).positive == 1


@pytest.mark.parametrize("classes", [("0", "1"), ("None", "yes"), ("A", "B", "NA")], ids=" ".join)
def test_any_folder_name_may_be_a_class(trial, cache_dir, tmp_path, classes):
    root = tiny_trials.draw(tmp_path / "named", classes, {"train": 9, "test": 4})
    images = opened(root, cache_dir)
    done = trials.answer(trial(images=images, system=tiny_trials.system(epochs=1)))
    assert set(done.classes) == set(classes)
    assert (done.y_true == images.subset("test").labels).all() and done.y_pred.min() >= 0
