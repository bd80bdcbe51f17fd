"""What is told of a classifier's answer: a class, two to choose from, or none at all."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs what begins so


@dataclass(frozen=True)
class Likeness:
    """How far a picture is from the films of training: a score above 1 is none of them; the class nearest to it."""

    score: float
    nearest: str


@dataclass(frozen=True)
class Answer:
    """What the networks say of one film.

    Attributes:
        probabilities: by class, calibrated fractions, rounded to three decimals.
        likeness: None where the classifier has no such check.
    """

    probabilities: Mapping[str, float]
    likeness: Likeness | None


@dataclass(frozen=True)
class Decision:
    """What is told of an answer.

    Attributes:
        status: "ok"; "undecided", confidence below the threshold; "refused", no film of the classifier's kind;
            "unchecked", decided without a check of what the picture is.
        candidates: the class, or the two most probable ones when undecided; none when refused.
        confidence: probability of the most probable class, fraction; 0 when refused.
    """

    status: str
    candidates: tuple[str, ...] = ()
    confidence: float = 0.0


@dataclass(frozen=True)
class Diagnosis:
    """The answer for one file.

    Attributes:
        file: as the caller named it.
        status: as in `Decision`, or "error".
        label: the class; the two most probable ones joined by " or " when undecided; empty when refused or after an
            error.
        confidence: calibrated probability of the most probable class, fraction.
        probabilities: by class, fractions that sum to 1 but for their rounding; None when refused or after an error.
        likeness: score of the check that the picture is a film at all: above 1 it is refused; None without a check.
        notes: what was done to the file on reading.
        error, message: code and text of what was wrong with the file.
    """

    file: str
    status: str
    label: str = ""
    confidence: float = 0.0
    probabilities: dict[str, float] | None = None
    likeness: float | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)

    def to_row(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """One flat CSV row, alike for every status; texts that a spreadsheet would run as a formula are quoted."""
        flat = {k: v for k, v in self.to_dict().items() if k not in ("probabilities", "notes")}
        flat |= {f"p_{name}": (self.probabilities or {}).get(name, "") for name in classes}
        return {k: quoted(v) for k, v in (flat | {"notes": "; ".join(self.notes)}).items()}


def quoted(value: Any) -> Any:
    """The value, with an apostrophe before a text that a spreadsheet would run as a formula."""
    return "'" + value if isinstance(value, str) and value.startswith(FORMULA) else value


def decide(answer: Answer, threshold: float, *, cut: float | None = None, positive: str | None = None) -> Decision:
    """Accept, abstain or refuse.

    Args:
        threshold: confidence that a film needs; a fraction.
        cut, positive: where a finding needs a probability of `cut`, a film between even odds and that cut stays
            undecided.
    """
    if answer.likeness and answer.likeness.score > 1:
        return Decision("refused")
    order = sorted(answer.probabilities, key=answer.probabilities.get, reverse=True)
    confidence = answer.probabilities[order[0]]
    agreed = cut is None or not positive or (answer.probabilities[positive] >= cut) == (order[0] == positive)
    if confidence >= threshold and agreed:
        return Decision("ok" if answer.likeness else "unchecked", (order[0],), confidence)
    return Decision("undecided" if answer.likeness else "unchecked", tuple(order[:2]), confidence)
