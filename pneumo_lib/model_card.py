"""The card of a published network, figures/model_card.md: every number from its answers and from files beside them.

Source: the sections of Mitchell et al., Model Cards for Model Reporting, arXiv:1810.03993 (2019).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pneumo_lib import answers, data_card, evaluation, evidence, metrics, pipeline, publish, robustness, runs
from pneumo_lib.config import Config
from pneumo_lib.data.audit import read_pairs
from pneumo_lib.data.cards import card_for

CARD = "model_card.md"
SCORES = {"recall": "recall", "precision": "precision", "specificity": "specificity", "f1": "F1", "auc": "AUC"}


def write(folder: Path) -> list[Path]:
    """Write model_card.md for the networks whose weights a published folder holds; without any there is no card."""
    if not (networks := published(folder)):
        (folder / CARD).unlink(missing_ok=True)
        return []
    runs.write_text(folder / CARD, "\n".join(text(folder, place) for place in networks))
    return [folder / CARD]


def published(folder: Path) -> list[Path]:
    """The systems of a published folder whose weights are there, in the order of their names."""
    return sorted(path.parent for path in folder.glob("systems/*/*/model.safetensors"))


def text(folder: Path, place: Path) -> str:
    """The card of one network as Markdown.

    Args:
        folder: the published one, with audit_pairs.csv, data_card.json and metrics.json where there are any.
        place: the network's own folder below it: model.json, predictions.csv, and corruptions.csv where there is one.

    Raises:
        DataError: its answers are missing or damaged.
    """
    card, said = answers.read_card(place), answers.read_predictions(place / answers.PREDICTIONS)
    worse = place / robustness.CORRUPTIONS
    without, known = _known(folder)
    facts = {
        "card": card,
        "name": place.relative_to(folder).as_posix(),
        "known": card_for(card["dataset"]),
        "megabytes": (place / "model.safetensors").stat().st_size / 1e6,
        "protocols": _protocols(card, said, without, known),
        "by_class": {name: _by_class(said[said["protocol"] == name], card["classes"]) for name in _names(said)},
        "without": without,
        "worth": _worth(said, card["decision"]["threshold"]),
        "refused": _refused(said, card),
        "sets": _sets(said, card["decision"]),
        "corruptions": robustness.readable(pd.read_csv(worse)) if worse.exists() else None,
        "terms": _terms(card),
        "controls": data_card.controls(folder, card["classes"]),
        "training": training(card),
        "data_card": data_card.CARD if (folder / data_card.FACTS).exists() else "",
    }
    return publish.fill("model_card.md.j2", **facts)


def training(card: dict[str, Any]) -> str:
    """The command that trains a system as its card says."""
    scale, noise = card.get("scale", {}), card["noise"]
    options = {name: scale.get(name) for name in ("image_size", "epochs", "batch_size")}
    if card["preset"] != "full":  # shorter presets have these of themselves
        options = {}
    if noise["strength"] not in (0.0, Config.sigma):
        options["sigma"] = noise["strength"]
    if card["seed"] != Config.seed:
        options["seed"] = card["seed"]
    told = "".join(f" -p {name}={value:g}" for name, value in options.items() if value)
    return f"pneumo train {card['system']} --preset {card['preset']} --data FOLDER{told} --run RUN"


def _names(said: pd.DataFrame) -> Sequence[str]:
    return said["protocol"].unique().tolist()


def _known(folder: Path) -> tuple[str, set[str]]:
    """Test films that the audit, and where films were counted their patients, connect with training: what to call them
    ("" where nothing was looked for), and their paths."""
    if not (folder / evidence.PAIRS).exists():
        return "", set()
    if (folder / data_card.FACTS).exists():
        return "copies or known patients", evidence.known_films(folder)
    return "copies", pipeline.copies(read_pairs(folder / evidence.PAIRS))


def _protocols(card: dict[str, Any], said: pd.DataFrame, without: str, known: set[str]) -> pd.DataFrame:
    """One row per protocol: which films, how many of each class, accuracy, and that of films not known."""
    shown = {one["name"]: _shown(one, card) for one in card["protocols"]}
    apart = pipeline.without(said, known)
    rows = []
    for name in _names(said):
        films = said[said["protocol"] == name]
        n = films["label"].value_counts()
        row = {"protocol": f"`{name}`", "films": shown.get(name, name), "n": f"{len(films):,}"}
        row |= {"accuracy": _accuracy(films), "always the commonest class": f"{n.max() / len(films):.1%}"}
        if without:
            row[f"without {without}"] = _accuracy(apart[apart["protocol"] == name])
        rows.append(row)
    return pd.DataFrame(rows)


def _shown(protocol: dict[str, Any], card: dict[str, Any]) -> str:
    noise = f" + {protocol['kind'] or card['noise']['kind']} noise {protocol['strength']:g}"
    return f"`{protocol['split']}`" + (noise if protocol["strength"] else " as it is")


def _accuracy(films: pd.DataFrame) -> str:
    if films.empty:
        return "no film"
    (row,) = evaluation.accuracies(films).to_dict("records")
    estimate = metrics.Estimate(**{name: row[name] for name in ("value", "low", "high", "n")})
    return f"{estimate.percent()}, n = {estimate.n:,}"


def _by_class(said: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    scores = metrics.classification_table(*answers.arrays(said, tuple(classes)), classes, seed=0)
    columns = {title: [cell.text() for cell in scores[name]] for name, title in SCORES.items()}
    return pd.DataFrame({"class": scores.index, "n": scores["support"].map("{:,}".format).to_numpy()} | columns)


def _worth(said: pd.DataFrame, threshold: float) -> pd.DataFrame:
    table = answers.confidence(said, temperature=1.0, threshold=threshold)  # the stored ones are calibrated already
    columns = {"protocol": [f"`{name}`" for name in table["protocol"]]}
    columns |= {
        "calibration error": table["ece"].map("{:.3f}".format),
        "Brier score": table["brier"].map("{:.3f}".format),
    }
    columns |= {"decided": [cell.percent() for cell in table["decided"]]}
    return pd.DataFrame(columns | {"right, of the decided": [cell.percent() for cell in table["decided_accuracy"]]})


def _refused(said: pd.DataFrame, card: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for name, counts in card.get("refused", {}).items():
        n = said.loc[said["protocol"] == name, "label"].value_counts()
        shares = {of: metrics.wilson(found, int(n.get(of, 0))).percent() for of, found in counts.items()}
        rows.append({"protocol": f"`{name}`"} | shares)
    return pd.DataFrame(rows)


def _sets(said: pd.DataFrame, decision: dict[str, Any]) -> pd.DataFrame:
    if "conformal" not in decision:
        return pd.DataFrame()
    table = answers.conformal(said, decision | {"temperature": 1.0})
    columns = {"protocol": [f"`{name}`" for name in table["protocol"]]}
    columns |= {"wanted": table["wanted"].map("{:.0%}".format), "held": [cell.percent() for cell in table["all"]]}
    return pd.DataFrame(columns | {"classes in a set": table["size"].map("{:.2f}".format)})


def _terms(card: dict[str, Any]) -> pd.DataFrame:
    rows = [
        {"class": name, "licence": licence, "films": f"{n:,}"}
        for name, counts in card.get("licences", {}).items()
        for licence, n in counts.items()
    ]
    return pd.DataFrame(rows, columns=["class", "licence", "films"])
