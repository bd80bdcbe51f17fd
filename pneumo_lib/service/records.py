"""The record of one film, in plain JSON types: the same in API, history, export and pages."""

import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO

from pneumo_lib.decision import Answer, Likeness, decide
from pneumo_lib.service.catalog import Offer

NAME_LENGTH = 255
STATUSES = ("ok", "undecided", "refused", "unchecked", "error")


@dataclass(frozen=True)
class Upload:
    """One file as it came: the visitor's name for it, and its bytes still to be read."""

    name: str
    stream: BinaryIO


@dataclass(frozen=True)
class Options:
    """What a visitor chose.

    Attributes:
        model: id of a model; empty takes the default.
        noise_handling: "none", "denoise", or empty for what the model was trained with.
        threshold: fraction; None takes the model's own.
        save, keep_film: whether the answer, and the film with it, goes into the history.
    """

    model: str = ""
    noise_handling: str = ""
    threshold: float | None = None
    save: bool = True
    keep_film: bool = False


def new(name: str, data: bytes, offer: Offer, options: Options) -> dict[str, Any]:
    """The record of a file before anything is known of its content."""
    unknown = {"kind": None, "width": None, "height": None, "bits": None, "notes": [], "facts": {}}
    shown = "".join(c if c.isprintable() else " " for c in name.encode("utf-8", "replace").decode())[:NAME_LENGTH]
    return {
        "id": str(uuid.uuid4()),
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "status": "error",
        "file": {"name": shown, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} | unknown,
        "model": offer.describe(options.noise_handling),
        "noise_handling": options.noise_handling,
        "threshold": options.threshold,
        "label": None,
        "candidates": [],
        "confidence": None,
        "probabilities": None,
        "likeness": None,
        "error": None,
        "saved": False,
        "film_kept": False,
    }


def told(said: Answer, threshold: float, offer: Offer | None) -> dict[str, Any]:
    """The part of a record that says what the film shows."""
    card = offer.card if offer else {"decision": {}}
    decision = decide(said, threshold, cut=card["decision"].get("cut"), positive=card.get("positive"))
    likeness = said.likeness
    return {
        "status": decision.status,
        "threshold": round(threshold, 4),
        "label": decision.candidates[0] if len(decision.candidates) == 1 else None,
        "candidates": list(decision.candidates),
        "confidence": decision.confidence if decision.candidates else None,
        "probabilities": dict(said.probabilities) if decision.candidates else None,
        "likeness": {"score": likeness.score, "cutoff": 1.0, "nearest": likeness.nearest} if likeness else None,
    }


def answer(record: dict[str, Any]) -> Answer:
    """Undoes `told`."""
    found = record["likeness"]
    return Answer(record["probabilities"], Likeness(found["score"], found["nearest"]) if found else None)
