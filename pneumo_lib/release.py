"""A network that is given away: weights small enough for git, tested as they are, and the terms of its films.

Weights are rounded to float16, which halves them; what is published was said by the rounded network. `runs.load_model`
reads them into a float32 network without another rounding.
"""

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pneumo_lib import answers, evaluation, pipeline, processes, runs, trials
from pneumo_lib.answers import Finished
from pneumo_lib.data import ImageSet
from pneumo_lib.data.licences import FREE, allowed, licences_of
from pneumo_lib.errors import DataError, UsageError
from pneumo_lib.steps import Films

WEIGHTS, HISTORY = "model.safetensors", "history.csv"


def release(
    source: Path, place: Path, images: ImageSet, *, names: Sequence[str] = FREE, films_name: str = ""
) -> Finished:
    """Put a trained system where it is published: rounded weights, its check, its answers, history and card.

    Temperature and threshold stay as validation films fixed them for the trained network. The check that tells films
    from other pictures is fitted anew, to the rounded network and to films as each protocol shows them. The card says
    what rounding changed, how many test films the check refuses, how many films of which licence the network was made
    of, and no folder of any machine.

    Args:
        source: folder of a system under a run, with its weights.
        place: folder to make; one that is there is replaced once the new one is whole.
        images: the films that it was trained on, split as they were; their test films are opened.
        names: licences that its films may have, as `data.licences.allowed` understands them.
        films_name: what the card calls the films; by default the name of their folder.

    Raises:
        DataError: other films than the card counts, films of other licences or none, weights that float16 cannot hold,
            a system behind a denoiser.
        UsageError: several processes.
    """
    if processes.count() > 1:
        raise UsageError("A network is published by one process; start this command without torchrun or its like.")
    saved = runs.load_model(source, classes=images.classes)
    terms = _terms(source, saved.card, images, names)
    with _replacing(place) as half:
        if (source / HISTORY).exists():
            shutil.copyfile(source / HISTORY, half / HISTORY)
        rounded = _rounded(half, saved)
        trials.test(half, images, rounded)
        told = {"films": films_name or images.root.name, "licences": terms} | _check(half, rounded, images)
        runs.write_card(half, rounded.card | told | {"rounding": _changed(saved, images, half)})
    return answers.read(place)


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with their floats rounded to float16; a DataError names those that it cannot hold."""
    small = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    if bad := [name for name, value in small.items() if not torch.isfinite(value).all()]:
        raise DataError(
            f"{', '.join(bad)} holds numbers beyond {torch.finfo(torch.float16).max:g}, the largest of float16; such "
            "weights cannot be published rounded. Train with weight decay, or a lower learning rate."
        )
    return small


def _drawn(card: dict[str, Any], images: ImageSet, split: str, *, as_many_as: str = "") -> Films:
    """The films of a split that a system's card speaks of."""
    return pipeline.films(images, split).draw(card["scale"][f"{as_many_as or split}_images"], seed=card["seed"])


def _terms(source: Path, card: dict[str, Any], images: ImageSet, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many films of train and val, by class and licence, a network was made of."""
    if card["preprocessing"]["denoiser"] or card["fold"]:
        raise DataError(
            f"{source} cannot be published: it is one fold of a cross-validation, or was trained behind a denoiser "
            "that is not stored with it. Publish a system that stands for itself."
        )
    paths = []
    for split in ("train", "val"):
        found, said = _drawn(card, images, split).keys, card[f"{split}_images"]
        if len(found) != said:
            raise DataError(
                f"{source / 'model.json'} speaks of {said} films in {split}, and {images.root} gives {len(found)}. "
                "Name the folder that it was trained on with --data."
            )
        paths += found
    labels = images.table.set_index("path")["label"].loc[paths]
    pairs = Counter(zip((images.classes[k] for k in labels), licences_of(images.root, paths), strict=True))
    _check_terms(pairs, names)
    return {name: {terms: n for (of, terms), n in sorted(pairs.items()) if of == name} for name in images.classes}


def _check_terms(pairs: Counter[tuple[str, str]], names: Sequence[str]) -> None:
    others = Counter({pair: n for pair, n in sorted(pairs.items()) if not allowed(pair[1], names)})
    if others:
        raise DataError(
            f"{others.total()} of the {pairs.total()} films that this network was made of are not under "
            f"{' or '.join(names)}: {', '.join(f'{n} of {of} under {terms}' for (of, terms), n in others.items())}. "
            "Train on a folder that `pneumo data select` made, or allow these terms with --licence."
        )


def _rounded(half: Path, saved: runs.SavedModel) -> runs.SavedModel:
    """The network as whoever loads it will have it."""
    card = {name: value for name, value in saved.card.items() if name != "root"}
    runs.save_weights(half / WEIGHTS, halved(saved.model.state_dict()))
    told = {"precision": "float16", "sha256": runs.sha256(half / WEIGHTS), "trained_sha256": card["sha256"]}
    runs.write_card(half, card | told)
    return runs.load_model(half)


def _check(half: Path, rounded: runs.SavedModel, images: ImageSet) -> dict[str, Any]:
    """Fit and store the check; what the card says of it and of the test films that it refuses."""
    model, card, refused = rounded.model, rounded.card, {}
    check = evaluation.fit_check(
        model, _drawn(card, images, "train"), _drawn(card, images, "val"), pipeline.views(card)
    )
    for protocol in (pipeline.Protocol(**one) for one in card["protocols"]):
        films = _drawn(card, images, protocol.split, as_many_as="test")
        found = evaluation.refused(check, model, films, pipeline.shown(protocol, card))
        refused[protocol.name] = {name: int(found[films.labels == k].sum()) for k, name in enumerate(images.classes)}
    return {"novelty": evaluation.store_check(half, check), "refused": refused}


def _changed(saved: runs.SavedModel, images: ImageSet, half: Path) -> dict[str, Any]:
    """What rounding changed in the answers, each film under each protocol counted."""
    said = [trials.say(pipeline.Protocol(**one), images, saved) for one in saved.card["protocols"]]
    before, after = pd.concat(said, ignore_index=True), answers.read_predictions(half / answers.PREDICTIONS)
    apart = (before.filter(regex="^p_") - after.filter(regex="^p_")).abs().to_numpy()
    turned = int((before["predicted"] != after["predicted"]).sum())
    return {"answers": len(after), "turned": turned, "largest": float(apart.max())}


@contextlib.contextmanager
def _replacing(place: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `place` once the block ends without an error."""
    place.parent.mkdir(parents=True, exist_ok=True)
    around = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        (around / "new").mkdir()
        yield around / "new"
        if place.exists():
            place.rename(around / "old")
        runs.move_folder(around / "new", place)
    finally:
        shutil.rmtree(around, ignore_errors=True)
