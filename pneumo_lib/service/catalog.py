"""The models that a service offers: every classifier of the run folders it was given."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_lib import model_card, runtime
from pneumo_lib.data import CARDS
from pneumo_lib.diagnosis import HANDLINGS, Diagnoser, list_models, settled_model
from pneumo_lib.errors import PneumoError, ServiceError

logger = logging.getLogger(__name__)
CHEST = "chest X-ray"


@dataclass(frozen=True)
class Offer:
    """One model of the service.

    Attributes:
        id: run folder and model, for example "demo/cnn2_on_unet_denoiser"; no other model of the service has it.
        category: "chest X-ray", "CT" or "MRI".
        dataset: what it was trained on.
        phantom: trained on drawings: its answers say nothing about real films.
        papers: its model card, Markdown; empty for a network that was never published.
    """

    id: str
    title: str
    category: str
    dataset: str
    phantom: bool
    diagnoser: Diagnoser
    papers: str = ""

    @property
    def card(self) -> dict[str, Any]:
        """The classifier's model.json."""
        return self.diagnoser.card

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the label index."""
        return self.diagnoser.classes

    @property
    def threshold(self) -> float:
        """Confidence below which a film stays undecided, from validation films; a fraction."""
        return self.diagnoser.threshold

    @property
    def noise_handling(self) -> str:
        """What the classifier was trained with: "none" or "denoise"."""
        return self.diagnoser.handling

    @property
    def handlings(self) -> tuple[str, ...]:
        """What a visitor can choose from."""
        return HANDLINGS if self.diagnoser.denoiser is not None else HANDLINGS[:1]

    @property
    def denoiser(self) -> str | None:
        """Architecture of the denoiser, None where the run has none."""
        return self.diagnoser.denoiser_card["architecture"] if self.diagnoser.denoiser_card else None

    @property
    def sha256(self) -> str:
        """Hash of the classifier's weights."""
        return self.card["sha256"]

    def describe(self, handling: str) -> dict[str, Any]:
        """The part of a record that says who answered."""
        used = handling == "denoise" and self.diagnoser.denoiser_card
        return {
            "id": self.id,
            "name": self.card["architecture"],
            "title": self.title,
            "category": self.category,
            "sha256": self.sha256,
            "denoiser": self.denoiser if used else None,
            "denoiser_sha256": self.diagnoser.denoiser_card["sha256"] if used else None,
            "phantom": self.phantom,
        }


@dataclass(frozen=True)
class Catalog:
    """The models on offer, the default first, and what kept others from being loaded."""

    models: tuple[Offer, ...] = ()
    problems: tuple[str, ...] = field(default=())

    def find(self, id: str = "") -> Offer:
        """The model of that id, or the default.

        Raises:
            ServiceError: there is none of that id, or none at all.
        """
        if not self.models:
            raise ServiceError("; ".join(self.problems) or "the service has no model", code="model_not_loaded")
        for offer in self.models:
            if id in ("", offer.id):
                return offer
        raise ServiceError(f"there is no model {id[:80]!r} here", code="unknown_model")

    def compile(self) -> None:
        """Have the models answer sooner, one after the other; they answer meanwhile, too."""
        for offer in self.models:
            try:
                offer.diagnoser.compile()
            except Exception:  # it answers all the same
                logger.warning("model %s could not be compiled and answers more slowly", offer.id, exc_info=True)


def load(folders: Sequence[str | Path]) -> Catalog:
    """Every classifier of these run folders; one that cannot be used is named in `problems` and left out.

    A folder that is given twice counts once. Of folders of one name the first keeps it, and the next are numbered in
    the order they were given, "demo" and "demo-2": to tell them apart by where they lie would show visitors the folders
    of this machine.
    """
    offers, problems = [], []
    for path, called in _called(folders).items():
        names = list_models(path)
        if not names:
            problems.append(f"{called} holds no trained classifier")
        for name in _default_first(path, names):
            try:
                offers.append(_offer(path, name, called))
            except (PneumoError, OSError, KeyError, ValueError, TypeError) as error:
                logger.warning("model %s/%s was left out: %s", called, name, error)
                told = str(error).replace(f"{path}/", "").replace(str(path), called)  # visitors see no folders
                problems.append(f"{called}/{name} cannot be used ({told})")
    return Catalog(_told_apart(offers), tuple(problems))


def _called(folders: Sequence[str | Path]) -> dict[Path, str]:
    """The folders, each once, and what ids call them: their own name, or with a number where another has it already."""
    paths: dict[Path, Path] = {}
    for folder in folders:
        path = runtime.locate(folder)
        paths.setdefault(path.resolve(), path)
    own, called = {path.name for path in paths.values()}, dict[Path, str]()
    for path in paths.values():
        numbered = (f"{path.name}-{k}" for k in count(2))
        taken = called.values()
        free = path.name if path.name not in taken else next(n for n in numbered if n not in own and n not in taken)
        called[path] = free
    return called


def _told_apart(offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """The same models; a title that several have, as those of one recipe do, gets the id behind it."""
    often = Counter(offer.title for offer in offers)
    return tuple(replace(o, title=f"{o.title} ({o.id})") if often[o.title] > 1 else o for o in offers)


def _default_first(path: Path, names: list[str]) -> list[str]:
    try:
        first = settled_model(path, names)
    except PneumoError:
        first = ""
    return sorted(names, key=lambda name: name != first)


def _offer(path: Path, name: str, called: str) -> Offer:
    diagnoser = Diagnoser.load(path, name)
    diagnoser.answer(np.zeros((1, diagnoser.image_size, diagnoser.image_size), np.uint8))  # a first film costs the most
    dataset = diagnoser.card.get("dataset") or diagnoser.card["trained_on"]
    known, short = CARDS.get(dataset), name.partition("/")[2]
    system, behind = diagnoser.card.get("system", diagnoser.card["architecture"]), diagnoser.denoiser_card
    own = f" behind {behind['architecture']}" if behind and diagnoser.handling == "denoise" else ""
    return Offer(
        id=f"{called}/{short}",
        title=f"{system}{own}, trained on {'drawings' if dataset.startswith('phantom') else dataset}",
        category=known.modality if known else CHEST,
        dataset=dataset,
        phantom=dataset.startswith("phantom"),
        diagnoser=diagnoser,
        papers=papers.read_text("utf-8") if (papers := path / model_card.CARD).exists() else "",
    )
