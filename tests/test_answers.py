"""Tables of predictions: what is read back, what is refused, and that published numbers follow from them."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pneumo_lib import answers, evaluation, evidence, metrics, pipeline
from pneumo_lib.data import audit
from pneumo_lib.errors import DataError

FIGURES = Path(__file__).parents[1] / "figures"
ROW = {"path": "a.png", "split": "test", "protocol": "clean", "system": "cnn2", "label": "NORMAL", "predicted": "NA"}
ROWS = [
    ROW | {"p_NORMAL": 0.25, "p_NA": 0.75},
    ROW | {"path": "b.png", "predicted": "NORMAL", "p_NORMAL": 1, "p_NA": 0},
]


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "predictions.csv"


def test_a_table_is_read_as_it_was_written(file):
    pd.DataFrame(ROWS).to_csv(file, index=False)
    table = answers.read_predictions(file)
    assert table["predicted"].tolist() == ["NA", "NORMAL"], "a class may be called NA"
    assert evaluation.accuracies(table)[["value", "n"]].to_numpy().tolist() == [[0.5, 2]]
    (pair,), (scores,) = zip(*answers.by_class(table).items(), strict=True)
    assert pair == ("cnn2", "clean") and scores.loc["NORMAL", "recall"].value == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns=["system", "label"]), r"has no column system, label"),
        (lambda table: table.drop(columns="p_NA"), r"speaks of NA, for which it has no column p_NA"),
        (lambda table: table.assign(p_NA=[0.75, 0.5]), r"row 3: b\.png has no probabilities that add up to 1"),
        (lambda table: table.assign(p_NA=["much", 0]), r"row 2: a\.png"),
        (lambda table: table.assign(p_NORMAL=[-0.5, 1], p_NA=[1.5, 0]), r"row 2"),
        (lambda table: table[[]], r"no table of predictions|cannot be read"),
    ],
)
def test_what_is_no_table_of_predictions_is_refused_by_name(file, change, message):
    change(pd.DataFrame(ROWS)).to_csv(file, index=False)
    with pytest.raises(DataError, match=message) as refused:
        answers.read_predictions(file)
    assert str(file) in str(refused.value)


def test_a_table_that_is_not_there_or_binary(file):
    with pytest.raises(DataError, match="cannot be read"):
        answers.read_predictions(file)
    file.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(DataError, match="predictions"):
        answers.read_predictions(file)


def test_the_published_accuracies_follow_from_the_published_predictions():
    found = evaluation.accuracies(answers.read_predictions(FIGURES / answers.PREDICTIONS))
    told = json.loads((FIGURES / "metrics.json").read_text())["06"]["accuracy"]
    assert len(found) == len(told) == 6
    for row, published in zip(found.to_dict("records"), told, strict=True):
        assert {name: row[name] for name in ("system", "protocol", "value", "low", "high", "n")} == {
            name: published[name] for name in ("system", "protocol", "value", "low", "high", "n")
        }


def test_the_published_claims_on_confidence_follow_from_the_published_predictions():
    metrics_of = json.loads((FIGURES / "metrics.json").read_text())
    decision, told = metrics_of["03"]["decision"], metrics_of["06"]
    table = answers.read_predictions(FIGURES / answers.PREDICTIONS)
    found = answers.confidence(table, temperature=decision["temperature"], threshold=decision["threshold"])
    (row,) = found[(found["system"] == "cnn2_on_unet_denoiser") & (found["protocol"] == "test_noise")].to_dict(
        "records"
    )
    # Sums of exponentials differ in their last digit from one processor to the next.
    assert {"before": row["ece_before"], "after": row["ece"]} == pytest.approx(told["ece"], rel=1e-12)
    assert row["decided"].to_dict() == told["decided"]
    assert row["decided_accuracy"].to_dict() == told["decided_accuracy"]


def test_the_published_conformal_coverages_follow_from_the_published_predictions():
    metrics_of = json.loads((FIGURES / "metrics.json").read_text())
    table = answers.read_predictions(FIGURES / answers.PREDICTIONS)
    own = table[table["system"] == "cnn2_on_unet_denoiser"]
    found = answers.conformal(own, metrics_of["03"]["decision"]).to_dict("records")
    told = metrics_of["06"]["conformal"]
    assert len(found) == len(told) == 3 * len(pipeline.COVERAGES)
    for row, published in zip(found, told, strict=True):
        plain = {name: cell.to_dict() if hasattr(cell, "to_dict") else cell for name, cell in row.items()}
        assert plain == published


def test_sets_are_told_for_each_protocol_and_wanted_coverage():
    rows = [*ROWS, ROWS[0] | {"label": "NA", "protocol": "noisy"}]
    decision = {"temperature": 1.0, "conformal": {"0.9": [0.3, 0.5], "0.95": [0.2, 0.0]}}
    found = answers.conformal(pd.DataFrame(rows), decision).to_dict("records")
    assert [(row["protocol"], row["wanted"]) for row in found] == [
        *(("clean", 0.9), ("clean", 0.95)),
        *(("noisy", 0.9), ("noisy", 0.95)),
    ]
    # Clean: both films are NORMAL; the sets are {NA}, {NORMAL} and then {NORMAL, NA} twice.
    assert [(row["all"].value, row["NORMAL"].value, row["size"], row["single"].value) for row in found[:2]] == [
        (0.5, 0.5, 1.0, 1.0),
        (1.0, 1.0, 2.0, 0.0),
    ]
    assert found[2]["NA"].value == found[2]["all"].value == 1.0 and found[2]["NORMAL"].n == 0


def test_the_surest_films_are_told_for_each_protocol_and_the_cut_decides_what_is_sure():
    # NA needs 0.6 here: the film at 0.55 was answered NORMAL, with the least confidence of all.
    facts = [("a", "NA", "NA", 0.9), ("b", "NORMAL", "NORMAL", 0.2), ("c", "NA", "NORMAL", 0.55)]
    rows = [
        ROW | {"path": path, "label": label, "predicted": said, "p_NORMAL": 1 - p, "p_NA": p}
        for path, label, said, p in [*facts, ("d", "NORMAL", "NORMAL", 0.3)]
    ]
    table = pd.DataFrame([*rows, *(row | {"protocol": "noisy"} for row in rows[2:3])])
    found = answers.at_coverage(table, shares=(0.25, 0.75, 1.0))
    assert found["protocol"].tolist() == ["clean"] * 3 + ["noisy"] * 3
    assert [(row["share"], row["accuracy"]) for row in found[:3].to_dict("records")] == [
        (0.25, metrics.wilson(1, 1)),
        (0.75, metrics.wilson(3, 3)),
        (1.0, metrics.wilson(3, 4)),
    ]
    assert set(found["covered"][3:]) == {metrics.wilson(1, 1)} and set(found["accuracy"][3:]) == {metrics.wilson(0, 1)}


def test_the_surest_of_the_published_films_are_right_more_often_and_all_of_them_as_often_as_published():
    table = answers.read_predictions(FIGURES / answers.PREDICTIONS)
    found = answers.at_coverage(table, shares=(*answers.SHARES, 1.0))
    wide = found.assign(value=[cell.value for cell in found["accuracy"]]).pivot(
        index=["system", "protocol"], columns="share", values="value"
    )
    published = evaluation.accuracies(table).set_index(["system", "protocol"])["value"]
    assert len(wide) == 6 and (wide[1.0] == published.loc[wide.index]).all()
    large = wide[wide.index.get_level_values("protocol") != "noisy_test"]
    assert (large[0.8] > large[0.9]).all() and (large[0.9] > large[0.95]).all() and (large[0.95] > large[1.0]).all()
    assert all(cell.value >= share for cell, share in zip(found["covered"], found["share"], strict=True))


def test_systems_are_compared_on_the_films_that_both_answered_for():
    def rows(system, labels, answers, protocol="clean"):
        facts = {"system": system, "protocol": protocol}
        return [
            ROW | facts | {"path": f"{k}.png", "label": label, "predicted": said}
            for k, (label, said) in enumerate(zip(labels, answers, strict=True))
        ]

    truth = ["NA", "NA", "NORMAL", "NORMAL"]
    table = pd.DataFrame(
        rows("a", truth, truth)
        + rows("b", truth[:3], ["NORMAL", "NA", "NA"])
        + rows("a", truth[:1], truth[:1], "test_noise")
    )
    (row,) = answers.disagreements(table).to_dict("records")
    assert (row["protocol"], row["first"], row["second"]) == ("clean", "a", "b"), "alone there is nothing to compare"
    assert (row["only_first"], row["only_second"], row["p"], row["difference"].n) == (2, 0, 0.5, 3)
    with pytest.raises(DataError, match=r"a answers for 0\.png twice under clean"):
        answers.disagreements(pd.concat([table, table]))


def test_comparisons_and_accuracies_of_the_published_predictions_agree():
    table = answers.read_predictions(FIGURES / answers.PREDICTIONS)
    compared = answers.disagreements(table).set_index("protocol")
    assert len(compared) == 3 and (compared["only_first"] + compared["only_second"] > 0).all()
    accuracy = evaluation.accuracies(table).set_index(["protocol", "system"])["value"]
    for protocol, row in compared.iterrows():
        expected = accuracy[protocol, row["first"]] - accuracy[protocol, row["second"]]
        assert row["difference"].value == pytest.approx(expected)


def test_what_the_readme_says_of_our_network_for_noisy_films_follows_from_its_published_answers():
    own = FIGURES / "systems" / "chest_xray_covid" / "resnet18_s2d"
    both = pd.concat([answers.read_predictions(path / answers.PREDICTIONS) for path in (FIGURES, own)])
    assert answers.read_predictions(own / answers.PREDICTIONS).equals(
        answers.read_predictions(FIGURES / evidence.SEEDS / evidence.OURS / "seed_0" / answers.PREDICTIONS)
    ), "the row is seed 0 of the three"
    compared = answers.disagreements(both)
    pair = compared[(compared["first"] == "cnn2_on_unet_denoiser") & (compared["second"] == "resnet18_s2d")]
    p = pair.set_index("protocol")["p"]
    table = pd.read_csv(own / "corruptions.csv").set_index(["kind", "level"])["value"]
    lost = 100 * (table.xs(0.0, level="level").reindex(table.index, level="kind") - table)
    worst = [("gaussian", 1.0), ("low_resolution", 15.0), ("rotation", 45.0), ("crop", 0.5), ("low_contrast", 0.8)]
    readme = (FIGURES.parent / "README.md").read_text()
    told = " ".join(readme[readme.index("- **Noisy films") : readme.index("- **Brain MRI**")].split())
    assert all(f" {lost[step]:.1f}" in told or f"({lost[step]:.1f}" in told for step in worst)
    assert lost[[("salt_pepper", 0.5), ("jpeg", 97.0)]].max() < 0.5 and "cost next to nothing" in told
    assert lost[[("rotation", 20.0), ("crop", 0.2)]].max() < 1.5
    behind = both[(both["system"] == "cnn2_on_unet_denoiser") & (both["protocol"] == "noisy_test")]
    right = 100 * (behind["label"] == behind["predicted"]).mean()
    words = f"has {right:.1f} % (McNemar p = {p['noisy_test']:.3f}; at noise 0.5 and on clean films "
    assert f"{words}{p['test_noise']:.3f} and {p['clean']:.3f})" in told and p.max() < 0.05


def test_what_the_readme_says_the_network_to_be_given_away_bears_follows_from_its_published_table():
    place = FIGURES / "systems" / "chest_xray_covid_free" / "resnet18_s2d" / "corruptions.csv"
    table = pd.read_csv(place).set_index(["kind", "level"])["value"]
    told = {("gaussian", 1.0): "(91.2 %", ("salt_pepper", 0.5): "(93.9 %)", ("jpeg", 97.0): "(93.4 %)"}
    told |= {("rotation", 45.0): "on 29.8 %", ("crop", 0.5): "on 51.8 %", ("low_contrast", 0.8): "on 6.6 %"}
    readme = " ".join((FIGURES.parent / "README.md").read_text().split())
    for step, words in told.items():
        assert f"{100 * table[step]:.1f} %" in words and words in readme, step


def test_the_published_accuracies_without_known_films_follow_from_the_published_pairs_and_counts():
    table = answers.read_predictions(FIGURES / answers.PREDICTIONS)
    distinct = pipeline.without(table, evidence.known_films(FIGURES))
    told = json.loads((FIGURES / "metrics.json").read_text())
    assert evaluation.accuracies(distinct).to_dict("records") == told["06"]["distinct"]
    alone = pipeline.without(table, pipeline.copies(audit.read_pairs(FIGURES / evidence.PAIRS)))
    lost = table.groupby("protocol")["path"].nunique() - alone.groupby("protocol")["path"].nunique()
    assert lost[["noisy_test", "clean"]].tolist() == [told["01"]["copies"][split] for split in ("noisy_test", "test")]


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot be read"), ("a,b\n1,2\n", "no column path_a, path_b, split_a, split_b")]
)
def test_what_is_no_table_of_pairs_is_refused(tmp_path, text, message):
    if text:
        (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        audit.read_pairs(tmp_path / "pairs.csv")
