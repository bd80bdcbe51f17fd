"""From one file to one answer: read, clean up, classify, calibrate, recognise, then accept, abstain or refuse.

Notebook 06, `pneumo diagnose` and the service use this one path. Nothing in it is random: the same film gets the same
answer, always, whichever films go through the networks beside it.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pneumo_lib import calibration, evaluation, explain, images, models, novelty, runs, runtime
from pneumo_lib.decision import Answer, Decision, Diagnosis, Likeness, decide
from pneumo_lib.engine import Engine
from pneumo_lib.errors import DataError, ImageError, UsageError

PUBLISHED, DEMO = Path("figures"), Path("runs", "demo")
DISCLAIMER = "Research and teaching only, not a medical device."
HANDLINGS = ("none", "denoise")
# Kernels differ with the size of a batch and the engine in the last bits of float32. Answers are rounded, and whatever
# lies so close to where rounding turns that those bits could decide is computed again alone, by PyTorch.
DECIMALS, SCORE_DECIMALS, LARGEST_SCORE = 3, 2, 99.0
DOUBT, SCORE_DOUBT = 2e-6, 1e-5
TOGETHER = 8  # films of many that go through the networks at once
Run = Callable[[Engine, np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Diagnoser:
    """A classifier, the denoiser in front of it, and what was fitted to both on validation films.

    Attributes:
        denoiser: None where the run has none.
        handling: what the classifier was trained with: "denoise" behind the denoiser, "none" without.
        check: tells films from other pictures; None for classifiers that were stored without one.
        denoiser_card: of the denoiser.
    """

    denoiser: nn.Module | None
    classifier: nn.Module
    classes: tuple[str, ...]
    image_size: int
    temperature: float
    threshold: float
    card: dict[str, Any]
    handling: str = "denoise"
    check: novelty.Check | None = None
    denoiser_card: dict[str, Any] | None = None

    @classmethod
    def load(cls, run: str | Path, model: str = "") -> "Diagnoser":
        """A classifier of a run, with the denoiser of that run.

        Args:
            model: as `list_models` names it; by default the pair that the run settled on, or the only one there is.

        Raises:
            DataError: no run there, or a network of it missing, damaged or exchanged.
            UsageError: no model of that name, or several to choose from.
        """
        path = runtime.locate(run)
        names = list_models(path)
        model = model or settled_model(path, names)
        if model not in names and not model.startswith("classifier/"):
            raise UsageError(f"{path} has no model {model!r}; it has {', '.join(names) or 'none'}.")
        if model.startswith("classifier/"):
            saved = runs.load_run(path).load_model("classifier", model.partition("/")[2])
        else:
            saved = runs.load_model(path / model)
        steps, decision = saved.card["preprocessing"], saved.card["decision"]
        _check_classes(saved, steps["image_size"])
        behind = _denoiser(path, steps)
        return cls(
            denoiser=behind.model if behind else None,
            classifier=saved.model,
            classes=tuple(saved.card["classes"]),
            image_size=steps["image_size"],
            temperature=decision["temperature"],
            threshold=decision["threshold"],
            card=saved.card,
            handling="denoise" if steps["denoiser"] else "none",
            check=evaluation.load_check(path / model, saved.card),
            denoiser_card=behind.card if behind else None,
        )

    def diagnose(self, source: str | Path) -> Diagnosis:
        """The answer for one file; a file that cannot be read gives a Diagnosis with status "error"."""
        return next(self.diagnose_all([source]))

    def diagnose_all(self, sources: Iterable[str | Path]) -> Iterator[Diagnosis]:
        """Answers in the order of the files, as `diagnose` gives them; memory does not grow with their number.

        As many threads as there are processors each read some files and answer for them.
        """
        coming = iter(sources)
        parts = iter(lambda: list(islice(coming, TOGETHER)), [])
        yield from chain.from_iterable(runtime.in_threads(self._diagnose, parts, ahead=2))

    def _diagnose(self, sources: Sequence[str | Path]) -> list[Diagnosis]:
        told: list[Diagnosis] = []
        films: list[np.ndarray] = []
        for source in sources:
            try:
                film = images.open_film(source)
            except ImageError as error:
                told.append(Diagnosis(str(source), "error", error=error.code, message=str(error)))
                continue
            told.append(Diagnosis(str(source), "", notes=film.notes))
            films.append(self.shrink(film.pixels))
        answers = iter(self.answer(np.stack(films)) if films else ())
        return [one if one.error else self._told(one, next(answers)) for one in told]

    def _told(self, about: Diagnosis, answer: Answer) -> Diagnosis:
        said = self.decide(answer)
        return replace(
            about,
            status=said.status,
            label=" or ".join(said.candidates),
            confidence=said.confidence,
            probabilities=dict(answer.probabilities) if said.candidates else None,
            likeness=answer.likeness.score if answer.likeness else None,
        )

    def decide(self, answer: Answer, threshold: float | None = None) -> Decision:
        """What is told of an answer; by default at the threshold that was fitted on validation films."""
        bar = self.threshold if threshold is None else threshold
        return decide(answer, bar, cut=self.card["decision"].get("cut"), positive=self.card.get("positive"))

    def answer(self, films: np.ndarray, handling: str = "") -> list[Answer]:
        """What the networks say of films; several threads may ask at once.

        Args:
            films: (N, S, S) uint8, as `shrink` gives them.
            handling: "none" or "denoise"; by default what the classifier was trained with. Whether a picture is a film
                at all is always judged the latter way.

        Raises:
            UsageError: to denoise without a denoiser, or another word.
        """
        handling = handling or self.handling
        if handling not in HANDLINGS or (handling == "denoise" and self.denoiser is None):
            raise UsageError(f"noise handling {handling!r} is not possible with this model.")
        batch = films[:, None].astype(np.float32) / 255
        answers, doubtful = self._answer(batch, handling)
        for row in np.flatnonzero(doubtful):
            answers[row] = self._answer(batch[row : row + 1], handling, Engine.plain)[0][0]
        return answers

    def _answer(self, batch: np.ndarray, handling: str, run: Run = Engine.__call__) -> tuple[list[Answer], np.ndarray]:
        """The answers, and which of them (N,) bool lie so close to a rounding edge that their last bits decide."""
        logits, *look = run(self._engines[handling], batch)
        if self.check and handling != self.handling:
            look = run(self._engines[self.handling], batch)[1:]
        exact = calibration.softmax(logits, self.temperature)
        doubtful = _on_edge(exact, DECIMALS, DOUBT).any(axis=1)
        likenesses: list[Likeness | None] = [None] * len(batch)
        if self.check:
            scores, nearest = self.check(novelty.Look(*look))
            doubtful |= _on_edge(scores, SCORE_DECIMALS, SCORE_DOUBT) & (scores < LARGEST_SCORE)
            rounded = np.minimum(scores, LARGEST_SCORE).round(SCORE_DECIMALS).tolist()
            likenesses = [Likeness(s, self.classes[k]) for s, k in zip(rounded, nearest, strict=True)]
        rows = (dict(zip(self.classes, row, strict=True)) for row in exact.round(DECIMALS).tolist())
        return [Answer(row, likeness) for row, likeness in zip(rows, likenesses, strict=True)], doubtful

    def compile(self) -> None:
        """Answer the same, sooner, to films that come as the classifier was trained. Worth its seconds for hundreds."""
        self._engines[self.handling].compile(self.image_size)

    @cached_property
    def _engines(self) -> dict[str, Engine]:
        """The networks by noise handling."""
        tap = novelty.Tap(copy.deepcopy(self.classifier))  # its hooks must not see what `explain` asks
        chain = {"denoise": Engine(nn.Sequential(self.denoiser, tap))} if self.denoiser else {}
        return chain | {"none": Engine(tap)}

    def shrink(self, pixels: np.ndarray) -> np.ndarray:
        """A film (H, W) in [0, 1] of any size as the data set holds it: (S, S) uint8."""
        return images.to_uint8(images.resize(pixels, self.image_size))

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """A film of any size as the networks take it: (1, 1, S, S) float32, rounded to 8 bits as in training."""
        return torch.from_numpy(self.shrink(pixels))[None, None].float() / 255

    @torch.no_grad()
    def denoise(self, films: torch.Tensor) -> torch.Tensor:
        """(B, 1, S, S) -> (B, 1, S, S): the films cleaned up; as they are where there is no denoiser."""
        return self.denoiser(films) if self.denoiser else films

    def explain(self, pixels: np.ndarray, target: int, handling: str = "") -> explain.CamResult:
        """Grad-CAM of one class on one film: which regions speak for it. One thread at a time."""
        seen = self._seen(pixels, handling)
        return explain.grad_cam(self.classifier, seen, torch.tensor([target]))

    def stages(self) -> tuple[str, ...]:
        """Names of the layers whose maps `feature_maps` gives."""
        return tuple(models.stages(self.classifier))

    def feature_maps(self, pixels: np.ndarray, handling: str = "") -> dict[str, torch.Tensor]:
        """What the stages of the classifier make of one film, (1, C, h, w) each. One thread at a time."""
        return explain.feature_maps(self.classifier, self._seen(pixels, handling))

    def _seen(self, pixels: np.ndarray, handling: str) -> torch.Tensor:
        """A film as the classifier gets it."""
        film = self.prepare(pixels)
        return self.denoise(film) if (handling or self.handling) == "denoise" else film


def list_models(run: str | Path) -> list[str]:
    """The classifiers that a run folder holds, as folders below it: "classifier/NAME" and "systems/DATASET/NAME"."""
    path = runtime.locate(run)
    # A half of a pair is listed, so that loading it says what is missing; a system without weights was only tested.
    found = [*path.glob("classifier/*/model.*"), *path.glob("systems/*/*/model.safetensors")]
    return sorted({file.parent.relative_to(path).as_posix() for file in found})


def default_run() -> Path:
    """The folder to take where nobody names one: the published networks if there are any, else the demo's."""
    return PUBLISHED if list_models(PUBLISHED) else DEMO


def _check_classes(saved: runs.SavedModel, side: int) -> None:
    """DataError where a classifier has another number of outputs than its card has classes."""
    with torch.no_grad():
        outputs = saved.model(torch.zeros(1, 1, side, side)).shape[1]
    if outputs != len(classes := saved.card["classes"]):
        raise DataError(f"the classifier knows {outputs} classes and its card {len(classes)}: {', '.join(classes)}.")


def settled_model(path: Path, names: list[str]) -> str:
    """The model that a run stands for."""
    if (path / "config.json").exists() or not names:
        pair = f"classifier/cnn2_on_{runs.load_run(path).config.denoiser}"
        if pair in names or len(names) != 1:
            return pair
    if len(names) > 1:
        raise UsageError(f"{path} holds several models; choose one of {', '.join(names)} with --model.")
    return names[0]


def _denoiser(path: Path, steps: Mapping[str, Any]) -> runs.SavedModel | None:
    """The denoiser that a classifier was trained behind, or the one that its run has for those who ask for it."""
    if steps["denoiser"]:
        behind = runs.load_run(path).load_model("denoiser", steps["denoiser"])
        if behind.card["sha256"] != steps["denoiser_sha256"]:
            raise DataError(
                f"the classifier in {path} was trained behind another {steps['denoiser']} than the one there now. "
                "Run notebook 03_classifier_training again."
            )
        return behind
    if not (path / "config.json").exists():
        return None
    folder = path / "denoiser" / runs.load_run(path).config.denoiser
    return runs.load_model(folder) if (folder / "model.json").exists() else None


def _on_edge(values: np.ndarray, decimals: int, doubt: float) -> np.ndarray:
    """Where rounding to so many decimals would turn within `doubt`."""
    return np.abs(values * 10**decimals % 1 - 0.5) < doubt * 10**decimals


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
