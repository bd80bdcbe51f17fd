"""Tables of predictions: what is read back, what is refused, and that published numbers follow from them."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pneumo_lib import answers, evaluation, pipeline
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
    (pair,), (scores,) = zip(*pipeline.by_class(table).items(), strict=True)
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
