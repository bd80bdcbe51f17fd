"""Which networks are trained side by side, on which films, and that the same films are opened again for their test."""

from collections import Counter
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
    comparison,
    config,
    controls,
    evaluation,
    models,
    pipeline,
    runs,
    standings,
    training,
    trials,
)
from pneumo_lib.data import ImageSet
from pneumo_lib.errors import DataError, UsageError
from pneumo_lib.recipe import Comparison, Scale
from pneumo_lib.systems import SYSTEMS
from pneumo_lib.trials import Fold

SMALL = Scale(image_size=32, epochs=1, train_images=16, val_images=12, test_images=12)
COPIES = 4


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """Two data sets side by side, and one without splits that holds copies of its own films."""
    folder = tmp_path_factory.mktemp("shelf")
    tiny_trials.draw(folder / "chest_xray_kermany", tiny_trials.KERMANY, {"train": 24, "test": 8}, per_patient=2)
    tiny_trials.draw(folder / "covid_ct", tiny_trials.CT, {"train": 16, "val": 6, "test": 7}, seed=1)
    own = tiny_trials.draw(folder / "own", ("NORMAL", "TUMOR"), {"": 18}, seed=2, per_patient=2)
    for path in sorted((own / "NORMAL").glob("*.png"))[:COPIES]:
        (own / "NORMAL" / f"again_{path.name}").write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def run(shelf, tmp_path) -> Callable[..., runs.Run]:
    """Makes a run on one of these sets, its trainings cut down to seconds."""

    def make(name: str = "chest_xray_kermany", **options: object) -> runs.Run:
        planned = Comparison(systems=SMALL, architectures=SMALL, attention=SMALL, controls=SMALL, seeds=(0, 1))
        options = {"precision": "no", "val_fraction": 0.3, "image_size": 32} | options
        made = config.make("tiny", data_dir=str(shelf / name) if name else "", **options)
        return runs.Run(tmp_path / "run", replace(made, comparison=planned))

    return make


def paths(images: ImageSet, split: str) -> list[str]:
    return images.table.loc[images.table["split"] == split, "path"].tolist()


def parameters(trial: trials.Trial) -> int:
    with torch.device("meta"):
        return models.count_parameters(models.build(trial.system.model, **trial.arguments))


# ---- which data -----------------------------------------------------------------------------------------------------


def test_every_control_is_one_network_on_clean_films_in_a_folder_of_its_own(run, cache_dir):
    planned = comparison.control_trials(run(), cache_dir)
    assert [one.protocol for one in planned] == [*controls.VIEWS, "shuffled labels"], "one source: none to keep apart"
    assert len({one.folder for one in planned}) == len({trials._identity(one) for one in planned}) == len(planned)
    for one in planned:
        assert (one.system.model, one.sigma, one.share, one.more_protocols) == ("resnet18_s2d", 0.0, 0.0, ())
        assert one.scale == SMALL and one.system.recipe.epochs == SMALL.epochs and one.system.image_size == 32
    assert [one.images.key for one in planned[:5]] == [""] * 5, "their pixels are no cache's"
    assert comparison.control_trials(run(), cache_dir, by_source=True) == [], "no two sources to tell apart"
    (done,) = comparison.finish(planned[2:3], keep=False)
    assert done.card["protocol"] == "border only" and len(done.predictions) == SMALL.test_images


def test_data_sets_are_found_beside_that_of_the_run(shelf):
    kermany = str(shelf / "chest_xray_kermany")
    assert comparison.find_dataset("covid_ct", kermany) == shelf / "covid_ct"
    assert comparison.find_dataset("chest_xray_kermany", kermany) == shelf / "chest_xray_kermany"
    assert comparison.find_dataset("brain_mri", kermany) is None
    assert comparison.find_dataset("chest_xray_covid", kermany) is None
    assert comparison.find_dataset("chest_xray_covid", str(shelf / "mine")) == shelf / "mine"


def test_what_is_not_there_is_named_but_not_for_phantoms(run):
    assert comparison.missing(run().config) == ["chest_xray_covid", "brain_mri"]
    assert comparison.missing(run("", phantoms=0.1).config) == []


# ---- every system ---------------------------------------------------------------------------------------------------


def test_each_system_meets_every_set_of_its_source_that_is_there(run, cache_dir):
    planned = comparison.system_trials(run(), cache_dir)
    expected = {
        (name, dataset)
        for name, system in SYSTEMS.items()
        for dataset in system.datasets
        if dataset in ("chest_xray_kermany", "covid_ct") and name not in ("cnn2",)
    }
    assert {(one.system.name, one.dataset) for one in planned} == expected
    assert len(planned) == len(expected) and ("aernet", "covid_ct") in expected and ("cnn3", "covid_ct") not in expected
    for one in planned:
        assert one.folder == run().path / "systems" / one.dataset / one.system.name
        assert one.images.images.shape[1:] == (32, 32) and one.system.image_size == 32
        assert one.system.recipe == replace(SYSTEMS[one.system.name].recipe, epochs=1)
        assert (one.sigma, one.denoiser, one.val_fraction, one.preset) == (0.0, None, 0.3, "tiny")
        assert one.images.classes == {"covid_ct": tiny_trials.CT}.get(one.dataset, tiny_trials.KERMANY)


def test_a_system_for_noisy_films_learns_from_noise_and_meets_every_protocol(tiny_run, tiny_images):
    noisy, clean = (replace(SYSTEMS[name], image_size=32) for name in ("resnet18_s2d", "cnn3"))
    one, other = (comparison.plan(system, tiny_images, tiny_run, scale=Scale()) for system in (noisy, clean))
    assert (one.sigma, one.share) == (tiny_run.config.sigma, tiny_run.config.noise_share) == (0.1, 0.5)
    assert (one.dataset, other.dataset) == ("spots + noise 0.1", "spots")
    assert one.folder.parent == other.folder.parent, "the folder is that of the films"
    met = [(p.name, p.split, p.strength) for p in one.protocols]
    assert met == [("test_noise", "test", 0.1), ("noisy_test", "noisy_test", 0.0), ("clean", "test", 0.0)]
    assert (other.sigma, other.share, [p.name for p in other.protocols]) == (0.0, 0.0, ["clean"])


def test_only_gaussian_noise_is_mixed_film_by_film(tiny_run, tiny_images):
    speckled = replace(tiny_run, config=replace(tiny_run.config, noise_kind="speckle"))
    system = replace(SYSTEMS["resnet18_s2d"], image_size=32)
    assert comparison.plan(system, tiny_images, speckled, scale=Scale()).share == 0.0


def test_a_published_validation_split_is_kept(run, cache_dir, shelf):
    images = {one.dataset: one.images for one in comparison.system_trials(run(), cache_dir)}
    assert len(paths(images["covid_ct"], "val")) == 12
    assert all(path.startswith("val/") for path in paths(images["covid_ct"], "val"))
    assert all(path.startswith("train/") for path in paths(images["chest_xray_kermany"], "val"))


@pytest.mark.slow
def test_systems_are_trained_and_tested_where_their_data_are(run, cache_dir, monkeypatch):
    monkeypatch.setitem(SYSTEMS, "cnn5", replace(SYSTEMS["cnn5"], datasets=("covid_ct", "chest_xray_kermany")))
    planned = [one for one in comparison.system_trials(run(), cache_dir) if one.system.name in ("cnn3", "cnn4", "cnn5")]
    done = comparison.finish(planned)
    told = {(one.card["system"], one.card["dataset"]): one for one in done}
    assert set(told) == {(n, "chest_xray_kermany") for n in ("cnn3", "cnn4", "cnn5")} | {("cnn5", "covid_ct")}
    assert told["cnn5", "covid_ct"].positive == 0 and told["cnn3", "chest_xray_kermany"].positive == 1
    for one, trial in zip(done, planned, strict=True):
        assert set(one.predictions["path"]) <= set(paths(trial.images, "test"))
        assert len(one.predictions) == min(12, len(paths(trial.images, "test")))
        assert (one.folder / "model.safetensors").exists()
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("it trains again"))
    assert [one.card for one in comparison.finish(planned)] == [one.card for one in done]


@pytest.mark.slow
def test_phantoms_stand_in_for_every_set(run, cache_dir):
    drawn = run("", phantoms=0.05)
    planned = comparison.system_trials(drawn, cache_dir)
    names = [name for name, system in SYSTEMS.items() if not system.denoiser and name not in comparison.ARCHITECTURES]
    assert sorted(one.system.name for one in planned) == sorted([*names, "aernet"])
    assert {one.dataset for one in planned} == {"phantom", f"phantom + noise {drawn.config.sigma:g}"}
    assert {one.system.name for one in planned if one.sigma} == {name for name in names if SYSTEMS[name].noisy}
    one = next(one for one in planned if one.system.name == "cnn3")
    done = trials.answer(one)
    assert len(done.classes) == 3 and done.positive is None and done.card["decision"]["cut"] is None


# ---- architectures, attention, imbalance ----------------------------------------------------------------------------


@pytest.fixture
def denoised(monkeypatch) -> list[training.Task]:
    """Tasks of the denoiser in front of the architectures, whose training ends at once."""
    tasks, fit = [], training.fit

    def watched(model: torch.nn.Module, task: training.Task, folder: Path) -> training.Fitted:
        tasks.append(task)
        return fit(model, task, folder)

    monkeypatch.setattr(training, "fit", watched)
    return tasks


def test_every_architecture_meets_three_conditions_under_one_recipe(run, cache_dir, denoised):
    made = run(sigma=0.2)
    planned = comparison.architecture_trials(made, cache_dir)
    met = Counter((one.protocol, one.system.model) for one in planned)
    assert {protocol for protocol, _ in met} == {"clean", "noisy", "denoised"}
    assert set(met.values()) == {1} and len(met) == 3 * 11
    assert {one.system.recipe for one in planned} == {SYSTEMS["aernet"].shortened(SMALL).recipe}
    for one in planned:
        assert (one.denoiser is not None) == (one.protocol == "denoised")
        assert one.sigma == (0.0 if one.protocol == "clean" else 0.2)
        assert one.folder == made.path / "architectures" / one.protocol / one.system.name
        assert one.system.image_size == 32 and one.system.denoiser == ""
    assert len({id(one.images) for one in planned}) == len({id(one.denoiser) for one in planned} - {id(None)}) == 1


def test_a_preset_may_leave_conditions_out(run, cache_dir, denoised):
    made = run()
    planned = replace(made.config.comparison, conditions=("denoised",))
    made = replace(made, config=replace(made.config, comparison=planned))
    assert {one.protocol for one in comparison.architecture_trials(made, cache_dir)} == {"denoised"}


def test_the_denoiser_is_trained_on_as_many_films_and_only_once(run, cache_dir, denoised):
    made = run(sigma=0.2)
    first = comparison.architecture_trials(made, cache_dir)[-1].denoiser
    task, folder = denoised[0], made.path / "architectures" / "unet_denoiser"
    assert (len(task.train), len(task.val), task.corruption.strength) == (16, 12, 0.2)
    assert task.train.images.shape[1:] == (32, 32)
    state = {path.name: path.stat().st_mtime_ns for path in folder.glob("state_*")}
    again = comparison.architecture_trials(made, cache_dir)[-1].denoiser
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("state_*")} == state
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_conditions_are_answered_and_their_weights_forgotten(run, cache_dir):
    planned = [one for one in comparison.architecture_trials(run(), cache_dir) if one.system.name == "cnn3"]
    done = comparison.finish(planned, keep=False)
    assert [one.card["protocol"] for one in done] == ["clean", "noisy", "denoised"]
    assert not any((one.folder / "model.safetensors").exists() for one in done)
    prob = [one.y_prob for one in done]
    assert not any(np.allclose(prob[i], prob[j], atol=1e-6) for i, j in ((0, 1), (0, 2), (1, 2)))
    kept = models.build("unet_denoiser")
    assert kept.state_dict().keys() == planned[2].denoiser.state_dict().keys()


def test_attention_has_five_variants_over_the_same_seeds(run, cache_dir):
    planned = comparison.attention_trials(run(), cache_dir)
    assert [(one.protocol, one.seed) for one in planned] == [(v, s) for v in comparison.ATTENTION for s in (0, 1)]
    smoothing = {one.protocol: one.system.recipe.label_smoothing for one in planned}
    assert [smoothing[variant] for variant in comparison.ATTENTION] == [0, 0, 0, 0, 0.1]
    assert len({replace(one.system.recipe, label_smoothing=0) for one in planned}) == 1
    assert len({one.folder for one in planned}) == len(planned)
    assert all(set(one.folder.name) <= set("seed_01") for one in planned)


def test_attention_is_added_a_part_at_a_time(run, cache_dir):
    planned = comparison.attention_trials(run(), cache_dir)[::2]
    plain, channel, spatial, both, smoothed = map(parameters, planned)
    assert (channel - plain) + (spatial - plain) == both - plain and plain < spatial < channel
    assert smoothed == both


def test_imbalance_has_one_trial_for_each_answer(run, cache_dir):
    planned = comparison.imbalance_trials(run(), cache_dir)
    assert [one.system.recipe.imbalance for one in planned] == ["none", "weighted", "balanced"]
    assert [one.protocol for one in planned] == ["none", "weighted", "balanced"]
    assert len({replace(one.system.recipe, imbalance="none") for one in planned}) == 1
    assert {one.system.model for one in planned} == {"cnn5"} and len({one.folder for one in planned}) == 3


# ---- one system on one folder, and folds ----------------------------------------------------------------------------


def test_a_system_alone_is_trained_on_the_films_of_the_run(run, cache_dir, shelf):
    made = run("own", seed=2)
    (one,) = comparison.own_trials(SYSTEMS["cnn3"], made, cache_dir=cache_dir)
    assert one.folder == made.path / "systems" / "own" / "cnn3" and one.fold is None
    assert (one.seed, one.val_fraction, one.images.root) == (2, 0.3, shelf / "own")
    (heavy,) = comparison.own_trials(SYSTEMS["resnet34"], made, cache_dir=cache_dir, weights="imagenet")
    assert heavy.weights == "imagenet"


@pytest.mark.slow
def test_folds_test_every_film_once_per_repeat_and_share_no_patient(run, cache_dir):
    planned = comparison.own_trials(SYSTEMS["cnn3"], run("own", seed=5), cache_dir=cache_dir, folds=3, repeats=2)
    assert [one.fold for one in planned] == [Fold(3, number, repeat) for repeat in (0, 1) for number in (0, 1, 2)]
    assert [one.seed for one in planned] == [5, 5, 5, 6, 6, 6] and len({one.folder for one in planned}) == 6
    everyone = set(planned[0].images.table["path"])
    for repeat in (0, 1):
        parts = [paths(one.images, "test") for one in planned if one.fold.repeat == repeat]
        assert Counter(path for part in parts for path in part) == dict.fromkeys(everyone, 1)
    for one in planned:
        known = one.images.table[one.images.table["group"] != ""]
        patients = known.groupby("split")["group"].agg(set)
        assert set(patients.index) == {"train", "val", "test"}
        assert sum(map(len, patients)) == len(set.union(*patients)), "nobody stands in two splits"
    first, second = (set(paths(planned[i].images, "test")) for i in (0, 3))
    assert first != second, "another repeat deals anew"


def test_folds_overrule_published_splits(run, cache_dir):
    whole = comparison.films_of(run().config, 32, cache_dir)
    parts = [comparison.one_fold(whole, 4, number, seed=1, val_fraction=0.2) for number in range(4)]
    tested = [path for part in parts for path in paths(part, "test")]
    assert sorted(tested) == sorted(whole.table["path"])
    assert {path.split("/")[0] for path in paths(parts[0], "test")} == {"train", "test"}
    assert all(0.1 < len(paths(part, "val")) / (len(part) - len(paths(part, "test"))) < 0.3 for part in parts)


@pytest.mark.slow
def test_copies_are_taken_out_before_folds_are_made(run, cache_dir, shelf):
    planned = comparison.own_trials(SYSTEMS["cnn3"], run("own"), cache_dir=cache_dir, folds=2)
    left, files = planned[0].images, sum(1 for _ in (shelf / "own").rglob("*.png"))
    assert len(left) == files - COPIES
    assert len({(shelf / "own" / path).read_bytes() for path in left.table["path"]}) == len(left)


@pytest.mark.slow
def test_which_copy_is_left_does_not_depend_on_the_seed_of_the_run(run, cache_dir):
    left = {
        tuple(sorted(planned[0].images.table["path"]))
        for seed in range(6)
        for planned in [comparison.own_trials(SYSTEMS["cnn3"], run("own", seed=seed), cache_dir=cache_dir, folds=2)]
    }
    assert len(left) == 1, "or `evaluate`, which does not know the run's seed, would open other films"


def test_a_single_fold_is_none(run, cache_dir):
    with pytest.raises(UsageError, match="number of folds is 1"):
        comparison.own_trials(SYSTEMS["cnn3"], run("own"), cache_dir=cache_dir, folds=1)


# ---- testing what was trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chest_xray_kermany", "covid_ct", "own"])
def test_evaluation_opens_the_films_that_the_training_left_closed(run, cache_dir, name):
    made = run(name, seed=3)
    (one,) = comparison.own_trials(SYSTEMS["cnn3"], made, cache_dir=cache_dir)
    trials.learn(one)
    again = comparison.reopen(answers.read_card(one.folder), cache_dir)
    pd.testing.assert_frame_equal(again.table, one.images.table)
    (done,) = comparison.evaluate(made.path, cache_dir)
    assert (done.folder / answers.PREDICTIONS).exists()
    expected = trials.answer(replace(one, folder=one.folder.with_name("elsewhere")))
    pd.testing.assert_frame_equal(done.predictions, expected.predictions)


@pytest.mark.slow
def test_evaluation_opens_the_same_folds(run, cache_dir):
    made = run("own", seed=3)
    planned = comparison.own_trials(SYSTEMS["cnn3"], made, cache_dir=cache_dir, folds=2, repeats=2)
    planned = [replace(one, scale=Scale(epochs=1)) for one in planned]
    for one in planned:
        trials.learn(one)
    comparison._distinct.cache_clear()  # as in another process
    done = comparison.evaluate(made.path, cache_dir)
    assert [one.folder for one in done] == [one.folder for one in planned]
    for one, trial in zip(done, planned, strict=True):
        assert sorted(one.predictions["path"]) == sorted(paths(trial.images, "test"))
        pd.testing.assert_frame_equal(comparison.reopen(one.card, cache_dir).table, trial.images.table)


def test_evaluation_reads_what_is_stored_and_tests_the_rest(run, cache_dir, monkeypatch):
    made, tested, once = run(), [], trials.test
    monkeypatch.setattr(trials, "test", lambda place, *rest: tested.append(place.name) or once(place, *rest))
    for name in ("cnn3", "cnn5"):
        trials.learn(comparison.own_trials(SYSTEMS[name], made, cache_dir=cache_dir)[0])
        assert [one.card["system"] for one in comparison.evaluate(made.path, cache_dir)][-1] == name
    assert tested == ["cnn3", "cnn5"]
    assert comparison.evaluate(made.path.with_name("nowhere"), cache_dir) == []


def test_evaluation_of_films_that_have_gone_says_so(run, cache_dir, tmp_path):
    root = tiny_trials.draw(tmp_path / "gone", tiny_trials.KERMANY, {"train": 6, "test": 3})
    made = replace(run(), config=replace(run().config, data_dir=str(root)))
    trials.learn(comparison.own_trials(SYSTEMS["cnn3"], made, cache_dir=cache_dir)[0])
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="There is no folder"):
        comparison.evaluate(made.path, cache_dir)


def test_evaluation_of_films_of_other_classes_says_both(run, cache_dir, tmp_path):
    root = tiny_trials.draw(tmp_path / "set", tiny_trials.KERMANY, {"train": 6, "test": 3})
    made = replace(run(), config=replace(run().config, data_dir=str(root)))
    trials.learn(comparison.own_trials(SYSTEMS["cnn3"], made, cache_dir=cache_dir)[0])
    for folder in sorted(root.glob("*/*")):
        folder.rename(folder.with_name(dict(zip(tiny_trials.KERMANY, tiny_trials.CT, strict=True))[folder.name]))
    with pytest.raises(DataError, match=r"\['NORMAL', 'PNEUMONIA'\].*\['COVID', 'NonCOVID'\]"):
        comparison.evaluate(made.path, cache_dir)
    assert not list(made.path.rglob(answers.PREDICTIONS))


# ---- system A and the source's figures ------------------------------------------------------------------------------


def test_system_a_stands_among_the_others_with_the_answers_of_notebook_06(tiny_run, tiny_images):
    (one,) = comparison.system_a(tiny_run, tiny_images)
    protocol = next(p for p in pipeline.protocols(tiny_run.config, tiny_images) if p.name == "test_noise")
    pd.testing.assert_frame_equal(
        one.predictions, pipeline.predict(tiny_run, tiny_images, "autoencoder", protocol), check_exact=True
    )
    table = evaluation.accuracies(one.predictions)
    assert table["value"].item() == (one.y_true == one.y_pred).mean()
    networks = [models.build("autoencoder"), models.build("cnn2", image_size=32)]
    assert one.card["parameters"] == sum(map(models.count_parameters, networks))
    assert one.card["system"] == "cnn2" and one.card["dataset"] == "spots + noise 0.1"
    assert one.card["train_images"] == len(tiny_images.subset("train")) and one.card["epochs"] == 6
    assert standings.standings([one])["preset"].item().endswith(", shortened"), "the source trained 50 epochs"


def test_system_a_is_left_out_where_its_notebooks_have_not_run(tiny_config, tiny_images, tmp_path):
    assert comparison.system_a(runs.Run(tmp_path, tiny_config), tiny_images) == []


def test_reported_figures_are_those_of_report_b():
    assert comparison.reported_in_comparison("aernet").accuracy == 0.961
    assert comparison.reported_in_comparison("vgg16").accuracy == 0.893
    assert all(comparison.reported_in_comparison(name) for name in comparison.ARCHITECTURES)
    assert comparison.reported_in_comparison("cnn3") is None
