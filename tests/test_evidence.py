"""Systems over seeds, variants of a recipe, claims and arms: counted by hand on a few films, then as published."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact

from pneumo_lib import (
    answers,
    arms,
    claims,
    confidence,
    config,
    evidence,
    evidence_text,
    metrics,
    pipeline,
    publish,
    robustness,
    runs,
    trials,
)
from pneumo_lib.claims import Claim
from pneumo_lib.data.audit import read_pairs
from pneumo_lib.errors import DataError
from pneumo_lib.findings import RECALLS, findings
from pneumo_lib.metrics import Estimate
from pneumo_lib.recipe import Scale
from pneumo_lib.systems import COVID

ROOT = Path(__file__).resolve().parent.parent
FIGURES, README = ROOT / "figures", (ROOT / "README.md").read_text()
PUBLISHED_FREE = FIGURES / "systems" / "chest_xray_covid_free" / evidence.OURS
CLASSES = ("COVID19", "NORMAL", "PNEUMONIA")
PATHS = [f"test/{name}/{k}.jpg" for name in CLASSES for k in range(4)]
LABELS = np.repeat(np.arange(3), 4)


def said(wrong: list[int], sure: float = 0.8, protocol: str = "clean") -> pd.DataFrame:
    """Answers to the twelve films; those at `wrong` get the next class."""
    answer = LABELS.copy()
    answer[wrong] = (answer[wrong] + 1) % 3
    prob = np.full((12, 3), (1 - sure) / 2)
    prob[np.arange(12), answer] = sure
    names = np.array(CLASSES)
    facts = {"path": PATHS, "split": "test", "protocol": protocol, "system": "x"}
    facts |= {"label": names[LABELS], "predicted": names[answer]}
    return pd.DataFrame(facts | {f"p_{name}": prob[:, k] for k, name in enumerate(CLASSES)})


@pytest.fixture
def published(tmp_path) -> Path:
    """Two systems over two seeds: one with one and three errors, the other with five and five."""
    for name, wrong in {"good": ([0], [0, 1, 4]), "bad": ([0, 1, 2, 3, 4], [4, 5, 6, 7, 8])}.items():
        for seed, films in enumerate(wrong):
            place = tmp_path / evidence.SEEDS / name / f"seed_{seed}"
            place.mkdir(parents=True)
            said(films).to_csv(place / answers.PREDICTIONS, index=False)
            said(films, sure=0.5, protocol="val_0").to_csv(place / evidence.VALIDATION, index=False)
            (place / "model.json").write_text(json.dumps({"seed": seed, "system": name}))
    return tmp_path


def test_a_system_is_told_by_the_mean_of_its_seeds_and_their_range(published):
    table = evidence.over_seeds(evidence.repeated(published), set()).set_index("system")
    good = table.loc["good"]
    assert good["seeds"] == 2 and good["accuracy"].value == pytest.approx(10 / 12) and good["accuracy"].n == 12
    assert (good["lowest"], good["highest"]) == (pytest.approx(9 / 12), pytest.approx(11 / 12))
    assert good["recall"] == {"COVID19": 5 / 8, "NORMAL": 7 / 8, "PNEUMONIA": 1.0}
    interval = metrics.wilson(10, 12)
    assert (good["accuracy"].low, good["accuracy"].high) == (interval.low, interval.high)
    assert "83.3 % [55.2, 95.3]" in " ".join(evidence_text.readable(table.reset_index()).astype(str).to_numpy().ravel())


def test_films_with_a_copy_or_their_patient_in_training_are_left_out(published):
    pairs = {"path_a": ["train/a.jpg", PATHS[5]], "split_a": ["train", "test"]}
    pairs |= {"path_b": [PATHS[0], PATHS[6]], "split_b": ["test", "test"]}  # the second is no copy of training's
    pd.DataFrame(pairs).to_csv(published / evidence.PAIRS, index=False)
    (published / evidence.FACTS).write_text(json.dumps({"acquainted": [PATHS[0], PATHS[1]]}))
    known = evidence.known_films(published)
    assert known == {PATHS[0], PATHS[1]}
    (published / evidence.FACTS).unlink()
    with pytest.raises(DataError, match=r"data_card\.json cannot be read.*pneumo cards --data FOLDER"):
        evidence.known_films(published)
    alone = evidence.over_seeds(evidence.repeated(published), known).set_index("system").loc["good", "distinct"]
    assert alone.n == 10 and alone.value == pytest.approx((10 + 9) / 20)  # film 4 alone is wrong, under one seed


def test_the_mean_of_the_seeds_decides_by_their_probabilities(published):
    said_by_all = evidence.repeated(published)
    mean = evidence.averaged(said_by_all)
    good = mean[mean["system"] == "good"].set_index("path")
    assert len(good) == 12
    assert good.loc[PATHS[0], "predicted"] == "NORMAL"  # both seeds say so
    assert good.loc[PATHS[1], "p_COVID19"] == pytest.approx((0.8 + 0.1) / 2)
    rows = evidence.over_seeds(said_by_all, set()).set_index("system")
    assert rows.loc["bad", "averaged"].value == pytest.approx((good_of(mean, "bad")).mean())


def good_of(mean: pd.DataFrame, system: str) -> pd.Series:
    part = mean[mean["system"] == system]
    return part["label"] == part["predicted"]


def test_two_systems_are_paired_seed_by_seed(published):
    table = evidence.paired(evidence.repeated(published), "good", "bad").set_index("seed")
    assert set(table.index) == {0, 1, evidence.MEAN}
    assert (table.loc[0, "only_first"], table.loc[0, "only_second"]) == (4, 0)
    assert table.loc[0, "p"] == pytest.approx(2 * 0.5**4) and table.loc[0, "difference"].value == pytest.approx(4 / 12)
    assert (table.loc[1, "only_first"], table.loc[1, "only_second"]) == (4, 2)  # 5, 6, 7, 8 against 0, 1


def test_only_seeds_that_both_have_are_averaged_and_paired(published):
    three = pd.concat([evidence.repeated(published), said([0, 1, 2]).assign(system="good", seed=2)])
    assert evidence.paired(three, "good", "bad").equals(evidence.paired(evidence.repeated(published), "good", "bad"))


@pytest.mark.parametrize(("seeds", "told"), [((0, 1), "seeds averaged"), ((1,), "seed 1")])
def test_the_comparison_with_a_source_says_on_how_many_seeds_it_stands(published, monkeypatch, seeds, told):
    monkeypatch.setattr(evidence, "OURS", "good")
    table = evidence.repeated(published)
    text = evidence_text.told_comparison(table[(table["system"] == "good") | table["seed"].isin(seeds)], "bad")
    assert text.startswith(f"`good` minus `bad`, {told}, exact McNemar test: clean ") and text.endswith(").\n")
    assert ("of 2 single seeds" in text) == (len(seeds) > 1)
    if seeds == (1,):
        assert "16.7 %" in text and "(p = 0.688)" in text  # 4 films against 2


def test_variants_are_held_against_each_other_on_validation(published):
    table = evidence.ablation(evidence.repeated(published, evidence.VALIDATION), ["good", "bad"]).set_index("system")
    assert table.loc["good", "accuracy"] == pytest.approx(20 / 24) and table.loc["good", "seeds"] == 2
    loss = -(20 * np.log(0.5) + 4 * np.log(0.25)) / 24
    assert table.loc["good", "loss"] == pytest.approx(loss) and table.loc["bad", "loss"] > loss


def test_variants_are_held_against_the_row_of_their_size_and_length(published, monkeypatch):
    short, small = (f"{evidence.OURS}_{name}" for name in ("short", "small"))
    assert evidence.reference(short) == evidence.reference(f"{evidence.OURS}_no_mixup") == evidence.OURS
    assert [evidence.reference(f"{name}_no_mixup") for name in (short, small)] == [short, small]
    monkeypatch.setattr(evidence, "OURS", "good")
    monkeypatch.setattr(evidence, "VARIANTS", {"bad": "worse", "nowhere": "not trained", "alone": "under another seed"})
    films = evidence.repeated(published)
    films = pd.concat([films, films[films["seed"] == 0].assign(system="alone", seed=7)])
    pair = evidence.paired(films, "bad", "good").set_index("seed").loc[evidence.MEAN]
    (row,) = evidence.differences(films).to_dict("records")
    assert (row["system"], row["protocol"], row["p"]) == ("bad", "clean", pair["p"])
    assert row["difference"].value == pair["difference"].value < 0
    both = pd.concat([films.assign(protocol=name) for name in ("val_0.5", "val_0")])
    sure = 2 * (row["p"] < 0.05)
    assert f"Of these 2 tests on validation films {sure} have p < 0.05" in evidence_text.told_variants(both)


def test_a_rerun_is_held_against_the_interval_of_another_seed(published):
    table = evidence.reruns(evidence.repeated(published))
    assert table["inside"].tolist() == [True, True, True, False]  # 11 of 12 lies above the interval of 9 of 12
    told = evidence_text.told_reruns(table)
    assert "3 of 4 times" in told and told.endswith("Outside: `good` clean 1 of 2.\n")
    assert evidence_text.told_reruns(table[:3]).endswith("None is outside.\n")
    far = pd.concat([said([]).assign(seed=0), said([0, 1, 2, 3, 4, 5]).assign(seed=1)])
    apart = evidence.reruns(far)
    assert not apart["inside"].any() and "0 of 2 times" in evidence_text.told_reruns(apart)
    assert "Outside: `x` clean 2 of 2." in evidence_text.told_reruns(apart)


def test_errors_that_every_seed_and_every_variant_makes_are_told(published, monkeypatch):
    films = evidence.repeated(published)
    both = films[films["system"] == "bad"]
    assert list(evidence.always_wrong(both)["path"]) == [PATHS[4]]
    monkeypatch.setattr(evidence, "OURS", "bad")
    monkeypatch.setattr(evidence, "VARIANTS", {"good": "better"})
    surer = (films["path"] == PATHS[1]) & (films["system"] == "good") & (films["seed"] == 0)  # else two against two
    films.loc[surer, ["p_COVID19", "p_NORMAL", "p_PNEUMONIA"]] = [0.9, 0.05, 0.05]
    told = evidence_text.told_errors(pd.concat([films, films.assign(protocol="test_noise")]))
    part = (
        "5 of 12 {} test films are wrong on average, 1 of them under all 2 seeds (1 NORMAL), so that no vote of theirs"
    )
    for title in ("clean", "noisy"):
        assert f"{part.format(title)} passes 91.7%, and 0 in every row" in told
    assert told.count("whose average (4 of them) is right on 83.3%") == 2  # all but 0 and 4, wrong under three


def test_what_augmentation_is_worth_is_told_by_area_and_widest_gap(tmp_path, monkeypatch):
    levels = {"kind": ["rotation"] * 3 + ["crop"] * 3, "level": [0, 10, 20, 0, 0.1, 0.5]}
    for name, values in (("with", [0.9, 0.9, 0.5, 0.9, 0.8, 0.4]), ("without", [1.0, 0.8, 0.1, 1.0, 0.6, 0.4])):
        place = tmp_path / evidence.ROBUSTNESS / f"{name}_seed_0.csv"
        place.parent.mkdir(exist_ok=True)
        pd.DataFrame(levels | {"value": values}).to_csv(place, index=False)
    monkeypatch.setattr(evidence_text, "AUGMENTED", {"all": "with", "none": "without"})
    table = evidence_text.readable_robustness(tmp_path)
    assert list(table.columns) == ["corruption, area under the accuracy", "all", "none", "furthest apart"]
    assert table.to_numpy().tolist() == [
        ["rotation", "0.800", "0.675", "at 20: 50.0% / 10.0%"],
        ["crop", "0.650", "0.560", "at 0.1: 80.0% / 60.0%"],
        ["none, accuracy", "90.0%", "100.0%", ""],
    ]


def test_the_fastest_epoch_of_a_system_is_told_with_its_machine(published):
    for seed, (seconds, device) in enumerate([([3.0, 2.0], "slow card"), ([9.0, 1.25], "fast card")]):
        place = published / evidence.SEEDS / "good" / f"seed_{seed}"
        pd.DataFrame({"seconds": seconds}).to_csv(place / "history.csv", index=False)
        (place / "model.json").write_text(json.dumps({"device": device}))
    assert evidence.fastest_epochs(published) == {"good": "1.2 s, fast card"}


def test_a_folder_without_seeds_says_what_makes_them(tmp_path):
    with pytest.raises(DataError, match=r"seeds holds no SYSTEM/seed_K/predictions.csv.*evidence.py"):
        evidence.repeated(tmp_path)


# ---- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reported", "shorter", "unlike", "verdict"),
    [
        (0.90, False, "", "reproduced"),
        (0.90, True, "", "reproduced, with less training"),
        (0.97, False, "", "not reproduced"),
        (0.97, True, "", "not comparable: ours was trained for less"),
        (0.80, True, "", "exceeded"),
        (0.90, False, "16 films", "not comparable: 16 films"),
    ],
)
def test_a_verdict_follows_from_the_interval(reported, shorter, unlike, verdict):
    ours = Estimate(0.90, 0.88, 0.92, 1000)
    assert Claim("A", "accuracy", reported, 0, ours, 1, "how", shorter, unlike).verdict == verdict


@pytest.mark.parametrize(
    ("reported", "shorter", "verdict"),
    [
        (0.90, False, "reproduced, from scratch"),
        (0.90, True, "reproduced, with less training, from scratch"),
        (0.97, False, "not comparable: the source began with ImageNet weights"),
        (0.97, True, "not comparable: ours was trained for less"),
        (0.80, False, "exceeded"),
    ],
)
def test_what_began_with_imagenet_is_not_held_against_what_began_from_scratch(reported, shorter, verdict):
    ours = Estimate(0.90, 0.88, 0.92, 1000)
    assert Claim("B", "accuracy", reported, 0, ours, 1, "how", shorter, scratch=True).verdict == verdict


def test_the_published_card_tells_whether_it_began_from_scratch():
    place = FIGURES / "systems" / "brain_mri" / "aernet"
    one = claims._trained("B", "x", 0.969, 0, place)
    assert one.scratch and not one.shorter and answers.read_card(place)["starting_weights"] == "none"
    assert not claims._trained("D", "x", 0.85, 0, FIGURES / "systems" / "chest_xray_kermany" / "cnn3").scratch


def test_what_was_not_measured_is_said():
    one = Claim("B", "accuracy", 0.9, 0, None, 0, "", True)
    assert one.verdict == "not measured" and claims.table([one])["measured here"].item() == ""


def test_every_reported_accuracy_has_its_row():
    found = claims.claims(FIGURES, json.loads((FIGURES / "metrics.json").read_text()))
    reported = {round(one.reported, 4) for one in found}
    accuracies = {0.9457, 0.9697, 0.953, 0.972, 0.969, 0.852, 0.893, 0.915, 0.932, 0.941, 0.961, 0.97, 0.875, 0.9375}
    assert accuracies <= reported and round(505 / 594, 4) in reported
    assert [one.report for one in found] == sorted(one.report for one in found)


def test_a_network_that_notebook_05_leaves_out_is_taken_from_the_published_systems(tmp_path):
    published = json.loads((FIGURES / "metrics.json").read_text())
    rows = published["05"]["architectures"]
    published["05"]["architectures"] = [row for row in rows if row["system"] != "resnet50"]

    def told() -> Claim:
        return next(one for one in claims._report_b(tmp_path, published) if one.what == "comparison: ResNet-50")

    assert told().verdict == "not measured" and told().reported == 0.932
    shutil.copytree(FIGURES / "systems" / COVID / "aernet", tmp_path / "systems" / COVID / "resnet50")
    said = answers.read(FIGURES / "systems" / COVID / "aernet")
    assert told().ours == metrics.accuracy(said.y_true, said.y_prob.argmax(axis=1))
    assert told().how == "64 px, 1,500 films, 3 epochs" and told().verdict.startswith("not comparable")


@pytest.mark.parametrize(("accuracies", "low", "high"), [((0.9,), 0.880, 0.917), ((0.8, 0.9, 1.0), 0.652, 1.0)])
def test_the_training_accuracy_has_an_interval_of_films_or_of_seeds(accuracies, low, high):
    cards = [{"train_images": 1000, "epochs": 50, "recipe": "a: 50 epochs"}] * len(accuracies)
    right = Estimate(0.95, 0.9, 0.97, 66)
    rows = pd.DataFrame({"accuracy": right, "distinct": right}, index=["test_noise", "noisy_test"])
    *tested, seen = claims._system_a(rows, cards, list(accuracies))
    assert len(tested) == 3 and not seen.shorter and seen.seeds == len(accuracies)
    assert (seen.ours.value, seen.ours.n) == (pytest.approx(0.9), 1000)
    assert (seen.ours.low, seen.ours.high) == (pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))


# ---- arms ------------------------------------------------------------------------------------------------------------


def arm_table(wrong: int) -> pd.DataFrame:
    """What a network said at two levels: all right without noise, so many of 40 wrong with it."""
    labels = np.zeros(40, int)
    noisy = np.where(np.arange(40) < wrong, 1, 0)
    paths = [f"test/A/{k}.png" for k in range(40)]
    return pd.DataFrame({"path": paths, "label": labels, "gaussian 0": labels, "gaussian 0.5": noisy})


def test_arms_are_scored_and_paired_over_their_seeds(tmp_path):
    for arm, wrong in {"unprepared": (30, 20), "noisy": (12, 14), "denoised": (1, 2)}.items():
        for seed, n in enumerate(wrong):
            place = tmp_path / arms.FOLDER / "cnn2" / f"{arm}_seed_{seed}.csv"
            place.parent.mkdir(parents=True, exist_ok=True)
            arm_table(n).to_csv(place, index=False)
    found = arms.read(tmp_path)
    table = arms.scores(found)
    mean = table[(table["arm"] == "unprepared") & (table["level"] == 0.5)]["accuracy"].mean()
    assert mean == pytest.approx(1 - 25 / 40)
    shown = arms.readable(table).set_index("arm")
    assert shown.loc["unprepared", "0.5"] == "37.5%" and shown.loc["clean", "0"] == "100.0%"
    assert shown.loc["clean", "0.5"] == "" and list(shown.index) == ["clean", "unprepared", "denoised", "noisy"]
    tests = arms.paired(found).set_index("level")
    assert tests.loc[0.5, "difference"] == pytest.approx((11 + 12) / 80) and tests.loc[0.5, "better"]
    assert tests.loc[0.5, "p"] == pytest.approx(2 * 0.5**11)  # of the seed that says it less surely
    assert not tests.loc[0.0, "better"] and not tests.loc[0.0, "worse"]
    assert "`cnn2` it helps at gaussian 0.5;" in arms.verdict(arms.paired(found))
    assert "hurts at gaussian 0.5" in arms.verdict(arms.paired(found, "noisy", "denoised"))


def test_a_gain_that_one_seed_alone_shows_is_none(tmp_path):
    found = {("cnn2", "noisy", 0): arm_table(12), ("cnn2", "denoised", 0): arm_table(1)}
    found |= {("cnn2", "noisy", 1): arm_table(5), ("cnn2", "denoised", 1): arm_table(5)}
    found = {key: table.set_index("path") for key, table in found.items()}
    assert "makes no difference that every seed confirms" in arms.verdict(arms.paired(found))


@pytest.mark.slow
def test_a_network_is_trained_and_tested_in_every_arm(tmp_path, tiny_images, monkeypatch):
    monkeypatch.setattr(arms, "_tests", lambda: [("gaussian", 0.0), ("gaussian", 0.5), ("crop", 0.2)])
    settings = config.make("full", data_dir=str(tiny_images.root), image_size=64)
    scale = Scale(epochs=1, train_images=12, val_images=9, test_images=6)
    arms.train_denoiser(runs.Run(tmp_path / "denoiser", settings), tiny_images, scale)
    denoiser = runs.load_model(tmp_path / "denoiser").model
    tested = []
    for condition in arms.CONDITIONS:
        trial = arms.plan("cnn2", condition, tiny_images, runs.Run(tmp_path, settings), scale, denoiser)
        assert (trial.sigma == 0) == (condition == "clean") and (trial.denoiser is denoiser) == (
            condition == "denoised"
        )
        assert 1.2 * trial.sigma in (0, pytest.approx(arms.TOP)) and trial.share == (condition != "clean")
        saved = trials.learn(trial, keep=False)
        for name, behind in arms.shown(condition, denoiser).items():
            table = arms.said(saved, tiny_images, scale, behind)
            assert list(table) == ["path", "label", "gaussian 0", "gaussian 0.5", "crop 0.2"] and len(table) == 6
            tested.append(name)
    assert set(tested) | {"clean"} == set(arms.ARMS)


def test_arms_that_no_seed_shares_are_not_paired():
    found = {("cnn2", "noisy", 0): arm_table(12), ("cnn2", "denoised", 1): arm_table(1)}
    assert arms.paired(found).empty and "cnn2" not in arms.verdict(arms.paired(found))


def test_a_difference_that_rounds_to_nothing_has_no_minus():
    row = {"network": "cnn2", "kind": "gaussian", "level": 0.5, "seeds": 2, "difference": -0.0003, "p": 1.0}
    told = arms.verdict(pd.DataFrame([row | {"better": False, "worse": False}]))
    assert "the difference is +0.0% to +0.0% (2 seeds)" in told


def test_a_folder_without_arms_says_what_makes_them(tmp_path):
    with pytest.raises(DataError, match=r"arms holds no NETWORK/ARM_seed_K.csv"):
        arms.read(tmp_path)


def test_what_a_network_knows_of_sources_is_told_over_its_seeds(tmp_path):
    assert evidence_text.told_sources(tmp_path) == ""
    card = {"architecture": "cnn9", "arguments": {"image_size": 32}, "train_images": 2000, "epochs": 3}
    card |= {"classes": list(CLASSES), "positive": None, "protocol": "source of the film", "dataset": "x"}
    for seed, wrong in enumerate(([0, 1], [0, 4])):
        place = tmp_path / evidence.SOURCES / f"seed_{seed}"
        place.mkdir(parents=True)
        said(wrong, protocol="source of the film").to_csv(place / answers.PREDICTIONS, index=False)
        (place / "model.json").write_text(json.dumps(card))
    told = evidence_text.told_sources(tmp_path)
    assert "`cnn9` (32 px, 2,000 clean films, 3 epochs, mean of 2 seeds)" in told
    assert "62.5% of the 4 films of COVID19, 87.5% of the 4 films of NORMAL, 100.0% of the 4 films of PNEUMONIA" in told
    assert told.endswith("mean recall 83.3%, by chance 33.3%.\n")


def test_what_denoisers_reach_is_told_film_by_film_over_their_seeds(tmp_path):
    assert evidence_text.told_denoisers(tmp_path) == ""
    card = {"parameters": 3900000, "train_images": 4526, "recipe": "20 epochs", "noise": {"strength": 0.5}}
    for seed, low in enumerate((27.0, 28.0)):
        place = tmp_path / evidence.DENOISERS / "large" / f"seed_{seed}"
        place.mkdir(parents=True)
        films = pd.DataFrame({"path": [f"{k}.png" for k in range(40)], "label": 0, "method": "unet_denoiser"})
        films = films.assign(psnr=[low, low + 1] * 20, ssim=[0.7, 0.8] * 20)
        films.to_csv(place / evidence.QUALITY, index=False)
        (place / "model.json").write_text(json.dumps(card))
    told = evidence_text.told_denoisers(tmp_path)
    assert "`large` (3,900,000 parameters, 4,526 films; 20 epochs; 2 seeds) 28.00 dB [27.8" in told
    assert "SSIM 0.750 [0.73" in told and told.endswith("on 40 test films with noise 0.5.\n")
    for place in (tmp_path / evidence.DENOISERS / "large").iterdir():
        films = pd.read_csv(place / evidence.QUALITY)
        both = films.assign(method=f"unet_denoiser, {evidence.MIRRORED}", psnr=films["psnr"] + 0.25)
        pd.concat([films, both]).to_csv(place / evidence.QUALITY, index=False)
    assert evidence_text.told_denoisers(tmp_path).startswith(told[:-2] + ", 28.25 dB [28.")


# ---- what is published -----------------------------------------------------------------------------------------------


def test_the_published_texts_follow_from_the_published_answers():
    for name, text in publish.evidence_texts(FIGURES).items():
        assert (FIGURES / name).read_text() == text, f"{name} is old: run benchmarks/evidence.py --publish figures"


def test_what_the_readme_says_of_the_aims_follows_from_the_published_answers():
    said_by_all = evidence.repeated(FIGURES)
    table = evidence.over_seeds(said_by_all, set()).set_index(["system", "protocol"])
    noisy, clean = (table.loc[(evidence.OURS, name)] for name in ("test_noise", "clean"))
    one, mean, plain = (
        f"{100 * cell.value:.1f} %" for cell in (noisy["accuracy"], noisy["averaged"], clean["accuracy"])
    )
    assert f"no: {one} (three averaged {mean})" in README and f"no: {plain} |" in README
    none = table.loc[(f"{evidence.OURS}_no_augmentation", "test_noise")]
    apart = f"{100 * none['lowest']:.1f} and {100 * none['highest']:.1f} %, two seeds"
    assert f"as good on validation, {100 * none['accuracy'].value:.2f} % ({apart})" in README and none["seeds"] == 2
    cost = 100 * (clean["accuracy"].value - noisy["accuracy"].value)
    assert f"noise costs this network {cost:.1f} points only" in README
    every = table.loc[(f"{evidence.OURS}_augmented", "test_noise"), "recall"]
    recall, other = (" / ".join(f"{100 * value:.1f}" for value in part.values()) for part in (noisy["recall"], every))
    assert f"yes: {recall} % (with every film augmented {other} %)" in README
    assert all(noisy["recall"][name] >= aim for name, aim in RECALLS.items())
    films = said_by_all[(said_by_all["system"] == evidence.OURS) & (said_by_all["protocol"] == "clean")]
    n = films[films["seed"] == 0]["label"].value_counts()
    assert (
        f"{n['COVID19']} films of COVID19 and {n['NORMAL']} of NORMAL carry intervals of nine and five points" in README
    )
    found = {name: metrics.wilson(round(noisy["recall"][name] * n[name]), n[name]) for name in ("COVID19", "NORMAL")}
    assert [round(100 * (share.high - share.low)) for share in found.values()] == [9, 5]
    assert table.loc[(evidence.OURS, "noisy_test"), "lowest"] == 1 and "yes: 66 of 66 under all three seeds" in README
    same, wrong = evidence.always_wrong(films), (films["label"] != films["predicted"]).sum() / clean["seeds"]
    whole = said_by_all[said_by_all["system"].isin([evidence.OURS, *evidence.VARIANTS])].query("protocol == 'clean'")
    mean = evidence.averaged(whole.assign(system="all"))
    right = 100 * clean["averaged"].value, 100 * (mean["label"] == mean["predicted"]).mean()
    allowed = int(0.025 * clean["accuracy"].n)
    told = f"{allowed} films may be wrong, {wrong:.0f} are on average and {len(same)} of those under all three seeds"
    words = "their average is right on {:.1f} %, that of all rows and seeds of the table of variants on {:.1f} %"
    assert f"{told}; {words.format(*right)}" in README and right[0] < 97.5
    places = (FIGURES / evidence.DENOISERS / name / "seed_0" for name in ("unet_denoiser_large", "autoencoder_full"))
    (large, both), (source,) = (
        [part[["psnr", "ssim"]].mean() for _, part in pd.read_csv(place / evidence.QUALITY).groupby("method")]
        for place in places
    )
    quick = {row["method"]: row for row in json.loads((FIGURES / "metrics.json").read_text())["06"]["denoising"]}
    gain, short = large["psnr"] - source["psnr"], quick["unet_denoiser"]
    assert f"yes: {large['psnr']:.2f} dB, {gain:.1f} above the source's autoencoder trained in full" in README
    assert f"averaged with itself on mirrored films {both['psnr']:.2f} dB" in README
    assert f"preset `quick` {short['psnr']:.1f} dB" in README and f"yes: {large['ssim']:.3f}" in README
    assert f"(preset `quick` {short['ssim']:.3f})" in README
    place = FIGURES / evidence.DENOISERS / "unet_denoiser_large" / "seed_0"
    levels = pd.read_csv(place / evidence.LEVELS).set_index("level")
    assert f"{levels.loc[1, 'psnr']:.1f} dB at 1.0, on {levels.loc[1, 'n']:.0f} films" in README
    measured, results = levels["psnr"].map("{:.1f}".format), (FIGURES.parent / "benchmarks" / "RESULTS.md").read_text()
    told = "0.1, 0.25 and 0.5 to {}, {} and {} dB; beyond 0.6, the most it met, it fails: {} dB at 0.75, {} at 1.0"
    assert told.format(*measured) in " ".join(results.split())


LEVELS = (0.1, 0.25, 0.5, 0.75)


def test_what_the_readme_says_of_denoising_follows_from_the_published_answers():
    found, readme = arms.read(FIGURES), " ".join(README.split())
    at = arms.scores(found).groupby(["network", "arm", "kind", "level"])["accuracy"].mean() * 100
    bare, rescued = (
        {name: at[name, arm, "gaussian", 0.5] for name in ("cnn2", "resnet34", "aernet")}
        for arm in ("unprepared", "rescued")
    )
    assert (
        f"`cnn2` has {bare['cnn2']:.1f} % of the films right without a denoiser and {rescued['cnn2']:.1f} %" in readme
    )
    assert f"behind one, `resnet34` {bare['resnet34']:.1f} and {rescued['resnet34']:.1f} %" in readme
    assert f"`aernet` {bare['aernet']:.1f} and {rescued['aernet']:.1f} %." in readme
    names = ["cnn2", "resnet34", "aernet"]
    tests = arms.paired(found).set_index(["network", "kind", "level"]).sort_index()
    gains = [100 * tests.loc[(name, "gaussian", level), "difference"] for name in names for level in LEVELS]
    assert f"the differences are {abs(min(gains)):.1f} to {max(gains):.1f} points" in readme and len(gains) == 12
    sure = [tests.loc[(name, "gaussian", level), "p"] < 0.05 for name in names for level in LEVELS]
    assert sum(sure) == 1
    top = [100 * tests.loc[(name, "gaussian", 1.0), "difference"] for name in names]
    p = [tests.loc[(name, "gaussian", 1.0), "p"] for name in names]
    assert "At 1.0 it may: {:.1f}, {:.1f} and {:.1f} points".format(*top) in readme
    assert "p = {:.2f}, {:.2f} and < 0.001".format(*p[:2]) in readme and p[2] < 0.001
    lost = [-100 * tests.loc[(name, "darker", 0.35), "difference"] for name in names]
    assert "all three lose behind it, {:.0f}, {:.0f} and {:.0f} points".format(*lost) in readme
    assert all(tests.loc[(name, "darker", 0.35), "worse"] for name in names)
    paler = [tests.loc[(name, "low_contrast", 0.8), ["better", "worse"]].tolist() for name in names]
    assert [True, False] in paler and [False, True] in paler, "the networks disagree"


def test_what_the_readme_says_of_the_source_s_full_recipe_follows_from_the_published_answers():
    copies = pipeline.copies(read_pairs(FIGURES / evidence.PAIRS))
    told = evidence.repeated(FIGURES).query("protocol == 'noisy_test'")
    told = told.assign(hit=told["label"] == told["predicted"], copied=told["path"].isin(copies))
    full = told[told["system"] == evidence.SOURCE_FULL]

    def counts(films: pd.DataFrame) -> list[list[int]]:
        return [[int(part["hit"].sum()), int((~part["hit"]).sum())] for _, part in films.groupby(~films["copied"])]

    readme, covid = " ".join(README.split()), full[full["label"] == "COVID19"]
    (right, wrong), (others, missed) = counts(full)
    assert f"{right + wrong} are copies of training films, and the network is right on {right} of those" in readme
    p, among = (fisher_exact(counts(films)).pvalue for films in (full, covid))
    assert f"on {others} of the other {others + missed} (Fisher's exact test p = {p:.2f})" in readme
    (right, wrong), (others, missed) = counts(covid)
    assert f"{right} of {right + wrong} copies and {others} of {others + missed} others" in readme
    assert f"too few to be sure (p = {among:.2f})" in readme and others + missed == 12
    shorter = [counts(films) for _, films in told[told["system"] == evidence.SOURCE].groupby("seed")]
    (least, few), (most, many) = np.min(shorter, axis=0)[:, 0], np.max(shorter, axis=0)[:, 0]
    assert f"three seeds were right on {least} to {most} copies and on {few} or {many} of the others" in readme
    history = pd.read_csv(FIGURES / evidence.SEEDS / evidence.SOURCE_FULL / "seed_0" / "history.csv")
    last = 100 * history["train_score"].tail(8)
    assert f"swings from {last.min():.1f} to {last.max():.1f} % over the last eight epochs" in readme
    assert (history["val_score"].rolling(10).mean().iloc[24:] < history["val_score"][14]).all(), "nothing lasting"


def test_what_the_readme_says_of_each_part_of_our_recipe_follows_from_the_published_answers():
    readme, ours = " ".join(README.split()), evidence.OURS
    val, test = (evidence.repeated(FIGURES, name) for name in (evidence.VALIDATION, answers.PREDICTIONS))
    told = evidence.differences(val).set_index(["system", "protocol"])
    sure = told[told["p"] < 0.05]
    every = [f"{ours}_augmented", f"{ours}_small_augmented", f"{ours}_short_augmented"]
    drawn, behind = f"{ours}_short_balanced", f"{ours}_short_behind_a_denoiser"
    assert {*sure.index.get_level_values("system")} == {*every, drawn, behind}
    assert sure.index[[difference.value > 0 for difference in sure["difference"]]].tolist() == [(behind, "val_0")]
    assert "All other tests on validation have p > 0.05" in readme and round(0.05 * len(told)) == 2
    clean, noisy = (told.loc[(behind, name)] for name in ("val_0", "val_0.5"))
    facts = 100 * clean["difference"].value, clean["p"], -100 * noisy["difference"].value
    words = "({:.1f} points, p = {:.3f}, one seed), not on noisy ones, for which it is made ({:.1f} less)"
    assert f"better on clean validation films {words.format(*facts)}" in readme
    tested = evidence.differences(test[test["system"].isin([behind, f"{ours}_short"])])
    assert (tested["p"] > 0.05).all() and len(tested) == 3
    lost = [(-100 * row["difference"].value, row["p"]) for row in (told.loc[(name, "val_0.5")] for name in every)]
    words = "augmented are {:.1f} points worse than the whole recipe (p = {:.2f}, worse under each of three seeds), at"
    assert words.format(*lost[0]) in readme
    noisy, clean = (told.loc[(drawn, name)] for name in ("val_0.5", "val_0"))
    facts = -100 * noisy["difference"].value, noisy["p"], -100 * clean["difference"].value, clean["p"]
    assert "{:.1f} points worse at noise 0.5 (p = {:.3f}), {:.1f} clean (p = {:.2f})".format(*facts) in readme
    words = "at 128 pixels {:.1f} and {:.1f} (small and short, p = {:.2f} and {:.3f})"
    assert words.format(lost[1][0], lost[2][0], lost[1][1], lost[2][1]) in readme
    single = evidence.paired(val, every[0], ours).query("protocol == 'val_0.5' and seed != @evidence.MEAN")
    assert len(single) == 3 and (single["only_second"] > single["only_first"]).all()
    rows = test[test["system"].isin([ours, *evidence.VARIANTS]) & (test["protocol"] == "test_noise")]
    recalls = pd.DataFrame(evidence.over_seeds(rows, set()).set_index("system")["recall"].to_dict()).T[[*RECALLS]]
    reached = (recalls >= [*RECALLS.values()]).all(axis=1)
    assert reached[reached].index.tolist() == [ours], "the only one that reaches the three recalls"
    history = {path: pd.read_csv(path)["seconds"] for path in (FIGURES / evidence.SEEDS).glob("*/seed_*/history.csv")}
    fastest = [
        min(seconds.min() for path, seconds in history.items() if path.parent.parent.name == f"{ours}_short{name}")
        for name in ("", "_twice_as_wide", "_behind_a_denoiser")
    ]
    assert "an epoch takes {:.0f} s, twice as wide {:.0f} s, behind a U-Net {:.0f} s".format(*fastest) in readme
    minutes = {
        name: [seconds.sum() / 60 for path, seconds in history.items() if path.parent.parent.name == name]
        for name in (ours, f"{ours}_small", f"{ours}_short")
    }
    whole, (small,), short = minutes.values()
    assert f"in bfloat16, {min(whole):.0f} to {max(whole):.0f} minutes by machine" in readme
    assert f"with 30 epochs ({small:.0f} minutes) or 12 ({min(short):.0f} to {max(short):.0f} minutes)" in readme
    smaller = evidence.differences(test[test["system"].isin([ours, f"{ours}_small", f"{ours}_short"])])
    assert (smaller["p"] > 0.05).all() and len(smaller) == 6, "no difference that these films show"
    folder = test[test["system"].isin([f"{ours}_small", f"{ours}_short"]) & (test["protocol"] == "noisy_test")]
    right = (folder["label"] == folder["predicted"]).groupby([folder["system"], folder["seed"]]).sum()
    assert {*right} == {65, 66} and "they have 65 or 66 of 66 right" in readme
    clean = test[(test["system"] == ours) & (test["protocol"] == "clean")]
    same, wrong = evidence.always_wrong(clean), (clean["label"] != clean["predicted"]).sum() / clean["seed"].nunique()
    assert f"Of {wrong:.0f} clean films that are wrong on average {len(same)} are so under every seed, half" in readme
    assert (same["label"] == "PNEUMONIA").mean() == pytest.approx(0.5, abs=0.05)


def test_what_the_readme_says_of_more_contrast_follows_from_the_published_tables():
    readme, place = " ".join(README.split()), FIGURES / evidence.ROBUSTNESS
    tables = [
        pd.read_csv(place / f"val_{name}.csv")
        for name in ("contrast_seed_2", "main_seed_2", "short_contrast_seed_0", "short_main_seed_0")
    ]
    pale = [100 * table.set_index(["kind", "level"]).loc[("low_contrast", 0.8), "value"] for table in tables[:2]]
    assert "lost 0.8 of theirs the whole recipe has {:.1f} % right instead of {:.1f} %".format(*pale) in readme
    means = [robustness.areas(table).mean() for table in tables]
    words = "twelve areas of {:.3f} instead of {:.3f} (seed 2; short, seed 0: {:.3f} and {:.3f})"
    assert words.format(*means) in readme
    told = evidence.differences(evidence.repeated(FIGURES)).set_index(["system", "protocol"])
    clean = told.loc[(f"{evidence.OURS}_contrast", "clean")]
    assert f"have {-100 * clean['difference'].value:.1f} points less right (p = {clean['p']:.3f})" in readme
    cards = evidence.cards(FIGURES)
    assert [len(cards[f"{evidence.OURS}_{name}"]) for name in ("contrast", "short_contrast")] == [1, 2]


def test_what_the_readme_says_of_augmentation_follows_from_the_published_tables():
    readme = " ".join(README.split())
    place = FIGURES / evidence.ROBUSTNESS
    tables = [pd.read_csv(place / f"{name}_seed_0.csv") for name in evidence_text.AUGMENTED.values()]
    every, half, none = (100 * table.set_index(["kind", "level"])["value"] for table in tables)
    turned, cropped, darker, paler = ("rotation", 20), ("crop", 0.2), ("darker", 0.35), ("low_contrast", 0.6)
    assert (
        f"turned by 20 degrees it has {none[turned]:.1f} % of the films right, with every film augmented "
        f"{every[turned]:.1f} %; cropped by a fifth {none[cropped]:.1f} and {every[cropped]:.1f} %; darkened by 0.35 "
        f"{none[darker]:.1f} and {every[darker]:.1f} %."
    ) in readme
    plain = ("rotation", 0)
    assert (
        f"{half[plain]:.1f} % of the films as they are (every film {every[plain]:.1f} %, none {none[plain]:.1f} %)"
        in readme
    )
    assert f"and {half[turned]:.1f}, {half[cropped]:.1f} and {half[darker]:.1f} % of those turned, cropped" in readme
    means = [robustness.areas(table).mean() for table in tables]
    assert "({1:.3f}; every film {0:.3f}, none {2:.3f})".format(*means) in readme and max(means) == means[1]
    wrong = [robustness.areas(table, "ece").mean() for table in tables]
    assert f"its calibration error is {wrong[2]:.3f}, that of the other {wrong[0]:.3f}" in readme
    assert f"lost {half[paler]:.1f} % are right ({every[paler]:.1f} and {none[paler]:.1f} %)" in readme
    shown = [place / "test_CC_BY_augmented_seed_0.csv", PUBLISHED_FREE / robustness.CORRUPTIONS]
    tested = [pd.read_csv(path) for path in shown]
    assert "({1:.3f}; every film {0:.3f})".format(*(robustness.areas(table).mean() for table in tested)) in readme
    every, half = (100 * table.set_index(["kind", "level"])["value"] for table in tested)
    steps = [plain, ("gaussian", 0.5), darker, turned, paler]
    words = (
        "{:.1f} % of the films as they are ({:.1f}), {:.1f} % at noise 0.5 ({:.1f}), {:.1f} % darkened ({:.1f}), but "
        "{:.1f} % turned ({:.1f}) and {:.1f} % with little contrast ({:.1f})"
    )
    assert words.format(*(number for step in steps for number in (half[step], every[step]))) in readme
    assert {len(table) for table in tables} == {72} and {*tables[0]["n"]} == {475} and "475 validation films" in readme


def test_what_the_readme_says_the_whole_recipe_bears_follows_from_the_published_tables():
    readme = " ".join(README.split())
    places = [FIGURES / "systems" / COVID / evidence.OURS / robustness.CORRUPTIONS]
    places.append(FIGURES / evidence.ROBUSTNESS / "test_augmented_seed_0.csv")
    tables = [pd.read_csv(place) for place in places]
    areas, wrong = ([robustness.areas(table, of).mean() for table in tables] for of in ("value", "ece"))
    assert "areas of {:.3f} (every film augmented: {:.3f})".format(*areas) in readme
    assert "over all corruptions and levels of {:.3f} ({:.3f})".format(*wrong) in readme
    held = [100 * table.set_index(["kind", "level"]).loc[("brighter", 0.2), "conformal_90"] for table in tables]
    assert "on brighter films: by 0.2, {:.1f} % of them hold the truth ({:.1f})".format(*held) in readme
    half, every = (100 * table.set_index(["kind", "level"])["value"] for table in tables)
    steps = [("rotation", 20), ("crop", 0.2), ("darker", 0.35), ("low_contrast", 0.6), ("low_contrast", 0.8)]
    words = (
        "20 degrees {:.1f} % are right ({:.1f}), cropped by a fifth {:.1f} ({:.1f}), darkened by 0.35 {:.1f} "
        "({:.1f}), with 0.6 of the contrast lost {:.1f} ({:.1f}), with 0.8 lost {:.1f} ({:.1f})"
    )
    assert words.format(*(number for step in steps for number in (half[step], every[step]))) in readme


def test_what_the_readme_says_of_the_network_to_be_given_away_follows_from_its_answers():
    said_of_all = answers.read_predictions(PUBLISHED_FREE / answers.PREDICTIONS)
    card = answers.read_card(PUBLISHED_FREE)
    clean = said_of_all[said_of_all["protocol"] == "clean"]
    hit, covid = clean["label"] == clean["predicted"], clean["label"] == "COVID19"
    shares = (hit.mean(), hit[covid].mean(), card["refused"]["clean"]["COVID19"] / covid.sum())
    assert sum(card["licences"]["COVID19"].values()) == 71
    found, readme = [f"{share:.1%}".replace("%", " %") for share in shares], " ".join(README.split())
    told = f"is right on {found[0]} of the clean test films, finds {found[1]} of COVID19 among them, and its check for"
    assert f"{told} pictures that are no films refuses {found[2]} of those" in readme


def test_what_the_readme_says_of_confidence_follows_from_the_published_answers():
    readme = " ".join(README.split())
    worth = confidence.over_seeds(FIGURES).set_index("protocol")
    noisy, clean = (100 * worth.loc[name].drop("seeds") for name in ("test_noise", "clean"))
    error = "from {ece_before:.3f} to {ece:.3f}".format(**noisy / 100)
    assert f"{error}, it decides {noisy['decided']:.1f} % of them and is right on" in readme
    words = (
        "{:.1f} % of those, and of sets made to hold the truth in 90 % of the cases {:.1f} % do, of clean films {:.1f}"
    )
    assert words.format(noisy["decided_accuracy"], noisy["sets_90"], clean["sets_90"]) in readme
    at = 100 * confidence.broken(FIGURES).set_index(["kind", "level"])
    words = "darkened by 0.35 it is right on {accuracy:.1f} % of them, but only {conformal_90:.1f} % of the sets hold"
    assert words.format(**at.loc[("darker", 0.35)]) in readme
    words = "it is right on {accuracy:.1f} % of all films and on {accuracy_90:.1f} % of the nine tenths"
    assert words.format(**at.loc[("rotation", 45)]) in readme


def test_confidence_over_seeds_is_the_mean_of_what_each_seed_is_worth(tmp_path):
    place = tmp_path / evidence.SEEDS / evidence.OURS
    decision = {"temperature": 0.5, "threshold": 0.9, "conformal": {"0.9": [0.7, 0.7, 0.7]}}
    for seed, wrong in enumerate(([], [0, 1, 2])):
        folder = place / f"seed_{seed}"
        folder.mkdir(parents=True)
        said(wrong).to_csv(folder / answers.PREDICTIONS, index=False)
        card = {"trial": "x", "system": "x", "classes": CLASSES, "seed": seed, "decision": decision}
        (folder / "model.json").write_text(json.dumps(card))
    (row,) = confidence.over_seeds(tmp_path).to_dict("records")
    assert row["protocol"] == "clean" and (row["n"], row["seeds"]) == (12, 2)
    assert row["decided"] == 0 and np.isnan(row["decided_accuracy"])
    assert row["sets_90"] == pytest.approx((1 + 9 / 12) / 2) and row["size_90"] == 1
    assert row["ece"] == pytest.approx((0.2 + 0.05) / 2)  # 0.8 sure of what is right in all, and in 9 of 12
    flatter = 0.8**0.5 / (0.8**0.5 + 2 * 0.1**0.5)
    assert row["ece_before"] == pytest.approx((1 - flatter + 0.75 - flatter) / 2)


def test_a_promise_is_broken_where_its_whole_interval_lies_below(tmp_path):
    place = tmp_path / "systems" / COVID / evidence.OURS
    place.mkdir(parents=True)
    held = {"turned": (0.92, 0.89, 0.85, 0.95), "paler": (0.92, 0.91, 0.89, 0.9), "noise": (0.8, 0.9, 0.9, 0.9)}
    rows = [
        {"kind": kind, "level": k, "value": 0.9, "n": 1000, "ece": k / 100, "accuracy_90": 1, "conformal_90": share}
        for kind, shares in held.items()
        for k, share in enumerate(shares)
    ]
    pd.DataFrame(rows).to_csv(place / robustness.CORRUPTIONS, index=False)
    table = confidence.broken(tmp_path)
    assert table["level"].fillna(-1).tolist() == [2, -1, 0] and table["kept"].fillna(-1).tolist() == [1, 3, -1]
    assert table["conformal_90"].tolist() == [0.85, 0.9, 0.8] and table["ece"].tolist() == [0.02, 0.03, 0.0]
    shown = confidence.readable_broken(table)
    assert shown["corruption"].tolist() == ["turned", "noise", "paler"], "what holds to the end comes last"
    assert shown["broken at"].tolist() == ["2", "0", "never"]
    assert shown["holds up to"].tolist() == ["1", "none", "3"]


def test_the_findings_say_what_the_tables_beside_them_say():
    text, metrics_05 = (FIGURES / "findings.md").read_text(), json.loads((FIGURES / "metrics.json").read_text())["05"]
    seeds = evidence.over_seeds(evidence.repeated(FIGURES), set()).set_index(["system", "protocol"])["accuracy"]
    for system in (evidence.SOURCE_FULL, evidence.OURS):
        assert seeds[system, "test_noise"].percent() in text, system
    assert (
        seeds[evidence.OURS, "clean"].percent() in text and seeds[evidence.SOURCE_FULL, "noisy_test"].percent() in text
    )
    verdicts = claims.table(claims.claims(FIGURES, {"05": metrics_05})).query("report == 'A'")["verdict"]
    assert [*verdicts[:2]] == ["reproduced"] * 2 == [*re.findall(r"\((reproduced)\)", text)]
    times = re.search(r"(\d+ of \d+) times", (FIGURES / "evidence.md").read_text())
    assert f"inside the interval of the first {times[1]} times" in text
    means = {row["control"]: f"{row['mean']:.1%}" for row in metrics_05["controls"]}
    told = "mean recall of {whole film} on whole films has {border only} on their borders alone and {16 x 16 pixels} on"
    assert told.format(**means) in text and len(text.splitlines()) == 5


def test_findings_whose_trainings_are_not_there_are_left_out(tmp_path):
    shutil.copytree(FIGURES / arms.FOLDER, tmp_path / arms.FOLDER)
    for name in (evidence.OURS, evidence.SOURCE):
        shutil.copytree(FIGURES / evidence.SEEDS / name, tmp_path / evidence.SEEDS / name)
    for name in (evidence.PAIRS, evidence.FACTS):
        shutil.copyfile(FIGURES / name, tmp_path / name)
    told = json.loads((FIGURES / "metrics.json").read_text())
    del told["05"]["controls"]
    (tmp_path / "metrics.json").write_text(json.dumps(told))
    shutil.copytree(FIGURES / "systems", tmp_path / "systems")
    heads = re.findall(r"^- \*\*([^*]+)\*\*", findings(tmp_path), flags=re.M)
    assert heads == ["Does denoising help?", "Better.", "How sure is that?"]
