"""Who may ask the service what, from which page, under which name; and what it never tells."""

import logging
import re
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from urllib.parse import quote

import pytest
from service_app import API, calling, results, send

from pneumo_lib.errors import UsageError
from pneumo_lib.service import create_app, security
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.history import History, Search
from pneumo_lib.service.settings import LOOPBACK
from pneumo_lib.service.settings import settings as settle

TOKEN = "a token, kept well: ß"
SECRET, NAME = "secret-of-nobody", "ward-7.png"


@pytest.fixture
def guarded(clinic, settings):
    """A service with a token, and its client."""
    clinic.settings = replace(settings, token=TOKEN)
    return calling(clinic)


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.encode().decode('latin-1')}"}  # as WSGI servers hand bytes over


def routes(app) -> list[tuple[str, str]]:
    """Method and path of everything that the application answers, with something in the place of each variable."""
    found = []
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:any\((?P<first>\w+)[^)]*\):)?[^>]+>", lambda part: part["first"] or "none", rule.rule)
        found += [(method, path) for method in sorted(rule.methods - {"HEAD", "OPTIONS"})]
    return found


# ---- headers --------------------------------------------------------------------------------------------------------

ANSWERS = {
    "a page": ("GET", "/", 200),
    "a picture, a script, a style": ("GET", "/static/service.css", 200),
    "the styles of others": ("GET", "/bootstrap/static/css/bootstrap.min.css", 200),
    "JSON": ("GET", f"{API}/models", 200),
    "a redirect": ("POST", "/history/delete", 303),
    "nothing but a status": ("OPTIONS", f"{API}/models", 200),
    "a page that is not there": ("GET", "/none", 404),
    "an address of the API that is not there": ("GET", f"{API}/none", 404),
    "a method that is not there": ("PATCH", f"{API}/models", 405),
    "a form that is none": ("POST", f"{API}/diagnose", 415),
    "a switch of language": ("GET", "/language/zh", 303),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_every_kind_of_answer_carries_the_headers(client, what):
    method, path, status = ANSWERS[what]
    response = client.open(path, method=method)
    assert response.status_code == status
    policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "form-action")} == {"'self'"}
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["Referrer-Policy"] == "same-origin"
    assert ("no-store" in response.headers.get("Cache-Control", "")) == ("static" not in path)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])
    assert not [name for name in dict(response.headers) if name.startswith("Access-Control")], "no other site may read"


def test_no_two_answers_have_one_request_id(client):
    ids = {client.get(f"{API}/health").headers["X-Request-Id"] for _ in range(20)}
    assert len(ids) == 20
    assert client.get(f"{API}/health", headers={"X-Request-Id": "mine"}).headers["X-Request-Id"] != "mine"


# ---- the name under which the service is called ---------------------------------------------------------------------

OURS = ["localhost", "localhost:8000", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:65535", "[::1]", "[::1]:8000"]
OTHERS = ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example:8000", "localhost@evil"]
OTHERS += [
    "evil.example#localhost",
    "127.0.0.2",
    "0.0.0.0",
    "192.168.0.7:8000",
    "[::2]:8000",
    "[::1",
    "::1",
    "a..b",
    "..",
]
OTHERS += [
    "x" * 300,
    "bad host",
    "localhost:abc",
    "localhost:",
    "",
    "é",
    "\u2603".encode().decode("latin-1"),
    "%6cocalhost",
]


@pytest.mark.parametrize("host", OURS)
def test_without_a_token_this_machine_is_answered(client, host):
    assert client.get(f"{API}/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", [f"{API}/health", "/", "/none", "/static/service.css"])
@pytest.mark.parametrize("host", OTHERS)
def test_without_a_token_no_other_name_is_answered(client, caplog, host, path):
    response = client.get(path, headers={"Host": host})
    assert response.status_code == 403, "or a page of that name could read the history once its name leads here"
    assert response.headers["Content-Security-Policy"] == security.POLICY
    assert not caplog.records, "strangers cannot fill the log"


def test_with_a_token_any_name_will_do(guarded):
    assert guarded.get(f"{API}/models", headers={"Host": "films.example", **bearer()}).status_code == 200


# ---- other sites' pages ---------------------------------------------------------------------------------------------

FOREIGN = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "nonsense"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://localhost:81"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://evil.example@localhost:80"},
    {"Origin": "http://[::1"},
    {"Origin": "localhost"},
]
OWN = [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": "http://localhost"}]
OWN += [{"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}]


@pytest.mark.parametrize("headers", FOREIGN)
def test_no_other_sites_page_changes_anything(client, clinic, films, headers):
    results(send(client, films[0]))
    changing = [(method, path) for method, path in routes(client.application) if method not in ("GET", "HEAD")]
    assert len(changing) >= 7
    for method, path in changing:
        assert client.open(path, method=method, headers=headers).status_code == 403, (method, path)
    assert clinic.history.search(Search()).total == 1


@pytest.mark.parametrize("headers", OWN)
def test_own_pages_and_programs_may_change_what_they_like(client, films, headers):
    results(send(client, films[0]))
    assert client.delete(f"{API}/history", headers=headers).json == {"deleted": 1}


def test_other_sites_pages_may_lead_here_but_read_nothing(client):
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200
    response = client.options(f"{API}/diagnose", headers={"Origin": "http://evil.example"})
    assert "Access-Control-Allow-Origin" not in response.headers


# ---- the token ------------------------------------------------------------------------------------------------------

FREE = {("GET", f"{API}/health"), ("GET", f"{API}/ready"), ("GET", "/login"), ("POST", "/login")}
FREE |= {("GET", "/static/none"), ("GET", "/bootstrap/static/none"), ("GET", "/language/en")}


def test_every_route_but_a_few_asks_for_the_token(guarded, clinic):
    for method, path in routes(guarded.application):
        response = guarded.open(path, method=method)
        if (method, path) in FREE:
            assert response.status_code != 401 or path == "/login", path
            assert response.location is None or "login" not in response.location
        elif method == "GET" and not path.startswith("/api/"):
            assert (response.status_code, response.location) == (302, "/login"), path
        else:
            assert response.status_code == 401, (method, path)
            assert response.headers["WWW-Authenticate"] == "Bearer"
    assert guarded.get(f"{API}/none").status_code == guarded.put(f"{API}/models").status_code == 401


def test_the_document_says_where_the_token_is_needed(guarded):
    document = guarded.get(f"{API}/openapi.json", headers=bearer()).json
    assert document["security"] == [{"token": []}]
    free = {path for path, item in document["paths"].items() if all(one.get("security") == [] for one in item.values())}
    assert free == {"/health", "/ready"}


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", "Bearer wrong", "Basic " + TOKEN, TOKEN, "Bearer " + TOKEN[:-1], f"Bearer {TOKEN}x"],
)
def test_a_wrong_token_is_refused(guarded, given):
    headers = {"Authorization": given.encode().decode("latin-1")}
    response = guarded.get(f"{API}/history", headers=headers)
    assert (response.status_code, response.json["code"]) == (401, "unauthorised")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_token_opens_everything(guarded, films, scheme):
    header = {"Authorization": bearer()["Authorization"].replace("Bearer", scheme)}
    assert guarded.get(f"{API}/history", headers=header).status_code == 200
    assert guarded.get("/", headers=header).status_code == 200


def test_the_pages_log_in_with_a_cookie_that_does_not_hold_the_token(guarded):
    refused = guarded.post("/login", data={"token": "wrong"})
    assert refused.status_code == 401 and "Set-Cookie" not in refused.headers
    response = guarded.post("/login", data={"token": f" {TOKEN}\n"})
    assert (response.status_code, response.location) == (302, "/")
    (cookie,) = response.headers.getlist("Set-Cookie")
    said = set(cookie.split("; "))
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= said and "Secure" not in said
    assert "kept" not in cookie and re.search(r"=[0-9a-f]{64}(;|$)", cookie)
    assert guarded.get("/history").status_code == guarded.get(f"{API}/history").status_code == 200
    assert guarded.get(f"{API}/history", headers=bearer("wrong")).status_code == 401, "what is said counts, not both"


def test_over_https_the_cookie_stays_there(guarded):
    response = guarded.post("/login", data={"token": TOKEN}, base_url="https://films.example")
    assert "Secure" in response.headers["Set-Cookie"].split("; ")


def test_a_cookie_of_another_token_opens_nothing(guarded, clinic):
    guarded.post("/login", data={"token": TOKEN})
    assert guarded.get(f"{API}/history").status_code == 200
    clinic.settings = replace(clinic.settings, token="changed")
    assert guarded.get(f"{API}/history").status_code == 401
    for value in ("", "x", TOKEN.encode().decode("latin-1"), "\u2603".encode().decode("latin-1")):
        assert guarded.get(f"{API}/history", headers={"Cookie": f"{security.COOKIE}={value}"}).status_code == 401


def test_without_a_token_there_is_no_login(client):
    assert client.get("/login").status_code == client.post("/login", data={"token": ""}).status_code == 404


def test_no_other_cookie_is_set(client, films):
    record = results(send(client, films[0]))[0]
    for method, path in routes(client.application):
        for target in (path, path.replace("none", record["id"])):
            cookie = client.open(target, method=method, headers={"Cookie": "lang=zh"}).headers.get("Set-Cookie", "")
            assert not cookie or (path.startswith("/language/") and cookie.startswith("lang=") and "HttpOnly" in cookie)


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_this_machine_alone_no_token_is_needed(host):
    assert settle(host=host, environment={}).token == ""
    assert settle(host=host, environment={"PNEUMO_TOKEN": " mine\n"}).token == "mine"


@pytest.mark.parametrize(
    "where", [{"host": "0.0.0.0"}, {"host": "::"}, {"host": "192.168.0.7"}, {"host": "127.0.0.1", "proxy": True}]
)
def test_for_others_a_token_is_made_up(where):
    first, second = (settle(**where, environment={}).token for _ in range(2))
    assert len(first) >= 32 and first != second
    assert len(settle(**where, environment={"PNEUMO_TOKEN": " \n"}).token) >= 32, "spaces are none"
    assert settle(**where, token="mine", environment={"PNEUMO_TOKEN": "another"}).token == "mine"


@pytest.mark.parametrize("url", ["postgresql://u:hidden@h/d", "sqlite://", "file.sqlite3", "mysql://u:hidden@h/d"])
def test_another_database_is_refused_without_its_password(url):
    with pytest.raises(UsageError) as caught:
        settle(host="127.0.0.1", history=url)
    assert "hidden" not in str(caught.value)


# ---- nonsense -------------------------------------------------------------------------------------------------------

NONSENSE = [
    "",
    "\0",
    "../../etc/passwd",
    "//[",
    "/\\[",
    "http://[",
    "/x\r\nSet-Cookie: a=b",
    "é" * 3000,
    "肺炎\u202e",
    "-1",
]
NONSENSE += ["1e400", "nan", "9" * 400, "²", "<script>", "{{7*7}}", "%(x)s", "cam/", "' OR 1=1 --", "0000-00-00"]
ASKED = ["id", "cam", "back", "page", "after", "label", "status", "deleted", "x"]
FILLED = ["threshold", "own", "model", "noise_handling", "save", "keep_film", "token", "files"]


@pytest.mark.slow
@pytest.mark.parametrize("text", NONSENSE)
def test_nothing_that_is_asked_makes_a_route_fall_over(client, films, text):
    id = results(send(client, films[0]))[0]["id"]
    for rule in client.application.url_map.iter_rules():
        targets = {re.sub("<id>", value, rule.rule) for value in (id, quote(text or "x", safe=""))}
        targets = {re.sub(r"<any\((\w+)[^>]*>", r"\1", target) for target in targets}
        targets = {re.sub("<[^>]+>", quote(text or "x"), target) for target in targets}
        for target in targets:
            asked = [client.get(target, query_string={name: text}) for name in ASKED] if "GET" in rule.methods else []
            filled = [client.post(target, data={name: text}) for name in FILLED] if "POST" in rule.methods else []
            filled += [client.get(target, headers={"Cookie": f"lang={quote(text)}", "Accept-Language": quote(text)})]
            for response in asked + filled:
                assert response.status_code < 500, (target, response.request.query_string, response.text[:300])
                assert "a=b" not in response.headers.get("Set-Cookie", "")


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def break_worker(clinic, monkeypatch):
    monkeypatch.setattr(type(clinic.catalog.models[0].diagnoser), "answer", fail)


def break_history(clinic, monkeypatch):
    monkeypatch.setattr(clinic.history, "save", fail)


def break_reader(clinic, monkeypatch):
    monkeypatch.setattr(clinic, "_read", fail)


def fail(*_, **__):
    raise ValueError(SECRET, NAME)


@pytest.mark.parametrize("harm", [break_worker, break_history, break_reader])
@pytest.mark.parametrize("path", [f"{API}/diagnose", "/diagnose"])
def test_of_what_nobody_thought_of_only_the_request_id_is_told(client, clinic, films, caplog, monkeypatch, harm, path):
    caplog.set_level(logging.DEBUG)
    harm(clinic, monkeypatch)
    form = {"save": "on", "files": [(BytesIO(films[0]), NAME)]}
    response = client.post(path, data=form, content_type="multipart/form-data")
    assert response.status_code == 500
    id = response.headers["X-Request-Id"]
    assert id in response.text and id in caplog.text and "ValueError" in caplog.text
    for word in (SECRET, NAME, "Traceback", 'File "', "ValueError", "site-packages"):
        assert word not in response.text, word
    assert SECRET not in caplog.text and NAME not in caplog.text
    assert "in fail" in caplog.text, "where it happened can be found"


def test_a_page_of_a_fault_that_fails_itself_is_told_as_json(client, monkeypatch, caplog):
    monkeypatch.setattr("pneumo_lib.service.pages.error_page", fail)
    response = client.get("/none")
    assert (response.status_code, response.json["code"]) == (404, "not_found")
    assert SECRET not in response.text + caplog.text and response.headers["X-Request-Id"] in caplog.text


def test_whoever_made_the_application_may_make_another(settings, offers):
    with closing(Clinic(settings, offers, History(settings.history), threads=1)) as clinic:
        apps = [create_app(clinic), create_app(clinic)]
        assert [app.test_client().get(f"{API}/health").status_code for app in apps] == [200, 200]
        assert not any(app.debug or app.testing for app in apps)
