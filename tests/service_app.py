"""The diagnosis service around the tiny run, as its tests call it: fixtures for all of them, and a few helpers."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from werkzeug.test import TestResponse

from pneumo_lib.service import catalog as catalogs
from pneumo_lib.service import create_app, openapi
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.catalog import Catalog, Offer
from pneumo_lib.service.history import History
from pneumo_lib.service.settings import Settings

API = "/api/v1"


@pytest.fixture(scope="session")
def strict_offers(tiny_run) -> Catalog:
    """The models of the tiny run."""
    return catalogs.load([tiny_run.path])


@pytest.fixture(scope="session")
def offers(strict_offers) -> Catalog:
    """The same, refusing no picture: the films of that run are too few to learn what a film looks like."""
    return Catalog(tuple(posing(offer, offer.id, check=1000) for offer in strict_offers.models), strict_offers.problems)


def posing(offer: Offer, id: str, *, check: float | None = 1, alone: bool = False, **changes: Any) -> Offer:
    """The same network as another model of the service.

    Args:
        check: how many times as far from a film a picture may lie; None leaves the model without that check.
        alone: without a denoiser.
    """
    diagnoser = offer.diagnoser
    own = replace(diagnoser.check, scales=diagnoser.check.scales * check) if check else None
    parts = {"denoiser": None, "denoiser_card": None, "handling": "none"} if alone else {}
    return replace(offer, id=id, diagnoser=replace(diagnoser, check=own, **parts), **changes)


@pytest.fixture(scope="session")
def films(tiny_images) -> list[bytes]:
    """The test films, as files."""
    table = tiny_images.table
    return [(tiny_images.root / path).read_bytes() for path in table["path"][table["split"] == "test"]]


@pytest.fixture(scope="session")
def blank_history(tmp_path_factory) -> Path:
    """A history with tables and nothing in them, to be copied: to make one takes longer than most tests."""
    path = tmp_path_factory.mktemp("history") / "blank.sqlite3"
    with closing(History(f"sqlite:///{path}")) as made:
        made.upgrade()
    return path


@pytest.fixture
def settings(blank_history, tmp_path) -> Settings:
    """With a history of its own, empty."""
    return Settings(history=f"sqlite:///{shutil.copy(blank_history, tmp_path / 'history.sqlite3')}")


@pytest.fixture
def clinic(settings, offers) -> Iterator[Clinic]:
    """A service without its web."""
    with closing(Clinic(settings, offers, History(settings.history), threads=1)) as made:
        yield made
    made.recent.clear()


@pytest.fixture
def client(clinic) -> FlaskClient:
    """Calls the service without a network, and holds its answers against its document."""
    return calling(clinic)


def calling(clinic: Clinic) -> FlaskClient:
    """A client of that clinic."""
    app = create_app(clinic)
    app.test_client_class = _Holding
    return app.test_client()


def send(client: FlaskClient, *uploads: bytes | tuple[bytes, str], **fields: Any) -> TestResponse:
    """Ask for the diagnosis of files, each its content or content and name."""
    named = [upload if isinstance(upload, tuple) else (upload, "film.png") for upload in uploads]
    files = [(BytesIO(content), name) for content, name in named]
    return client.post(f"{API}/diagnose", data=fields | {"files": files}, content_type="multipart/form-data")


def results(response: TestResponse) -> list[dict[str, Any]]:
    """The records of an answer that must be a good one."""
    assert response.status_code == 200, response.text
    return response.json["results"]


class _Holding(FlaskClient):
    def open(self, *args: Any, **options: Any) -> TestResponse:
        response = super().open(*args, **options)
        response.get_data()
        if response.request.path.startswith(f"{API}/") and response.request.method != "OPTIONS":
            hold(self.application, response)
        return response


def hold(app: Flask, response: TestResponse) -> None:
    """Assert that an answer of the API is one that the document describes, and that faults have their one shape."""
    clinic, asked = app.extensions["pneumo"], response.request
    document = openapi.document(clinic.settings, [offer.id for offer in clinic.catalog.models])
    known = _answer_of(document, asked.path.removeprefix(API), asked.method, response.status_code)
    assert known, f"{asked.method} {asked.path} may not answer {response.status_code}: {response.text}"
    required = {name for name, header in known["headers"].items() if header.get("required")}
    assert not required - set(response.headers.keys())
    if "content" not in known or asked.method == "HEAD":
        assert response.data == b""
        return
    ((kind, content),) = known["content"].items()
    assert response.mimetype == kind
    if kind == "application/json":
        faults = list(Draft202012Validator({**document, **content["schema"]}).iter_errors(response.json))
        assert not faults, faults
    if response.status_code >= 400 and "code" in response.json:
        assert list(response.json) == ["code", "message", "hint", "request_id"]
        assert response.json["request_id"] == response.headers["X-Request-Id"]


def _answer_of(document: dict[str, Any], path: str, method: str, status: int) -> dict[str, Any] | None:
    """What the document says of an answer; what leads nowhere has the general faults only."""
    described = next((paths for form, paths in document["paths"].items() if _fits(form.split("/"), path)), {})
    operation = described.get("get" if method == "HEAD" else method.lower())
    answers = operation["responses"] if operation else {}
    general = document["components"]["responses"]
    if not operation and status in (401, 403, 404, 405):
        return general[f"Fault{status}"]
    found = answers.get(str(status), {})
    return general[found["$ref"].rpartition("/")[2]] if "$ref" in found else found or None


def _fits(form: Sequence[str], path: str) -> bool:
    parts = path.split("/")
    return len(form) == len(parts) and all(a == b or a.startswith("{") for a, b in zip(form, parts, strict=True))
