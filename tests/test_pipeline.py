"""The stages of a run: data opened once, models stored so that they come back the same, protocols and predictions."""

import dataclasses
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pneumo_lib import answers, calibration, config, evaluation, models, pipeline, runs, systems
from pneumo_lib.data import CLASSES, phantom
from pneumo_lib.errors import DataError, TrainingError, UsageError

PROBABILITIES = [f"p_{name}" for name in CLASSES]


@pytest.fixture(scope="module")
def predictions(tiny_run, tiny_images) -> pd.DataFrame:
    """Both systems under every protocol."""
    protocols = pipeline.protocols(tiny_run.config, tiny_images)
    return pd.concat(
        [pipeline.predict(tiny_run, tiny_images, name, p) for name in pipeline.DENOISERS for p in protocols],
        ignore_index=True,
    )


@pytest.fixture
def run(tiny_run, tmp_path) -> runs.Run:
    """A copy of the finished run, to be changed."""
    return runs.Run(shutil.copytree(tiny_run.path, tmp_path / "copy"), tiny_run.config)


# ---- data -----------------------------------------------------------------------------------------------------------


def test_phantoms_are_drawn_once_and_decoded_once(cache_dir, monkeypatch):
    tiny = config.make("tiny")
    first = pipeline.open_data(tiny, cache_dir)
    monkeypatch.setattr(phantom, "draw", None)
    monkeypatch.setattr("pneumo_lib.data.cache._decode", None)
    again = pipeline.open_data(tiny, cache_dir)
    assert np.array_equal(first.images, again.images) and first.identity == again.identity
    assert first.images.shape[1:] == (64, 64)
    assert set(first.table["split"]) == {"train", "val", "test", "noisy_test"}
    assert len(first) == sum(sum(row.values()) for row in phantom.scaled_counts(tiny.phantoms).values())


def test_other_phantoms_have_another_folder(cache_dir):
    drawn = [{}, {"seed": 1}, {"phantoms": 0.03}, {"image_size": 160}]
    sets = [pipeline.open_data(config.make("tiny", **{"phantoms": 0.02, **options}), cache_dir) for options in drawn]
    assert len({images.root for images in sets}) == len(drawn), "sets in turn would be drawn again and again"
    assert len({images.identity for images in sets}) == len(drawn)
    assert sets[0].images.shape[1:] == (64, 64) and sets[3].images.shape[1:] == (160, 160)


def test_scaled_counts_keep_the_proportions_and_never_empty_a_class():
    assert phantom.scaled_counts(1.0) == phantom.DEFAULT_COUNTS
    half = phantom.scaled_counts(0.5)
    assert half["train"] == {"COVID19": 45, "NORMAL": 105, "PNEUMONIA": 210}
    smallest = phantom.scaled_counts(1e-6)
    assert smallest.keys() == phantom.DEFAULT_COUNTS.keys()
    assert {n for row in smallest.values() for n in row.values()} == {4}


def test_the_smallest_set_of_phantoms_can_still_be_split(cache_dir):
    images = pipeline.open_data(config.make("tiny", phantoms=1e-6), cache_dir)
    assert (images.describe()[list(CLASSES)].to_numpy() >= 1).all() and len(images) == 36
    groups = {split: set(images.subset(split).table["group"]) for split in ("train", "val")}
    assert not groups["train"] & groups["val"]


def test_a_preset_of_real_films_draws_no_phantoms(cache_dir):
    with pytest.raises(UsageError, match="'quick' needs data_dir"):
        config.make("quick")
    missing = config.make("quick", data_dir=str(cache_dir / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        pipeline.open_data(missing, cache_dir)


def test_films_of_a_split(tiny_images):
    films = pipeline.films(tiny_images, "test")
    rows = tiny_images.table.index[tiny_images.table["split"] == "test"]
    assert len(films) == len(rows) == 24
    assert films.keys == tiny_images.table["path"][rows].tolist(), "paths are the keys: noise hangs on the file"
    assert np.array_equal(films.images, tiny_images.images[rows])
    assert films.labels.tolist() == tiny_images.labels[rows].tolist()
    with pytest.raises(DataError, match="no split 'tset'"):
        pipeline.films(tiny_images, "tset")


def test_films_at_gives_films_in_the_order_asked_for(tiny_images):
    paths = tiny_images.table["path"].sample(7, random_state=0)
    films = pipeline.films_at(tiny_images, paths)
    assert films.keys == paths.tolist()
    assert np.array_equal(films.images, tiny_images.images[paths.index])
    assert films.labels.tolist() == tiny_images.labels[paths.index].tolist()
    assert len(pipeline.films_at(tiny_images, paths.head(0))) == 0


def test_films_at_never_takes_another_film_for_an_unknown_path(tiny_images):
    with pytest.raises(KeyError, match=r"gone\.png"):
        pipeline.films_at(tiny_images, pd.Series(["gone.png"]))


# ---- training -------------------------------------------------------------------------------------------------------


def test_denoiser_cards_tell_how_they_were_made(tiny_run):
    cards = {name: tiny_run.load_model("denoiser", name).card for name in pipeline.DENOISERS}
    for name, card in cards.items():
        history = pd.read_csv(tiny_run.model_folder("denoiser", name) / "history.csv")
        best = history.iloc[card["best_epoch"] - 1]
        assert (card["architecture"], card["trained_on"], card["epochs"]) == (name, "spots", 6)
        assert best["val_loss"] == history["val_loss"].min()
        assert card["metrics"] == pytest.approx({"val_loss": best["val_loss"], "val_score": best["val_score"]})
        assert card["parameters"] == models.count_parameters(models.build(name))
    assert cards["autoencoder"]["noise"] == {"kind": "gaussian", "strength": 0.1, "share": 0.0}
    assert cards["unet_denoiser"]["noise"]["share"] == tiny_run.config.noise_share > 0


@pytest.mark.parametrize("denoiser", pipeline.DENOISERS)
def test_classifier_cards_hold_all_that_a_diagnosis_needs(tiny_run, denoiser):
    card = tiny_run.load_model("classifier", pipeline.classifier_name(denoiser)).card
    behind = tiny_run.load_model("denoiser", denoiser).card
    assert (card["architecture"], card["arguments"]) == ("cnn2", {"image_size": 32, "n_classes": 3})
    assert card["classes"] == list(CLASSES)
    assert card["preprocessing"] == {
        "image_size": 32,
        "denoiser": denoiser,
        "denoiser_sha256": runs.sha256(tiny_run.model_folder("denoiser", denoiser) / "model.safetensors"),
    }
    assert card["noise"] == behind["noise"], "a classifier trains on what its denoiser was trained for"
    assert 0 <= card["decision"]["threshold"] < 1 and card["decision"]["temperature"] > 0
    assert 0 < card["decision"]["val_coverage"] <= 1


@pytest.mark.parametrize("denoiser", pipeline.DENOISERS)
def test_a_loaded_classifier_scores_exactly_what_training_reported(tiny_run, tiny_images, denoiser):
    saved = tiny_run.load_model("classifier", pipeline.classifier_name(denoiser))
    answers = pipeline.validate(tiny_run, tiny_images, denoiser)
    right = answers.predicted == pipeline.films(tiny_images, "val").labels
    assert right.mean() == pytest.approx(saved.card["metrics"]["val_score"], abs=1e-7)
    assert answers.decision == saved.card["decision"]
    if denoiser == "unet_denoiser":
        assert right.mean() > 0.6, "something was learned, so equality means something"


def test_train_save_load_gives_the_same_answers_bit_for_bit(tiny_run, tiny_images):
    stored = pd.read_csv(tiny_run.model_folder("classifier", "cnn2_on_unet_denoiser") / "history.csv")
    again = pipeline.train_classifier(tiny_run, tiny_images, "unet_denoiser")  # finished before: only loaded
    loaded = runs.load_run(tiny_run.path).load_model("classifier", "cnn2_on_unet_denoiser").model
    assert again.history.drop(columns="seconds").to_numpy() == pytest.approx(stored.drop(columns="seconds").to_numpy())
    films, view = pipeline.films(tiny_images, "val"), pipeline.view(tiny_run.config)
    denoiser = tiny_run.load_model("denoiser", "unet_denoiser").model
    logits = [evaluation.classify(model, films, view, denoiser=denoiser) for model in (again.model, loaded)]
    assert np.array_equal(*logits)


def test_validate_gives_calibrated_and_uncalibrated_probabilities(tiny_run, tiny_images):
    answers = pipeline.validate(tiny_run, tiny_images, "unet_denoiser")
    assert answers.probabilities.sum(axis=1) == pytest.approx(1) and answers.uncalibrated.sum(axis=1) == pytest.approx(
        1
    )
    assert answers.decision["temperature"] != 1.0
    expected = calibration.softmax(np.log(answers.uncalibrated), answers.decision["temperature"])
    assert answers.probabilities == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(answers.predicted, answers.probabilities.argmax(axis=1)), "a temperature changes no answer"


def test_a_classifier_needs_its_denoiser_first(tiny_run, tiny_images, tmp_path):
    run = runs.open_run(tmp_path / "empty", tiny_run.config)
    with pytest.raises(DataError, match=r"notebook 02_denoiser_training: run that one first"):
        pipeline.train_classifier(run, tiny_images, "autoencoder")
    with pytest.raises(DataError, match=r"notebook 03_classifier_training"):
        pipeline.validate(run, tiny_images, "autoencoder")


def test_another_denoiser_makes_another_training(run, tiny_images):
    folder = run.model_folder("denoiser", "autoencoder")
    torch.manual_seed(5)
    runs.save_model(folder, models.build("autoencoder"), runs.load_model(folder).card)
    with pytest.raises(TrainingError, match="other data, recipe, seed or starting weights"):
        pipeline.train_classifier(run, tiny_images, "autoencoder")


def test_a_network_in_the_wrong_folder_is_refused_by_name(run):
    folder = run.model_folder("classifier", "cnn2_on_unet_denoiser")
    shutil.rmtree(folder)
    shutil.copytree(run.model_folder("denoiser", "unet_denoiser"), folder)
    with pytest.raises(DataError, match="'unet_denoiser'; 'cnn2' was expected"):
        run.load_model("classifier", "cnn2_on_unet_denoiser")


# ---- decision -------------------------------------------------------------------------------------------------------


def _logits(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident answers: right where the margin is large, a coin flip where it is small."""
    rng = np.random.default_rng(seed)
    labels, margin = rng.integers(0, 3, n), rng.uniform(0, 8, n)
    given = np.where(rng.random(n) < 1 / (1 + np.exp(-margin / 2)), labels, (labels + 1) % 3)
    return margin[:, None] * np.eye(3)[given], labels


def test_decide_reaches_the_target_and_leaves_out_no_more_than_needed():
    logits, labels = _logits()
    decision = pipeline.decide(logits, labels, 0.95)
    assert decision["target_reached"] and decision["temperature"] > 1.2, "overconfident logits are cooled"
    probabilities = calibration.softmax(logits, decision["temperature"])
    decided = probabilities.max(axis=1) >= decision["threshold"]
    right = probabilities.argmax(axis=1) == labels
    assert right.mean() < 0.95 <= right[decided].mean() == pytest.approx(decision["val_accuracy"])
    assert decided.mean() == pytest.approx(decision["val_coverage"]) and 0.3 < decided.mean() < 1


def test_decide_makes_cutoffs_of_sets_at_the_temperature_it_chose():
    logits, labels = _logits()
    decision = pipeline.decide(logits, labels, 0.95)
    probabilities = calibration.softmax(logits, decision["temperature"])
    assert list(decision["conformal"]) == ["0.9", "0.95"]
    for wanted, cutoffs in decision["conformal"].items():
        expected = calibration.conformal_cutoffs(labels, probabilities, coverage=float(wanted))
        assert cutoffs == expected.tolist() and len(cutoffs) == 3
        assert calibration.conformal_result(labels, probabilities, cutoffs).coverage.value >= float(wanted)


def test_a_lower_target_decides_more_and_an_easy_one_decides_all():
    logits, labels = _logits()
    coverage = [pipeline.decide(logits, labels, target)["val_coverage"] for target in (0.97, 0.93, 0.5)]
    assert coverage == sorted(coverage) and coverage[0] < coverage[1] < coverage[2] == 1
    assert pipeline.decide(logits, labels, 0.5)["threshold"] == 0


def test_decide_says_when_no_threshold_reaches_the_target():
    rng = np.random.default_rng(1)
    decision = pipeline.decide(rng.normal(size=(200, 3)), rng.integers(0, 3, 200), 0.999)
    assert decision["target_reached"] is False and decision["val_accuracy"] < 0.999


# ---- protocols and predictions --------------------------------------------------------------------------------------


def test_protocols_are_the_sources_two_and_the_clean_one(tiny_run, tiny_images):
    found = {p.name: (p.split, p.strength) for p in pipeline.protocols(tiny_run.config, tiny_images)}
    assert found == {"test_noise": ("test", 0.1), "noisy_test": ("noisy_test", 0.0), "clean": ("test", 0.0)}
    assert set(systems.SYSTEMS["cnn2"].reported) < set(found), "what the source reported has a protocol of that name"


def test_a_set_without_noisy_test_has_two_protocols(tiny_run, tiny_images):
    fewer = replace(tiny_images, table=tiny_images.table.replace({"split": {"noisy_test": "other"}}))
    assert [p.name for p in pipeline.protocols(tiny_run.config, fewer)] == ["test_noise", "clean"]


def test_a_set_without_test_films_is_an_error(tiny_run, tiny_images):
    none = replace(tiny_images, table=tiny_images.table.replace({"split": {"test": "other"}}))
    with pytest.raises(DataError, match="no test films; found are noisy_test, other, train, val"):
        pipeline.protocols(tiny_run.config, none)


def test_predictions_have_one_row_per_film_and_protocol(predictions, tiny_images):
    assert list(predictions) == ["path", "split", "protocol", "system", "label", "predicted", *PROBABILITIES]
    assert predictions.groupby(["system", "protocol"]).size().tolist() == [24, 9, 24] * 2
    assert not predictions.duplicated(["system", "protocol", "path"]).any()
    prob = predictions[PROBABILITIES].to_numpy()
    assert prob.sum(axis=1) == pytest.approx(1) and prob.min() >= 0
    assert [CLASSES[k] for k in prob.argmax(axis=1)] == predictions["predicted"].tolist()
    truth = tiny_images.table.set_index("path")["label"].map(dict(enumerate(CLASSES)))
    assert predictions["label"].tolist() == truth[predictions["path"]].tolist()
    ours = predictions[predictions["system"] == "cnn2_on_unet_denoiser"]
    assert ours["predicted"].nunique() == 3, "a network that gives one answer would make these tests blind"


def test_predictions_are_the_same_every_time(predictions, tiny_run, tiny_images):
    protocol = pipeline.protocols(tiny_run.config, tiny_images)[0]
    again = pipeline.predict(runs.load_run(tiny_run.path), tiny_images, "unet_denoiser", protocol)
    mask = (predictions["system"] == "cnn2_on_unet_denoiser") & (predictions["protocol"] == "test_noise")
    pd.testing.assert_frame_equal(again, predictions[mask].reset_index(drop=True), check_exact=True)


def test_noise_is_added_where_the_protocol_says_so(predictions):
    wide = predictions.pivot(index=["system", "path"], columns="protocol", values="p_NORMAL")
    tested = wide.dropna(subset=["clean"])
    assert (tested["clean"] != tested["test_noise"]).all()
    assert wide["noisy_test"].notna().sum() == 18


def test_predictions_survive_their_csv(predictions, tmp_path, tiny_config):
    path = runs.Run(tmp_path, tiny_config).write_table("predictions", predictions)
    pd.testing.assert_frame_equal(pd.read_csv(path), predictions)


def test_arrays_give_back_the_stored_probabilities_and_take_a_temperature(predictions):
    y_true, y_prob = answers.arrays(predictions, CLASSES)
    assert y_prob == pytest.approx(predictions[PROBABILITIES].to_numpy(), abs=1e-12)
    assert [CLASSES[k] for k in y_true] == predictions["label"].tolist()
    hot = answers.arrays(predictions, CLASSES, 3.0)[1]
    assert hot.sum(axis=1) == pytest.approx(1) and (hot.max(axis=1) < y_prob.max(axis=1)).all()
    assert np.array_equal(hot.argmax(axis=1), y_prob.argmax(axis=1))


def test_arrays_take_a_certain_answer():
    sure = pd.DataFrame({"label": ["NORMAL"], "p_COVID19": [0.0], "p_NORMAL": [1.0], "p_PNEUMONIA": [0.0]})
    y_prob = answers.arrays(sure, CLASSES, 0.5)[1]
    assert np.isfinite(y_prob).all() and y_prob[0] == pytest.approx([0, 1, 0])


def test_reported_figures_stand_only_beside_the_sources_own_system(predictions):
    table = pipeline.compare(predictions, systems.SYSTEMS["cnn2"]).set_index(["system", "protocol"])
    own = table.loc["cnn2_on_autoencoder", "reported"]
    assert own["test_noise"] == 0.9457 and own["noisy_test"] == 0.9697 and np.isnan(own["clean"])
    assert table.loc["cnn2_on_unet_denoiser", "reported"].isna().all()
    for (system, protocol), row in table.iterrows():
        part = predictions[(predictions["system"] == system) & (predictions["protocol"] == protocol)]
        assert row["value"] == (part["label"] == part["predicted"]).mean() and row["n"] == len(part)
        assert row["low"] <= row["value"] <= row["high"]


def test_phantoms_are_never_compared_with_the_source(predictions):
    table = pipeline.compare(predictions, None)
    assert table["reported"].isna().all() and len(table) == 6 and table["reported"].dtype == float


def test_films_with_a_copy_in_train_or_val_can_be_left_out():
    films = pd.DataFrame({"path": ["test/a", "test/b", "test/c", "noisy_test/d", "test/e"]})
    pairs = pd.DataFrame(
        [
            ("test/a", "test", "train/x", "train"),
            ("val/y", "val", "test/b", "test"),
            ("noisy_test/d", "noisy_test", "test/c", "test"),  # both held out: no leak
            ("train/x", "train", "val/y", "val"),
        ],
        columns=["path_a", "split_a", "path_b", "split_b"],
    )
    assert pipeline.without(films, pipeline.copies(pairs))["path"].tolist() == ["test/c", "noisy_test/d", "test/e"]
    assert len(pipeline.without(films, pipeline.copies(pairs.head(0)))) == len(films)


def test_cases_are_the_surest_right_and_wrong_of_each_class():
    rows = [
        ("1", "NORMAL", "NORMAL", 0.9),
        ("2", "NORMAL", "NORMAL", 0.7),
        ("3", "NORMAL", "NORMAL", 0.8),
        ("4", "NORMAL", "COVID19", 0.6),
        ("5", "PNEUMONIA", "NORMAL", 0.5),
        ("6", "PNEUMONIA", "NORMAL", 0.55),
    ]
    table = pd.DataFrame([{"path": p, "label": t, "predicted": g, f"p_{g}": s} for p, t, g, s in rows]).fillna(0.1)
    found = pipeline.cases(table, 2, classes=CLASSES)
    assert found["path"].tolist() == ["1", "3", "4", "6", "5"]
    assert found["right"].tolist() == [True, True, False, False, False]
    assert found["sure"].tolist() == [0.9, 0.8, 0.6, 0.55, 0.5]
    assert len(pipeline.cases(table.head(0), 2, classes=CLASSES)) == 0


def test_a_protocol_is_frozen(tiny_run, tiny_images):
    with pytest.raises(dataclasses.FrozenInstanceError):
        pipeline.protocols(tiny_run.config, tiny_images)[0].strength = 1.0
