"""The card of a data set, figures/data_card.md: every number from files beside it, so that no film is needed for it.

Source: the questions of Gebru et al., Datasheets for Datasets, arXiv:1803.09010 (2018).
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from pneumo_lib import publish, runs
from pneumo_lib.data.audit import read_pairs
from pneumo_lib.data.cards import card_for
from pneumo_lib.data.inventory import FACTS, LEARNT, read_inventory

CARD, METRICS = "data_card.md", "metrics.json"
SPLITS = ("train", "val", "test", "noisy_test")  # in this order, others behind them


def store(folder: Path, facts: dict[str, Any]) -> Path:
    """Keep what `data.inventory` counted, in the folder that will hold the card."""
    path = folder / FACTS
    runs.write_text(path, json.dumps(facts, indent=1) + "\n")
    return path


def write(folder: Path) -> list[Path]:
    """Write data_card.md beside the counts of `store`; nothing where there are none."""
    if not (folder / FACTS).exists():
        return []
    runs.write_text(folder / CARD, text(folder))
    return [folder / CARD]


def text(folder: Path) -> str:
    """The card as Markdown.

    Args:
        folder: with data_card.json and, where there are any, audit_pairs.csv and metrics.json.

    Raises:
        DataError: the counts are missing or damaged.
    """
    facts = read_inventory(folder / FACTS)
    films = pd.DataFrame(facts["films"])
    films["split"] = pd.Categorical(films["split"], _ordered(films["split"]), ordered=True)
    n, pairs = films.groupby("split", observed=True)["films"].sum(), folder / publish.PAIRS
    tables = {
        "by_class": _counts(films, ["split"], facts["classes"]),
        "by_source": _grouped(films, ["class", "source", "split"]),
        "by_licence": _grouped(films, ["split", "class", "licence"]),
        "sizes": _sizes(facts["sizes"]),
        "copies": copies(read_pairs(pairs), n) if pairs.exists() else None,
    }
    told = {"facts": facts, "known": card_for(facts["name"]), "total": int(n.sum()), "splits": [*n.index]}
    told |= {"unknown": int(films["unknown"].sum()), "controls": controls(folder, facts["classes"])}
    return publish.fill("data_card.md.j2", **told, **tables)


def copies(pairs: pd.DataFrame, films: pd.Series) -> pd.DataFrame:
    """Of each other split, how many films have an exact or a near copy among those that networks learn from.

    Args:
        pairs: of `data.audit`.
        films: number of films by split.
    """
    rows = []
    for split in (name for name in films.index if name not in LEARNT):
        row = {"split": split, "films": f"{films[split]:,}"}
        for kind in ("exact", "near"):
            found = pairs[pairs["kind"] == kind]
            forward = found["path_a"][(found["split_a"] == split) & found["split_b"].isin(LEARNT)]
            backward = found["path_b"][(found["split_b"] == split) & found["split_a"].isin(LEARNT)]
            row[f"{kind} copy in train"] = f"{len({*forward, *backward}):,}"
        rows.append(row)
    return pd.DataFrame(rows)


def controls(folder: Path, classes: list[str]) -> pd.DataFrame:
    """What one small network made of films without lungs, detail or labels, as notebook 05 measured it.

    Returns:
        A table of texts; empty where it was not measured on these classes.
    """
    path = folder / METRICS
    measured = json.loads(path.read_text()).get("05", {}).get("controls", []) if path.exists() else []
    return pd.DataFrame(
        [
            {"the films": row["control"]}
            | {f"{name} found": f"{row[name]['value']:.1%}" for name in classes}
            | {"mean recall": f"{row['mean']:.1%}"}
            for row in measured
            if set(classes) <= set(row)
        ]
    )


def _ordered(splits: pd.Series) -> list[str]:
    return sorted(splits.unique(), key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def _counts(films: pd.DataFrame, index: list[str], classes: list[str]) -> pd.DataFrame:
    wide = films.pivot_table("films", index, "class", "sum", fill_value=0, observed=True)[classes]
    return wide.assign(all=wide.sum(axis=1)).map("{:,}".format).reset_index()


def _grouped(films: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    return films.groupby(by, observed=True)["films"].sum().map("{:,}".format).reset_index()


def _sizes(sizes: dict[str, dict[str, list[int]]]) -> pd.DataFrame:
    ranges = {
        split: {f"{name}, least / median / most": " / ".join(map(str, values)) for name, values in sides.items()}
        for split, sides in sizes.items()
    }
    return pd.DataFrame(ranges).T.rename_axis("split").reset_index()
