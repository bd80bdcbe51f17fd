"""The OpenAPI document and the service hold each other to their word; what is in the document is also tried out."""

import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.specs.openapi import definitions
from schemathesis.specs.openapi.checks import negative_data_rejection
from service_app import API, results, send

from pneumo_lib import images
from pneumo_lib.service import create_app, faults, openapi
from pneumo_lib.service.settings import Settings

TOKEN = "a-token"
MODELS = ["tiny/cnn2_on_unet_denoiser", "tiny/cnn2_on_autoencoder"]


@pytest.fixture
def document(client):
    return client.get(f"{API}/openapi.json").json


# ---- the document ---------------------------------------------------------------------------------------------------


def test_the_document_is_openapi(document):
    assert document["openapi"].startswith("3.1.")
    definitions.OPENAPI_31_VALIDATOR.validate(document)
    with pytest.raises(Exception, match="info"):
        definitions.OPENAPI_31_VALIDATOR.validate({name: document[name] for name in document if name != "info"})


def test_the_document_lists_the_routes_and_no_others(client, document):
    served = set()
    for rule in client.application.url_map.iter_rules():
        if rule.rule.startswith(f"{API}/"):
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule.removeprefix(API))
            served |= {(path, method.lower()) for method in rule.methods - {"HEAD", "OPTIONS"}}
    assert served == {(path, method) for path, item in document["paths"].items() for method in item}
    assert document["servers"] == [{"url": API}]


def test_the_document_knows_every_fault_under_its_status_and_no_other(document):
    codes = document["components"]["schemas"]["Error"]["properties"]["code"]["enum"]
    assert len(codes) == len(set(codes)) and set(codes) == set(faults.CODES)
    listed = {}
    for name, answer in document["components"]["responses"].items():
        known = answer["content"]["application/json"]["schema"]["properties"]["code"]["enum"]
        listed |= dict.fromkeys(known, int(name.removeprefix("Fault")))
    assert listed == {code: faults.fault(code, "").status for code in codes}
    assert set(images.HINTS) - set(codes) == {"missing", "directory", "unreadable"}, "those of paths"


def test_the_document_tells_the_limits_and_the_models(document):
    schema = document["paths"]["/diagnose"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["properties"]["model"]["enum"] == ["", *MODELS]
    said = document["paths"]["/diagnose"]["post"]["description"]
    assert "At most 20 files" in said and "16,777,216 bytes" in said and "40,000,000" in said
    assert "not a medical device" in document["info"]["description"]


def test_every_operation_has_a_name_of_its_own(document):
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names)) == 10


def test_a_method_that_is_not_listed_gets_405_and_what_is(client, document):
    for path, item in document["paths"].items():
        for method in {"get", "post", "put", "patch", "delete", "trace"} - set(item):
            response = client.open(API + path.replace("{id}", "none"), method=method.upper())
            assert response.status_code == 405 and response.json["code"] == "method_not_allowed"
            allowed = {name.strip().lower() for name in response.headers["Allow"].split(",")}
            assert allowed - {"head", "options"} == set(item)


def test_the_holding_client_can_fail(client, films, monkeypatch):
    record = results(send(client, films[0]))[0]
    described = openapi._schemas

    def without_status():
        schemas = described()
        schemas["Record"]["properties"]["status"] = {"enum": ["refused"]}
        return schemas

    monkeypatch.setattr(openapi, "_schemas", without_status)
    with pytest.raises(AssertionError, match="refused"):
        client.get(f"{API}/history/{record['id']}")


# ---- tried out ------------------------------------------------------------------------------------------------------


def picture(side: int) -> bytes:
    stream = BytesIO()
    Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def served(environ, start_response):
    """The application of the test that runs; schemathesis makes its cases before there is one."""
    return served.app(environ, start_response)


# What is no film is refused though the document cannot say so; test_service_api is about those.
schemathesis.openapi.format("binary", st.sampled_from([picture(side) for side in (32, 48)]))
schema = schemathesis.openapi.from_dict(openapi.document(Settings(history="sqlite:///unused"), MODELS))
schema.app = served
guarded = schemathesis.openapi.from_dict(openapi.document(Settings(history="sqlite:///unused", token=TOKEN), MODELS))
guarded.app = served

EFFORT = hypothesis_settings(
    max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.fixture
def app(clinic):
    served.app = create_app(clinic)
    return served.app


def test_what_is_tried_out_is_what_is_served(document):
    assert schema.raw_schema == document


def unfit(case) -> list:
    """Checks that do not fit a case: too many files are refused with 413, which schemathesis does not count as such,
    and a part of a form without a file name is no file, so that a list of them may be longer than it looks."""
    return [negative_data_rejection] if case.path == "/diagnose" else []


@pytest.mark.slow
@pytest.mark.usefixtures("app")
@schema.parametrize()
@seed(4)
@EFFORT
def test_schemathesis_finds_nothing(case):
    case.call_and_validate(excluded_checks=unfit(case))


@pytest.mark.slow
@pytest.mark.usefixtures("app")
def test_schemathesis_finds_nothing_in_sequences_of_requests():
    machine = schema.as_state_machine()
    effort = hypothesis_settings(EFFORT, max_examples=12, stateful_step_count=6, phases=[Phase.generate])
    machine.run(settings=effort)


@pytest.mark.slow
@guarded.parametrize()
@seed(4)
@hypothesis_settings(EFFORT, max_examples=5)
def test_schemathesis_finds_no_way_around_the_token(case, app, clinic):
    clinic.settings = replace(clinic.settings, token=TOKEN)
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=unfit(case))
