"""Mutated films through the web: the reader's own verdict comes back, in a documented shape, and no other file suffers.

`test_fuzz.py` reads such films by themselves; here they take the whole way, to the history and back. The client holds
every answer against the OpenAPI document.
"""

import importlib
import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from service_app import API, results, send

from pneumo_lib import images
from pneumo_lib.errors import ImageError
from pneumo_lib.service import faults

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
mutated_films = importlib.import_module("mutated_films")

SEED, CASES, PER_REQUEST = 7, 300, 18  # 18 mutated films and two good ones fill a request
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # decoders say what they think of the files


@pytest.fixture(scope="module")
def cases() -> list[tuple[bytes, str, tuple[int, ...]]]:
    """Each mutated film, the code of its fault or "film", and its size in pixels."""
    return [(data, *verdict(data)) for data in (mutated_films.make_case(SEED, k).data for k in range(CASES))]


def verdict(data: bytes) -> tuple[str, tuple[int, ...]]:
    try:
        return "film", images.read(data).shape
    except ImageError as error:
        return error.code, ()


def test_the_cases_are_of_every_kind(cases):
    counts = Counter(code for _, code, _ in cases)
    assert counts["film"] > CASES / 10 and len(counts) > 6


def test_each_alone_gets_its_code_or_is_diagnosed(client, cases):
    good = [shape for _, code, shape in cases if code == "film"]
    for k, (data, code, shape) in enumerate(cases):
        response = send(client, data, keep_film="true")
        assert response.status_code == (200 if code == "film" else faults.fault(code, "").status), f"case {k}"
        assert "Secret" not in response.text, f"case {k}"
        if code == "film":
            (record,) = results(response)
            kept(client, record, shape)
        else:
            assert response.json["code"] == code, f"case {k}"
    assert client.get(f"{API}/history").json["total"] == len(good)
    assert client.get(f"{API}/ready").status_code == 200


def test_in_a_batch_no_other_file_suffers(client, clinic, cases, films):
    alone = [results(send(client, film, save="false"))[0]["probabilities"] for film in films[:2]]
    good = []
    for start in range(0, CASES, PER_REQUEST):
        some = cases[start : start + PER_REQUEST]
        first, *middle, last = results(send(client, films[0], *(c[0] for c in some), films[1], keep_film="true"))
        assert [first["probabilities"], last["probabilities"]] == alone and first["saved"] and last["saved"]
        assert [record["error"]["code"] if record["error"] else "film" for record in middle] == [c[1] for c in some]
        assert [record["saved"] for record in middle] == [code == "film" for _, code, _ in some]
        good += [(record, case[2]) for record, case in zip(middle, some, strict=True) if not record["error"]]
    assert clinic.worker._taken == 0, "every place was given back"
    clinic.recent.clear()
    assert client.get(f"{API}/history").json["total"] == len(good) + 2 * -(-CASES // PER_REQUEST)
    for record, shape in good[::10]:
        kept(client, record, shape)


def kept(client, record: dict, shape: tuple[int, ...]) -> None:
    """The film can be had again, at its own size."""
    assert (record["file"]["height"], record["file"]["width"]) == shape and record["film_kept"]
    film = client.get(f"{API}/history/{record['id']}/film")
    assert film.status_code == 200 and np.asarray(Image.open(io.BytesIO(film.data))).shape == shape
