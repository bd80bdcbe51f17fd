"""The card of a data set: counted once, written from small files, and the one in git is what those files say."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_trials
from PIL import Image

from pneumo_lib import data_card, model_card, publish
from pneumo_lib.data import CARDS, scan
from pneumo_lib.data.cards import card_for
from pneumo_lib.data.inventory import inventory, read_inventory
from pneumo_lib.errors import DataError

FIGURES = Path(__file__).parents[1] / "figures"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten films of two classes; one patient has films in both splits, one film is of nobody known, one no film."""
    root, rows = tmp_path / "chest_xray_kermany", []
    for split, n in (("train", 3), ("test", 2)):
        for name in tiny_trials.KERMANY:
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                path = f"{split}/{name}/{i}.png"
                Image.new("L", (64 + 10 * i, 64)).save(root / path)
                facts = {"group": f"p{len(rows)}", "source": "hospital" if i else "paper", "licence": "CC BY 4.0"}
                rows.append({"path": path} | facts)
    rows[0]["group"] = rows[-1]["group"] = "both"
    rows[1]["group"] = rows[1]["licence"] = ""
    pd.DataFrame(rows).to_csv(root / "manifest.csv", index=False)
    return root


def test_films_patients_and_sizes_are_counted(folder):
    (folder / "test" / "NORMAL" / "1.png").write_bytes(b"no film")
    facts = inventory(scan(folder))
    films = pd.DataFrame(facts["films"])
    assert films["films"].sum() == 10 and films["unknown"].sum() == 1
    train = films[(films["split"] == "train") & (films["class"] == "NORMAL")].set_index(["source", "licence"])["films"]
    assert train.to_dict() == {("hospital", "CC BY 4.0"): 1, ("hospital", "unknown"): 1, ("paper", "CC BY 4.0"): 1}
    assert facts["patients"] == {"test": 4, "train": 5} and facts["shared"] == {"test, train": 1}
    assert facts["acquainted"] == ["test/PNEUMONIA/1.png"], "the last film; those of nobody known are not counted"
    assert facts["sizes"]["train"] == {"width": [64, 74, 84], "height": [64, 64, 64]}
    assert facts["sizes"]["test"]["width"] == [64, 64, 74] and facts["unreadable"] == 1
    assert (facts["name"], facts["types"]) == ("chest_xray_kermany", {".png": 10})
    assert str(folder.parent) not in str(facts)


def test_a_split_without_a_readable_film_has_no_sizes(folder):
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"no film")
    facts = inventory(scan(folder))
    assert "test" not in facts["sizes"] and facts["unreadable"] == 4


def test_the_card_is_made_of_the_stored_counts_alone(folder, tmp_path):
    target = tmp_path / "figures"
    assert data_card.write(target) == []
    data_card.store(target, inventory(scan(folder)))
    (target / data_card.FACTS).rename(tmp_path / "kept.json")
    (tmp_path / "kept.json").rename(target / data_card.FACTS)
    assert data_card.write(target) == [target / data_card.CARD]
    text = (target / data_card.CARD).read_text()
    assert "| train | 3 | 3 | 6 |" in text and "| test | 2 | 2 | 4 |" in text
    assert text.index("| train | 3") < text.index("| test | 2"), "in the order in which they are used"
    assert "| train | NORMAL | unknown | 1 |" in text and "| NORMAL | paper | test | 1 |" in text
    assert "1 patient has films in each of test, train." in text and "not known of 1 films" in text
    assert "64 / 74 / 84" in text and "**Copies** were not looked for." in text and "Not measured" in text
    assert all(flaw in text for flaw in CARDS["chest_xray_kermany"].flaws)
    assert not re.search(r"\{\{|\{%|\bNone\b|\bnan\b|Undefined", text)


def test_copies_count_films_and_not_pairs():
    row = {"split_a": "train", "split_b": "test", "path_b": "test/1", "kind": "near"}
    pairs = pd.DataFrame(
        [
            row | {"path_a": "train/1"},
            row | {"path_a": "train/2"},
            row | {"path_a": "train/2", "path_b": "test/2", "kind": "exact"},
            row | {"path_a": "test/3", "split_a": "test", "path_b": "val/1", "split_b": "val"},
            row | {"path_a": "test/4", "split_a": "test", "path_b": "test/5"},
            row | {"path_a": "train/4", "path_b": "val/5", "split_b": "val"},
        ]
    )
    (found,) = data_card.copies(pairs, pd.Series({"train": 9, "test": 5})).to_dict("records")
    assert found == {"split": "test", "films": "5", "exact copy in train": "1", "near copy in train": "2"}


@pytest.mark.parametrize("content", ["{", '{"films": []}'], ids=["damaged", "of an earlier version"])
def test_damaged_counts_say_how_to_make_them(tmp_path, content):
    (tmp_path / data_card.FACTS).write_text(content)
    with pytest.raises(DataError, match=r"data_card\.json cannot be read: .*pneumo cards --data FOLDER"):
        data_card.write(tmp_path)


def test_a_part_of_a_data_set_has_the_card_of_the_whole():
    assert card_for("chest_xray_covid_cc_by") is card_for("chest_xray_covid + noise 0.5") is CARDS["chest_xray_covid"]
    assert card_for("my_films") is None


# ---- what is published ----------------------------------------------------------------------------------------------


def test_the_published_data_card_follows_from_the_files_beside_it():
    assert (FIGURES / data_card.CARD).read_text() == data_card.text(FIGURES)


def test_the_published_counts_are_those_of_the_published_answers():
    films = pd.DataFrame(read_inventory(FIGURES / data_card.FACTS)["films"])
    counted = films.groupby(["split", "class"])["films"].sum()
    said = pd.read_csv(FIGURES / "predictions.csv").drop_duplicates("path").groupby(["split", "label"]).size()
    assert said.to_dict() == counted[list(said.index)].to_dict()


def test_the_published_model_card_follows_from_the_files_beside_it():
    """Without published weights there must be no card that speaks of them."""
    cards = [model_card.text(FIGURES, place) for place in model_card.published(FIGURES)]
    path = FIGURES / model_card.CARD
    assert (path.read_text() if path.exists() else "") == "\n".join(cards)


def test_what_is_published_names_no_folder_and_shows_nobody():
    for place in model_card.published(FIGURES):
        assert {path.name for path in place.iterdir()} <= {
            *("model.json", "model.safetensors", "novelty.safetensors"),
            *("predictions.csv", "corruptions.csv", "history.csv"),
        }
        assert (place / "model.safetensors").stat().st_size < 20e6, "small enough for git"
    assert np.all([path.suffix != ".jpg" for path in FIGURES.rglob("*")])
    assert publish.PAIRS in {path.name for path in FIGURES.iterdir()}
