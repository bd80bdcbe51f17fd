"""What goes into figures/, and that the README says the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_trials

from pneumo_lib import answers, config, controls, metrics, publish, runs, standings
from pneumo_lib.errors import DataError

ROOT = Path(__file__).parents[1]
ACCURACY = {"system": "cnn2_on_autoencoder", "protocol": "test_noise", "value": 0.945, "low": 0.932, "high": 0.957}
METRICS = {
    "accuracy": [
        ACCURACY | {"n": 1288, "reported": 0.9457},
        ACCURACY | {"protocol": "clean", "n": 7, "reported": None},
    ],
    "distinct": [ACCURACY | {"protocol": "noisy_test", "n": 13, "value": 0.5}],
    "decided": {"value": 0.9, "low": 0.8, "high": 1.0},
    "decided_accuracy": {"value": 0.97, "low": 0.95, "high": 0.99},
    "conformal": [
        {"protocol": name, "wanted": 0.9, "all": {"value": 0.913, "low": 0.9, "high": 0.93}, "size": size}
        for name, size in (("clean", 1.5), ("test_noise", 1.04))
    ],
    "denoising": [{"method": "do nothing", "psnr": 9.09, "psnr_low": 9.0, "psnr_high": 9.2, "ssim": 0.02, "n": 1244}],
}

SHARE = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 3}
ROW = {"system": "cnn5", "dataset": "chest_xray_kermany", "reported": None, "p": 1.0, "image_size": 64, "epochs": 3}
ROW |= {"train_images": 1500, "minutes": 2.0, "preset": "quick", "starting_weights": "none", "best_epoch": 2}
COMPARED = {
    "systems": [ROW | {name: SHARE for name in standings.SCORES}],
    "architectures": [
        {"system": name, "condition": condition, "accuracy": SHARE | {"value": value}}
        for name, condition, value in (("vgg16", "clean", 0.7), ("cnn5", "clean", 0.9), ("cnn5", "noisy", 0.6))
    ],
    "attention": [
        {"variant": "ResNet-50", "verdict": "", "accuracy": SHARE},
        {"variant": "+ channel attention", "verdict": "worse", "accuracy": SHARE},
    ],
    "controls": [{"control": "whole film", "mean": 0.9}, {"control": "border only", "mean": 0.625}],
    "scales": {"architectures": {"image_size": 64, "train_images": 500, "epochs": 0}},
}

ALL = {
    "01": {"splits": {"noisy_test": 66, "test": 1244}, "copies": {"noisy_test": 53, "test": 2}},
    "02": {"films": 120, "psnr": {"autoencoder": 26.1, "Gaussian filter": 25.8}},
    "03": {},
    "04": {"verdict": "It makes no difference."},
    "05": COMPARED,
    "06": METRICS,
}


@pytest.fixture
def run(tmp_path) -> runs.Run:
    run = runs.open_run(tmp_path / "run", config.make("tiny"))
    for name in runs.NOTEBOOKS:
        run.write_metrics(name, ALL[name])
    run.figures.mkdir()
    (run.figures / "01_a.png").write_bytes(b"curve")
    run.film_figures.mkdir()
    (run.film_figures / "film.png").write_bytes(b"patient")
    return run


def test_figures_and_numbers_are_copied_and_films_are_not(run, tmp_path):
    target = tmp_path / "figures"
    target.mkdir()
    (target / "01_old.png").write_bytes(b"of another run")
    for table in (answers.PREDICTIONS, "audit_pairs.csv"):
        runs.write_text(run.path / table, "of every film")
    publish.publish(run, target)
    assert {path.name for path in target.iterdir()} == {
        "01_a.png",
        "metrics.json",
        "results.md",
        "predictions.csv",
        "audit_pairs.csv",
    }
    assert json.loads((target / "metrics.json").read_text())["01"] == ALL["01"]


def test_table_states_interval_n_and_what_was_reported(run, tmp_path):
    table = publish.results_table(METRICS)
    assert "| 94.5% [93.2%, 95.7%] | 1,288 | 94.57% |" in table
    assert table.count("not measured") == 2
    assert "9.09 dB [9.00, 9.20]" in table


def test_findings_are_sentences_with_their_numbers():
    text = publish.results(ALL)
    assert "53 of 66 films of `noisy_test`, 2 of 1,244 films of `test`. On the films" in text
    assert "50.0% of 13 (`autoencoder`)" in text
    assert "Gaussian filter 25.80 dB, autoencoder 26.10 dB" in text
    assert "decides 90.0% of the noisy test films and is right on 97.0% [95.0%, 99.0%]" in text


def test_the_accuracy_of_the_surest_films_is_told_where_it_was_measured():
    assert "surest" not in publish.results(ALL), "metrics from before"
    rows = [
        {"protocol": protocol, "share": share, "accuracy": {"value": value, "low": 0.9, "high": 1.0, "n": 9}}
        for protocol, share, value in (
            ("test_noise", 0.8, 0.989),
            ("test_noise", 0.95, 0.96),
            ("noisy_test", 0.8, 0.91),
        )
    ]
    text = publish.results(ALL | {"06": METRICS | {"coverage": rows}})
    assert (
        "- Right on the films that it is surest of: test + noise, denoised: 98.9% [90.0%, 100.0%] of the 80%, 96.0% "
        "[90.0%, 100.0%] of the 95%; `noisy_test`, denoised: 91.0% [90.0%, 100.0%] of the 80%.\n"
    ) in text
    kept = [line for line in text.splitlines() if "surest" not in line]
    assert kept == publish.results(ALL).splitlines(), "nothing else changes"


def test_findings_of_the_comparison_name_the_best_the_average_and_the_verdicts():
    text = publish.results(ALL)
    assert "2 architectures under one recipe (64 pixels, 500 films), best: clean 90.0% (`cnn5`), noisy 60.0%" in text
    assert "on average: clean 80.0%, noisy 60.0%." in text
    assert "Against ResNet-50 over 3 seeds: + channel attention worse." in text
    (row,) = [line for line in text.splitlines() if "| cnn5 |" in line]
    assert "80.0 % [70.0, 90.0]" in row and "64 px, 1,500 films, 3 epochs (best 2), 2 min, preset quick" in row


def test_what_a_run_did_not_execute_stays_as_it_was_published(run, tmp_path):
    target = tmp_path / "figures"
    publish.publish(run, target)
    (target / "05_earlier.png").write_bytes(b"kept")
    (run.path / "metrics_05.json").unlink()
    run.write_metrics("03", {"new": 1})
    publish.publish(run, target)
    stored = json.loads((target / "metrics.json").read_text())
    assert stored["05"] == COMPARED and stored["03"] == {"new": 1}
    assert (target / "05_earlier.png").exists()


def test_a_run_without_all_notebooks_is_not_published(run, tmp_path):
    (run.path / "metrics_04.json").unlink()
    with pytest.raises(DataError, match="04_ablation"):
        publish.publish(run, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_the_published_table_follows_from_the_published_metrics():
    metrics = json.loads((ROOT / "figures" / "metrics.json").read_text())
    assert publish.results(metrics) == (ROOT / "figures" / "results.md").read_text()


def test_the_readme_shows_the_published_controls():
    told, readme = json.loads((ROOT / "figures" / "metrics.json").read_text())["05"], (ROOT / "README.md").read_text()
    apart = "COVID19 of covid-chestxray-dataset kept apart"
    rows = [row for row in told["controls"] if "kept apart" not in row["control"] or row["control"] == apart]
    assert len(rows) == len(controls.VIEWS) + 2
    for row in rows:
        recalls = [row[name]["value"] for name in ("COVID19", "NORMAL", "PNEUMONIA")]
        assert " | ".join(f"{value:.1%}" for value in [*recalls, row["mean"]]) in readme, row["control"]


def test_the_table_of_systems_follows_from_the_published_answers():
    done = [answers.read(folder) for folder in answers.trained(ROOT / "figures")]
    assert publish.systems_table(done) == (ROOT / "figures" / "systems.md").read_text()
    assert not any("root" in one.card for one in done), "a path of somebody's machine"


# ---- the table of systems -------------------------------------------------------------------------------------------


def answered(wrong: int, **card: object) -> answers.Finished:
    """Ten films of two classes, the first `wrong` of them mistaken."""
    labels = np.arange(10) % 2
    p = np.where(np.arange(10) < wrong, 1 - labels, labels) * 0.8 + 0.1
    return tiny_trials.finished(labels, np.stack([1 - p, p], axis=1), tiny_trials.KERMANY, **card)


def stored(run: Path, wrong: int, name: str) -> answers.Finished:
    """The same in a run folder, as if it had been trained there."""
    one = answered(wrong, system=name)
    folder = run / "systems" / "chest_xray_kermany" / name
    runs.write_card(folder, one.card | {"root": "elsewhere/somebody/films"})
    runs.write_text(folder / "history.csv", "epoch\n1\n")
    runs.write_text(folder / answers.PREDICTIONS, one.predictions.to_csv(index=False))
    return answers.read(folder)


def test_answers_are_published_without_the_folder_of_the_films_and_join_earlier_ones(tmp_path):
    target = tmp_path / "figures"
    for run, one in ((tmp_path / "a", ("cnn3", 4)), (tmp_path / "b", ("cnn5", 2)), (tmp_path / "c", ("cnn3", 1))):
        publish.publish_systems(run, [stored(run, one[1], one[0])], target)
    table = (target / "systems.md").read_text()
    assert "somebody" not in "".join(path.read_text() for path in target.rglob("*.*"))
    assert [path.name for path in answers.trained(target)] == ["cnn3", "cnn5"]
    assert table == publish.systems_table([answered(1), answered(2, system="cnn5")])


def test_folds_of_an_earlier_cross_validation_do_not_stay(tmp_path):
    for run, k in (("a", 3), ("b", 2)):
        done = []
        for number in range(k):
            one = answered(number, system="cnn3", fold={"k": k, "number": number, "repeat": 0})
            folder = tmp_path / run / "folds" / "brain_mri" / "cnn3" / f"repeat_0_fold_{number}"
            runs.write_card(folder, one.card)
            runs.write_text(folder / "history.csv", "epoch\n1\n")
            runs.write_text(folder / answers.PREDICTIONS, one.predictions.to_csv(index=False))
            done.append(answers.read(folder))
        publish.publish_systems(tmp_path / run, done, tmp_path / "figures")
        published = [answers.read(folder) for folder in answers.trained(tmp_path / "figures")]
        assert [one.card["fold"]["k"] for one in published] == k * [k]
    publish.publish_systems(tmp_path / "figures", published, tmp_path / "figures")
    assert len(answers.trained(tmp_path / "figures")) == 2, "what is published may be published again"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


MISTAKES = (np.zeros(10, int), (np.arange(10) < 1).astype(int), (np.arange(10) < 4).astype(int))  # truth, one, other


def test_the_table_of_systems_has_a_row_for_each_with_interval_and_reported_figure():
    head, rule, *rows = publish.systems_table([answered(4, system="cnn5"), answered(1)]).splitlines()
    assert len({line.count("|") for line in (head, rule, *rows)}) == 1 and set(rule) == {"|", "-"}
    first, second = (dict(zip(cells(head), cells(row), strict=True)) for row in rows)
    assert (first["system"], second["system"]) == ("cnn3", "cnn5")
    assert first["data"] == "chest_xray_kermany, n = 10"
    assert (
        first["accuracy"] == metrics.wilson(9, 10).percent() and second["accuracy"] == metrics.wilson(6, 10).percent()
    )
    assert (first["reported"], second["reported"]) == ("85.0%", "97.0%")
    assert first["sensitivity / specificity"] == "100.0% / 80.0%"
    assert (first["p"], second["p"]) == ("–", f"{metrics.mcnemar(*MISTAKES).p:.3f}")
    assert "preset tiny" in first["trained"]


def test_cross_validations_stand_in_a_table_of_their_own():
    folds = [
        answered(i, fold={"k": 2, "number": i, "repeat": 0}, paths=[f"{i}_{j}" for j in range(10)]) for i in (0, 1)
    ]
    alone = publish.systems_table(folds)
    assert alone.count("\n|---") == 1 and "n = 20" in alone and metrics.wilson(19, 20).percent() in alone
    both = publish.systems_table([*folds, answered(2)])
    assert both == publish.systems_table([answered(2)]) + "\n" + alone


def test_folds_of_an_incomplete_repeat_are_not_published():
    assert publish.systems_table([answered(1, fold={"k": 2, "number": 0, "repeat": 0})]) == ""
