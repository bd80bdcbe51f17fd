"""From one file to one answer: read, clean up, classify, calibrate, accept or abstain.

Notebook 06, `pneumo diagnose` and any service use this one path. Nothing in it is random: the same file gets the same
answer, always.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pneumo_lib import calibration, explain, images, runs
from pneumo_lib.errors import DataError, ImageError

DISCLAIMER = "Research and teaching only, not a medical device."
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs what begins so


@dataclass(frozen=True)
class Diagnosis:
    """The answer for one file.

    Attributes:
        file: as the caller named it.
        status: "ok", "undecided" (no class reaches the threshold) or "error".
        label: the class; the two most probable ones joined by " or " when undecided; empty after an error.
        confidence: calibrated probability of the most probable class, fraction.
        probabilities: by class, fractions that sum to 1.
        notes: what was done to the file on reading.
        error, message: code and text of what was wrong with the file.
    """

    file: str
    status: str
    label: str = ""
    confidence: float = 0.0
    probabilities: dict[str, float] | None = None
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
        flat |= {"notes": "; ".join(self.notes)}
        return {k: "'" + v if isinstance(v, str) and v.startswith(FORMULA) else v for k, v in flat.items()}


@dataclass(frozen=True)
class Diagnoser:
    """A denoiser, a classifier behind it, and the calibration that notebook 03 stored with them."""

    denoiser: nn.Module | None
    classifier: nn.Module
    classes: tuple[str, ...]
    image_size: int
    temperature: float
    threshold: float
    card: dict[str, Any]

    @classmethod
    def load(cls, run: str | Path) -> "Diagnoser":
        """The pair that a run settled on.

        Raises:
            DataError: no run there, or a network of it missing, damaged or exchanged.
        """
        opened = runs.load_run(run)
        saved = opened.load_model("classifier", f"cnn2_on_{opened.config.denoiser}")
        steps = saved.card["preprocessing"]
        denoiser = opened.load_model("denoiser", steps["denoiser"])
        if denoiser.card["sha256"] != steps["denoiser_sha256"]:
            raise DataError(
                f"the classifier in {run} was trained behind another {steps['denoiser']} than the one there now. "
                "Run notebook 03_classifier_training again."
            )
        decision = saved.card["decision"]
        return cls(
            denoiser=denoiser.model,
            classifier=saved.model,
            classes=tuple(saved.card["classes"]),
            image_size=steps["image_size"],
            temperature=decision["temperature"],
            threshold=decision["threshold"],
            card=saved.card,
        )

    def diagnose(self, source: str | Path) -> Diagnosis:
        """The answer for one file; a file that cannot be read gives a Diagnosis with status "error"."""
        try:
            film = images.open_film(source)
        except ImageError as error:
            return Diagnosis(str(source), "error", error=error.code, message=str(error))
        probabilities = calibration.softmax(self.logits(film.pixels)[None], self.temperature)[0]
        order = np.argsort(-probabilities, kind="stable")
        confidence, names = float(probabilities[order[0]]), [self.classes[k] for k in order]
        sure = confidence >= self.threshold
        return Diagnosis(
            file=str(source),
            status="ok" if sure else "undecided",
            label=names[0] if sure else f"{names[0]} or {names[1]}",
            confidence=confidence,
            probabilities={name: float(p) for name, p in zip(self.classes, probabilities, strict=True)},
            notes=film.notes,
        )

    def diagnose_all(self, sources: Iterable[str | Path]) -> Iterator[Diagnosis]:
        """Answers one by one, in order; memory does not grow with their number."""
        return (self.diagnose(source) for source in sources)

    @torch.no_grad()
    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W) float32 in [0, 1] -> (C,) float32, in float32 throughout so that every machine decides alike."""
        return self.classifier(self.denoise(self.prepare(pixels)))[0].numpy()

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """A film of any size as the networks take it: (1, 1, S, S) float32, rounded to 8 bits as in training."""
        small = images.to_uint8(images.resize(pixels, self.image_size))
        return torch.from_numpy(small)[None, None].float() / 255

    @torch.no_grad()
    def denoise(self, film: torch.Tensor) -> torch.Tensor:
        """(1, 1, S, S) -> (1, 1, S, S): the film as the classifier sees it."""
        return film if self.denoiser is None else self.denoiser(film)

    def explain(self, pixels: np.ndarray, target: int) -> explain.CamResult:
        """Grad-CAM of one class on one film: which regions speak for it."""
        seen = self.denoise(self.prepare(pixels))
        return explain.grad_cam(self.classifier, seen, torch.tensor([target]))


def list_films(path: str | Path) -> list[Path]:
    """The file itself, or all files below a folder in sorted order, hidden files and folders left out.

    Raises:
        DataError: no such path, or an empty folder.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give a JPEG, PNG or DICOM file, or a folder of them.")
    names = (p.relative_to(path) for p in path.rglob("*") if p.is_file())
    found = sorted(path / name for name in names if not any(part.startswith(".") for part in name.parts))
    if not found:
        raise DataError(f"{path} holds no files; give a JPEG, PNG or DICOM file, or a folder of them.")
    return found
