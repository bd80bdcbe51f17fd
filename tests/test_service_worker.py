"""Films that wait at the same time go through a network together, and never films that do not belong together."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from service_app import calling, results, send

from pneumo_lib import images
from pneumo_lib.diagnosis import Diagnoser
from pneumo_lib.service.cases import Clinic

PATIENCE = 60  # seconds that a loaded machine may take
BOTH = ("tiny/cnn2_on_unet_denoiser", "tiny/cnn2_on_autoencoder")


@dataclass
class Spy:
    """What each call of `Diagnoser.answer` got; while held back, the first to come waits and nobody overtakes it."""

    calls: list[tuple[Diagnoser, str, list[bytes]]] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def spy(monkeypatch, clinic) -> Spy:
    """Every call noted; the worker of `clinic`, one thread, is held back in its first."""
    made, answer = Spy(), Diagnoser.answer

    def watched(self: Diagnoser, films: np.ndarray, handling: str = "") -> Any:
        made.calls.append((self, handling, [film.tobytes() for film in films]))
        made.entered.set()
        assert made.go_on.wait(PATIENCE)
        return answer(self, films, handling)

    monkeypatch.setattr(Diagnoser, "answer", watched)
    return made


def crowd(clinic: Clinic, spy: Spy, films: list[bytes], asked: list[dict[str, str]]) -> list[dict]:
    """The records of one request per film, all queued in this order while the first is in work."""
    told: dict[int, dict] = {}

    def ask(k: int) -> None:
        (told[k],) = results(send(calling(clinic), films[k], **asked[k]))

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(len(asked))]
    try:
        for k, thread in enumerate(threads):
            thread.start()
            until(lambda k=k: spy.entered.is_set() and len(clinic.worker._waiting) == k)
    finally:
        spy.go_on.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert len(told) == len(asked)
    return [told[k] for k in range(len(asked))]


def until(ready) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.001)


def small(clinic: Clinic, film: bytes) -> bytes:
    """What a network gets of a film."""
    return clinic.catalog.models[0].diagnoser.shrink(images.read(film)).tobytes()


def test_films_of_separate_requests_go_through_in_one_call(clinic, spy, films):
    told = crowd(clinic, spy, films, [{}] * 8)
    calls = [given for _, _, given in spy.calls]
    assert calls == [[small(clinic, films[0])], [small(clinic, film) for film in films[1:8]]]
    assert len({id(diagnoser) for diagnoser, _, _ in spy.calls}) == 1
    assert len({record["id"] for record in told}) == 8
    alone = [results(send(calling(clinic), film))[0]["probabilities"] for film in films[:8]]
    assert [record["probabilities"] for record in told] == alone, "and each gets its own answer"


def test_no_call_has_more_films_than_a_batch(clinic, spy, films):
    clinic.worker.batch = 3
    crowd(clinic, spy, films, [{}] * 9)
    assert [len(given) for _, _, given in spy.calls] == [1, 3, 3, 2]


@pytest.mark.parametrize("option", ["model", "noise_handling"])
def test_films_of_two_models_or_handlings_never_share_a_call(clinic, spy, films, option):
    one, other = BOTH if option == "model" else ("denoise", "none")
    asked = [{option: name} for name in (one, one, one, other, other, one, other)]
    told = crowd(clinic, spy, films, asked)
    assert [len(given) for _, _, given in spy.calls] == [1, 2, 2, 1, 1]
    chosen = {small(clinic, film): options[option] for film, options in zip(films, asked, strict=False)}
    assert len(chosen) == len(asked), "all films differ"
    models = {id(offer.diagnoser): offer.id for offer in clinic.catalog.models}
    for diagnoser, handling, given in spy.calls:
        used = models[id(diagnoser)] if option == "model" else handling
        assert {chosen[film] for film in given} == {used}
    found = [record["model"]["id"] if option == "model" else record[option] for record in told]
    assert found == [options[option] for options in asked]


def test_waiting_films_are_shared_out_fairly_over_the_threads(clinic, spy, films):
    clinic.worker._threads = [*clinic.worker._threads, *clinic.worker._threads]  # as if there were two
    crowd(clinic, spy, films, [{}] * 7)
    assert [len(given) for _, _, given in spy.calls] == [1, 3, 2, 1], "half of what waits each time"
