"""What validation films fixed for a system, as its card holds it: temperature, threshold, conformal cut-offs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumo_lib.errors import DataError


def of_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """What validation films fixed for a system, as its stored predictions need it.

    Args:
        card: of a trial, which stores its probabilities after the temperature; of a classifier of the pipeline, which
            stores them before; or all metrics of a run by notebook, as they are published, for its own classifier.

    Returns:
        What `pipeline.decide` made, the temperature being the one that stored probabilities still need; system, the
        name in tables of predictions; classes, in the order of the cut-offs, or None. Empty where nothing was fixed.
    """
    if "decision" in card.get("03", {}):  # metrics.json
        sets = card.get("06", {}).get("conformal") or [{}]
        return card["03"]["decision"] | {"system": sets[0].get("system"), "classes": None}
    if "decision" not in card:
        return {}
    facts = card["decision"] | {"classes": card.get("classes")}
    if "trial" in card:
        return facts | {"system": card["system"], "temperature": 1.0}
    behind = card.get("preprocessing", {}).get("denoiser")
    return facts | {"system": f"{card.get('architecture')}_on_{behind}"}


def read(path: Path) -> dict[str, Any]:
    """`of_card` of a file: a model.json or a published metrics.json.

    Raises:
        DataError: no such file, nothing of the kind, or it was made before there were conformal sets.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a card: {error}.") from error
    decision = of_card(card) if isinstance(card, dict) else {}
    if not decision:
        raise DataError(f"{path} is no card of a classifier: give its model.json, or a published metrics.json.")
    if not decision.get("conformal"):
        raise DataError(
            f"{path} has no cut-offs for conformal sets: its system was trained before there were any. Train it again, "
            "or give --temperature and --threshold instead."
        )
    return decision
