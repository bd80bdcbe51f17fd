"""What happens to a film that is sent in: read, queued, answered, remembered for a while, saved.

API and pages call a `Clinic` and nothing below it.
"""

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pneumo_lib import images
from pneumo_lib.decision import Answer
from pneumo_lib.errors import ImageError, ServiceError
from pneumo_lib.service import faults, pictures, records
from pneumo_lib.service.catalog import Catalog, Offer
from pneumo_lib.service.history import History, Stored
from pneumo_lib.service.recent import Held, Recent
from pneumo_lib.service.records import Options, Upload
from pneumo_lib.service.settings import Settings, check_threshold
from pneumo_lib.service.worker import Worker

logger = logging.getLogger(__name__)
UNSAVED = ("history_unavailable", "history_outdated", "history_newer")  # an answer is worth having without being kept


@dataclass(frozen=True)
class _Read:
    """A file that was read: what the record says of it, and its grey levels twice."""

    facts: dict[str, Any]
    shown: np.ndarray
    small: np.ndarray


class Clinic:
    """The service without its web: one model catalog, one queue, one history, the recent films."""

    def __init__(self, settings: Settings, catalog: Catalog, history: History, *, threads: int = 0) -> None:
        self.settings, self.catalog, self.history = settings, catalog, history
        self.worker = Worker(settings.queue, settings.batch, threads)
        self.recent = Recent(settings.recent_bytes, settings.recent_seconds)
        self._reading = threading.BoundedSemaphore(os.cpu_count() or 1)  # a large film takes memory while it is read
        self._explaining = threading.Lock()  # see `explain`

    def diagnose(self, uploads: Sequence[Upload], options: Options, request_id: str) -> list[dict[str, Any]]:
        """Records of all files, in their order; a file that cannot be read has one of status "error".

        Raises:
            ServiceError: no file or too many, an impossible option, no model, no place in the queue, no room in the
                history; then nothing was saved.
        """
        if not uploads:
            raise ServiceError("the request holds no file", code="no_file")
        if len(uploads) > self.settings.files:
            raise ServiceError(
                f"{len(uploads)} files in one request; the limit is {self.settings.files}", code="too_many_files"
            )
        offer, options = self._settle(options)
        with self.worker.reserved(len(uploads)):
            begun = [self._begin(upload, offer, options, request_id) for upload in uploads]
            done = [self._finish(*one, offer, options) for one in begun]
        return self._keep(done, options)

    def case(self, id: str) -> dict[str, Any] | None:
        """The record of that id, from the recent ones or the history; None where there is none."""
        held = self.recent.get(id)
        return held.record if held else self.history.get(id)

    def redecide(self, id: str, threshold: float) -> dict[str, Any] | None:
        """The record under another threshold; the history is told, where it holds that record."""
        check_threshold(threshold)
        record = self.case(id)
        if record is None or record["probabilities"] is None:
            return record
        changed = record | records.told(records.answer(record), threshold, self._offer(record))
        if record["saved"]:
            try:
                self.history.update(changed)
            except ServiceError as error:
                if error.code not in UNSAVED:
                    raise
                changed |= {"saved": False}
        self.recent.change(id, changed)
        return changed

    def picture(self, id: str, what: str) -> bytes | None:
        """A PNG of a case: "film", "denoised", "cam/CLASS" or "stage/NAME"; None where it cannot be had (any more)."""
        held, (kind, _, name) = self._held(id), what.partition("/")
        if held is None:
            return None
        if kind == "film" and not name:
            return pictures.png(held.shown)
        offer = self._offer(held.record)
        if offer is None:
            return None
        handling, pixels = held.record["noise_handling"], held.small / np.float32(255)
        with self._explaining:
            if kind == "denoised" and not name and offer.diagnoser.denoiser is not None:
                clean = offer.diagnoser.denoise(offer.diagnoser.prepare(pixels))[0, 0].numpy()
                return pictures.png(pictures.shown(pictures.fitted(clean, held.shown.shape)))
            if kind == "cam" and name in offer.classes and held.record["probabilities"]:
                cam = offer.diagnoser.explain(pixels, offer.classes.index(name), handling).maps[0].numpy()
                return pictures.png(pictures.heat_map(cam, held.shown.shape))
            if kind == "stage" and name in self._stages(offer):
                maps = offer.diagnoser.feature_maps(pixels, handling)[name][0].numpy()
                return pictures.png(pictures.feature_maps(maps))
        return None

    def has_pictures(self, id: str) -> bool:
        """Whether the film of a case is still there."""
        return self._held(id) is not None

    def stages(self, id: str) -> list[str]:
        """Names of the stages whose feature maps can be shown; none when the pictures are gone."""
        held = self._held(id)
        offer = self._offer(held.record) if held else None
        return self._stages(offer) if offer else []

    def delete(self, id: str) -> bool:
        """Forget a case, here and in the history; False where there was none."""
        recent = self.recent.forget(id)
        try:
            return self.history.delete(id) or recent is not None
        except ServiceError:
            if recent is not None and not recent.record["saved"]:
                return True
            raise

    def delete_all(self) -> int:
        """Forget everything; gives the number of records that the history held."""
        count = self.history.delete_all()
        self.recent.clear()
        return count

    def ready(self) -> list[dict[str, Any]]:
        """What is not as it should be, as faults, for people and monitors; see also `is_ready`."""
        found = []
        if self.catalog.problems or not self.catalog.models:
            message = "; ".join(self.catalog.problems) or "the service has no model"
            found.append(faults.fault("model_not_loaded", message).to_dict(""))
        try:
            self.history.check(writes=True)
        except ServiceError as error:
            found.append(faults.of_error(error).to_dict(""))
        return found

    def is_ready(self, problems: Sequence[dict[str, Any]]) -> bool:
        """Whether, with these problems, films are diagnosed and saved all the same.

        A run that could not be loaded is one to tell of, and no reason to send visitors away from the models of others.
        """
        return not problems or bool(self.catalog.models and {p["code"] for p in problems} == {"model_not_loaded"})

    def close(self) -> None:
        """Finish what is in work, then let the history go."""
        self.worker.close()
        self.history.close()

    # ---- steps of `diagnose` ----

    def _settle(self, options: Options) -> tuple[Offer, Options]:
        offer = self.catalog.find(options.model)
        handling = options.noise_handling or offer.noise_handling
        if handling not in offer.handlings:
            allowed = ", ".join(offer.handlings)
            raise ServiceError(f"noise_handling is {handling[:40]!r}; this model offers: {allowed}", code="bad_option")
        threshold = offer.threshold if options.threshold is None else check_threshold(options.threshold)
        return offer, replace(options, noise_handling=handling, threshold=round(threshold, 4))

    def _begin(
        self, upload: Upload, offer: Offer, options: Options, request_id: str
    ) -> tuple[dict[str, Any], _Read | None, Future[Answer] | None]:
        """A record with what is known before the networks answered, the film, and the answer to come."""
        data = upload.stream.read(self.settings.file_bytes + 1)
        record = records.new(upload.name, data, offer, options)
        try:
            read = self._read(data, offer, upload)
        except ImageError as error:
            return record | {"error": faults.of_error(error).to_dict(request_id)}, None, None
        record["file"] |= read.facts
        return record, read, self.worker.submit(offer, options.noise_handling, read.small)

    def _read(self, data: bytes, offer: Offer, upload: Upload) -> _Read:
        limit = self.settings.file_bytes
        if len(data) > limit:
            raise ImageError(
                f"the file has {_size(upload, len(data))} bytes; the limit is {limit:,}", code="too_many_bytes"
            )
        with self._reading:
            film = images.open_film(data, max_pixels=self.settings.pixels)
            height, width = film.pixels.shape
            facts = {"kind": film.kind, "width": width, "height": height, "bits": film.bits}
            facts |= {"notes": list(film.notes), "facts": dict(film.facts)}
            return _Read(facts, pictures.shown(film.pixels), offer.diagnoser.shrink(film.pixels))

    def _finish(
        self, record: dict[str, Any], read: _Read | None, coming: Future[Answer] | None, offer: Offer, options: Options
    ) -> Held:
        if read is None or coming is None:
            return Held(record, np.empty((0, 0), np.uint8), np.empty((0, 0), np.uint8))
        return Held(record | records.told(coming.result(), options.threshold, offer), read.shown, read.small)

    def _keep(self, done: Sequence[Held], options: Options) -> list[dict[str, Any]]:
        """Save what shall be saved in one transaction, remember the rest for a while."""
        good = [held for held in done if held.record["status"] != "error"]
        marks = {"saved": True, "film_kept": options.keep_film}
        if options.save and good:
            try:
                self.history.save(
                    [
                        Stored(held.record | marks, pictures.png(held.shown) if options.keep_film else None)
                        for held in good
                    ]
                )
                done = [replace(h, record=h.record | marks) if h in good else h for h in done]
            except ServiceError as error:
                if error.code not in UNSAVED:
                    raise
                logger.warning("answers were not saved: %s", error.code)
        for held in done:
            self.recent.put(held)
        return [held.record for held in done]

    # ---- what is still there of a case ----

    def _held(self, id: str) -> Held | None:
        held = self.recent.get(id)
        if held:
            return held if held.shown.size else None
        film, record = self.history.film(id), self.history.get(id)
        offer = self._offer(record) if record else None
        if film is None or offer is None:
            return None
        pixels = pictures.from_png(film)
        return Held(record, pixels, offer.diagnoser.shrink(pixels / np.float32(255)))

    def _offer(self, record: dict[str, Any]) -> Offer | None:
        same = (
            o for o in self.catalog.models if (o.id, o.sha256) == (record["model"]["id"], record["model"]["sha256"])
        )
        return next(same, None)

    @staticmethod
    def _stages(offer: Offer) -> list[str]:
        return list(offer.diagnoser.stages())


def _size(upload: Upload, read: int) -> str:
    """How many bytes the file has; where its stream cannot tell, that there are at least those that were read."""
    if upload.stream.seekable():
        return f"{upload.stream.seek(0, os.SEEK_END):,}"
    return f"at least {read:,}"
