"""What was fixed on validation films: whose it is, and at which temperature its stored probabilities stand."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pneumo_lib import answers, chosen, pipeline
from pneumo_lib.errors import DataError

FIGURES = Path(__file__).parents[1] / "figures"
NOISY = FIGURES / "systems" / "chest_xray_covid" / "resnet18_s2d"
DECISION = {"temperature": 0.8, "threshold": 0.9, "conformal": {"0.9": [0.5, 0.4]}}
TRIAL = {"trial": "abc", "system": "cnn3", "classes": ["N", "P"], "decision": DECISION}
PIPELINE = {"architecture": "cnn2", "classes": ["N", "P"], "preprocessing": {"denoiser": "unet_denoiser"}}


def test_a_trial_stores_calibrated_probabilities_and_a_classifier_of_the_pipeline_does_not():
    one, other = chosen.of_card(TRIAL), chosen.of_card(PIPELINE | {"decision": DECISION})
    assert (one["system"], one["temperature"], one["threshold"]) == ("cnn3", 1.0, 0.9)
    assert other["temperature"] == 0.8 and other["conformal"] == DECISION["conformal"]
    assert other["system"] == pipeline.classifier_name("unet_denoiser")
    assert chosen.of_card({"architecture": "unet_denoiser"}) == {}


def test_the_published_metrics_are_of_the_system_whose_sets_they_tell():
    found = chosen.read(FIGURES / "metrics.json")
    assert found["system"] == "cnn2_on_unet_denoiser"
    published = json.loads((FIGURES / "metrics.json").read_text())
    assert found["temperature"] == published["03"]["decision"]["temperature"]
    own = answers.of_decision(answers.read_predictions(FIGURES / answers.PREDICTIONS), found)
    sets = answers.conformal(own, found)
    assert [cell.to_dict() for cell in sets["all"]] == [row["all"] for row in published["06"]["conformal"]]


def test_the_temperature_is_not_applied_twice_to_published_answers():
    table, found = answers.read_predictions(NOISY / answers.PREDICTIONS), chosen.read(NOISY / "model.json")
    card = json.loads((NOISY / "model.json").read_text())
    assert found["temperature"] == 1.0 != card["decision"]["temperature"]
    ours = answers.conformal(answers.of_decision(table, found), found)
    twice = answers.conformal(table, card["decision"])
    cuts = card["decision"]["conformal"]["0.9"]
    clean = table[table["protocol"] == "clean"]
    by_hand = sum(row[f"p_{row['label']}"] >= cuts[card["classes"].index(row["label"])] for _, row in clean.iterrows())
    (row,) = ours[(ours["protocol"] == "clean") & (ours["wanted"] == 0.9)].to_dict("records")
    assert row["all"].value == by_hand / len(clean)
    assert (ours["size"] != twice["size"]).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as a card"),
        ("| a |", "cannot be read as a card"),
        ("[1]", "is no card of a classifier"),
        ('{"architecture": "unet_denoiser"}', "is no card of a classifier"),
        (json.dumps(TRIAL | {"decision": {"temperature": 1.0, "threshold": 0.5}}), "no cut-offs for conformal sets"),
    ],
)
def test_what_is_no_card_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "model.json"
    if text:
        path.write_text(text)
    with pytest.raises(DataError, match=message) as refused:
        chosen.read(path)
    assert str(path) in str(refused.value)


def test_a_card_of_another_system_or_of_other_classes_is_refused():
    facts = {"path": "a.png", "split": "test", "protocol": "clean", "system": "cnn3", "label": "N", "predicted": "N"}
    table, decision = pd.DataFrame([facts | {"p_N": 0.9, "p_P": 0.1}]), chosen.of_card(TRIAL)
    both = pd.concat([table, table.assign(system="cnn5")])
    assert answers.of_decision(both, decision)["system"].tolist() == ["cnn3"]
    with pytest.raises(DataError, match="card is of cnn3, and the predictions are of cnn5"):
        answers.of_decision(table.assign(system="cnn5"), decision)
    for change in ({"classes": ["P", "N"]}, {"classes": ["N", "P", "C"]}, {"conformal": {"0.9": [0.1] * 3}}):
        with pytest.raises(DataError, match="predictions are of N, P"):
            answers.of_decision(table, decision | change)
