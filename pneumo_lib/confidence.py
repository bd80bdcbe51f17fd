"""What the confidence of our network is worth over its seeds, and where that breaks, from the published answers."""

from pathlib import Path

import pandas as pd

from pneumo_lib import answers, chosen, evidence, metrics, robustness
from pneumo_lib.systems import COVID

PROMISED = 0.9  # coverage of the sets whose measured one `robustness.corrupted` tells


def over_seeds(figures: Path) -> pd.DataFrame:
    """Calibration, abstention and sets of classes on test films; all of it was fixed on each seed's validation films.

    Args:
        figures: folder with the published answers.

    Returns:
        One row per protocol, means over seeds, fractions: protocol, n, seeds; ece_before and ece, before and after the
        temperature; brier; decided and decided_accuracy at the threshold; surest_80 and so on, the accuracy of that
        share of films, the surest; sets_90 and so on, how many of the sets for that coverage hold the truth, and
        size_90 and so on, the mean number of classes in one.
    """
    said, rows = evidence.repeated(figures), []
    for card in evidence.cards(figures)[evidence.OURS]:
        own = said[(said["system"] == evidence.OURS) & (said["seed"] == card["seed"])]
        decision = chosen.of_card(card)  # for the answers as they are stored: after the temperature
        worth = answers.confidence(own, temperature=1.0, threshold=decision["threshold"]).set_index("protocol")
        before = answers.confidence(own, temperature=1 / card["decision"]["temperature"], threshold=0)
        worth["ece_before"] = before.set_index("protocol")["ece"]
        for name in ("decided", "decided_accuracy"):
            worth[name] = [cell.value for cell in worth[name]]
        surest = answers.at_coverage(own)
        for share, part in surest.groupby("share"):
            worth[f"surest_{100 * share:.0f}"] = [cell.value for cell in part["accuracy"]]
        for wanted, part in answers.conformal(own, decision).groupby("wanted"):
            worth[f"sets_{100 * wanted:.0f}"] = [cell.value for cell in part["all"]]
            worth[f"size_{100 * wanted:.0f}"] = [*part["size"]]
        worth["n"] = own.groupby("protocol")["path"].nunique()
        rows.append(worth.reset_index())
    table = pd.concat(rows).drop(columns="system")
    return table.groupby("protocol", sort=False).mean().assign(seeds=len(rows)).reset_index()


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`over_seeds` as texts, for people."""
    shares = [name.removeprefix("surest_") for name in table if name.startswith("surest_")]
    told = " / ".join(shares)
    cells = {
        "test films": table["protocol"],
        "n": table["n"].map("{:,.0f}".format),
        "calibration error before / after the temperature": _cells(table, "{ece_before:.3f} / {ece:.3f}"),
        "Brier score": _cells(table, "{brier:.3f}"),
        "decides, right on those": _cells(table, "{decided:.1%}, {decided_accuracy:.1%}"),
        f"right on the surest {told} %": _cells(table, " / ".join(f"{{surest_{share}:.1%}}" for share in shares)),
    }
    for name in (column.removeprefix("sets_") for column in table if column.startswith("sets_")):
        text = f"{{sets_{name}:.1%}}, {{size_{name}:.2f}} classes"
        cells[f"sets for {name} %: hold the truth, size"] = _cells(table, text)
    return pd.DataFrame(cells)


def _cells(table: pd.DataFrame, text: str) -> list[str]:
    return [text.format(**row) for row in table.to_dict("records")]


def broken(figures: Path) -> pd.DataFrame:
    """By corruption, the first level at which sets for PROMISED coverage hold the truth less often than that.

    That is where the whole Wilson interval of what they hold lies below it. One seed, test films.

    Returns:
        kind; kept, the last level before (NaN where none); level, or NaN where the promise holds at every level, and
        accuracy, ece, accuracy_90 and conformal_90 there, or at the worst level, as `robustness.corrupted` has them.
    """
    table = pd.read_csv(figures / "systems" / COVID / evidence.OURS / robustness.CORRUPTIONS)
    rows = []
    for kind, part in table.groupby("kind", sort=False):
        held = [metrics.wilson(round(share * n), int(n)).high for share, n in part[["conformal_90", "n"]].to_numpy()]
        # how many levels come before the first that breaks the promise
        kept = next((k for k, high in enumerate(held) if high < PROMISED), len(held))
        at = part.iloc[min(kept, len(part) - 1)]
        facts = {"kind": kind, "kept": part["level"].iloc[kept - 1] if kept else None}
        facts |= {"level": at["level"] if kept < len(part) else None, "accuracy": at["value"]}
        rows.append(facts | {name: at[name] for name in ("ece", "accuracy_90", "conformal_90")})
    return pd.DataFrame(rows).astype({"kept": float, "level": float})


def readable_broken(table: pd.DataFrame) -> pd.DataFrame:
    """`broken` as texts, for people; what holds to the end comes last."""
    ordered = pd.concat([table.dropna(subset="level"), table[table["level"].isna()]])
    cells = {
        "corruption": ordered["kind"],
        "holds up to": ["none" if pd.isna(level) else f"{level:g}" for level in ordered["kept"]],
        "broken at": ["never" if pd.isna(level) else f"{level:g}" for level in ordered["level"]],
        "accuracy there": ordered["accuracy"].map("{:.1%}".format),
        "calibration error": ordered["ece"].map("{:.3f}".format),
        "right on the surest 90 %": ordered["accuracy_90"].map("{:.1%}".format),
        "sets that hold the truth": ordered["conformal_90"].map("{:.1%}".format),
    }
    return pd.DataFrame(cells)
