"""The service in a real browser: a visitor's whole way, every page at two widths, themes and languages, and faults."""

import csv
import json
import os
import re
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from itertools import cycle
from pathlib import Path
from urllib.parse import urlencode

import pytest
import test_report_browser
import waitress
from flask import Flask
from service_app import posing

from pneumo_lib.service import create_app, server
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.catalog import Catalog
from pneumo_lib.service.history import History
from pneumo_lib.service.records import STATUSES, Options, Upload

try:
    from playwright.sync_api import expect
except ImportError:  # the browser fixture says so
    expect = None

pytest_plugins = ["service_app"]
pytestmark = pytest.mark.slow
browser, ground = test_report_browser.browser, test_report_browser.ground

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
CHINESE = {"locale": "zh-CN"}
NAMES = ["first.png", "second.png", "third.png"]
LONG = "IM-0001-0042 chest PA erect, exported by the viewer on 21 November 2026, for teaching.png"
EVIL = "<img src=x onerror=alert(1)>.png"
PICTURES = "[...document.querySelectorAll('img:not([loading=lazy])')]"
CARD = Path(__file__).parent.parent / "figures" / "model_card.md"
SCREENSHOTS = os.environ.get("PNEUMO_SCREENSHOTS")  # a folder where people can see what the tests saw
PATIENCE = 60_000  # milliseconds that a machine shared with others may take to answer


@dataclass(frozen=True)
class Site:
    """A running service, and the clinic behind it."""

    url: str
    clinic: Clinic


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """The address of an application while the loop of the service serves it."""
    made, stop = waitress.create_server(app, host="127.0.0.1", port=0, threads=server.THREADS), threading.Event()
    thread = threading.Thread(target=server._run, args=(made, stop))
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.effective_port}"
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def site(clinic) -> Iterator[Site]:
    with served(create_app(clinic)) as url:
        yield Site(url, clinic)


@pytest.fixture
def visit(browser, site):
    """Opens pages; in the end no console has complained and nothing was asked of another address."""
    contexts, complaints, requests = [], [], []
    expect.set_options(timeout=PATIENCE)

    def open_page(path="/", *, base="", forgiven=(), **options):
        context = browser.new_context(**{"viewport": DESK, "locale": "en-GB", "color_scheme": "light"} | options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(PATIENCE)

        def complain(text):
            if not any(words in text for words in forgiven):
                complaints.append(text)

        tab.on("console", lambda message: complain(message.text))
        tab.on("pageerror", lambda error: complain(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto((base or site.url) + path)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []


def drop(tab, files):
    """Let go of files over the drop zone, as from a folder."""
    tab.evaluate(
        """files => {
            const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            for (const [name, text] of files) dataTransfer.items.add(new File([bytes(text)], name));
            const event = (kind) => new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true });
            const zone = document.querySelector("#drop");
            zone.dispatchEvent(event("dragover"));
            zone.dispatchEvent(event("drop"));
        }""",
        [(name, b64encode(data).decode()) for name, data in files],
    )


def send(tab, films, *, names=NAMES):
    """Drop the films, press the button, wait for the answers and their pictures; gives the cards."""
    drop(tab, list(zip(names, films, strict=False)))
    tab.locator("#diagnose button").click()
    cards = wait_for(tab, tab.locator("#batches article"), len(names))
    until(tab, lambda: tab.evaluate(f"{PICTURES}.every((image) => image.complete)"))
    return cards


def wait_for(tab, found, count):
    until(tab, lambda: found.count() == count)
    return found


def until(tab, true):
    """Wait for a condition that Python tests: the page's policy forbids Playwright to test it inside."""
    for _ in range(PATIENCE // 50):
        if true():
            return
        tab.wait_for_timeout(50)
    raise AssertionError(f"still not so after {PATIENCE / 1000} s")


def diagnosed(site, films, *, names=NAMES, **options):
    """Ids of films that were diagnosed before anyone opened a page."""
    uploads = [Upload(name, BytesIO(film)) for name, film in zip(cycle(names), films, strict=False)]
    return [record["id"] for record in site.clinic.diagnose(uploads, Options(**options), "request")]


def shown(card):
    """What a card says of its film: id, name, status, classes that are named, threshold, and the number of each bar."""
    bars = {row.locator("th").inner_text().split()[0]: row.locator(".number") for row in card.locator(".bars tr").all()}
    named = {name for name in bars if name in card.locator(".answer").inner_text()}
    about = (card.get_attribute("data-id"), card.locator("h2").inner_text(), card.get_attribute("data-status"))
    numbers = {name: number.inner_text() for name, number in bars.items()}
    return *about, named, card.locator("output").all_inner_texts(), numbers


def as_shown(record):
    """The same of a record, as a page in Chinese shows it."""
    shares = record["probabilities"] or {}
    threshold = [f"{100 * record['threshold']:.1f}".removesuffix(".0") + "%"] if shares else []
    extremes = {"0.0%": "< 0.1%", "100.0%": "> 99.9%"}
    numbers = {name: extremes.get(f"{share:.1%}", f"{share:.1%}") for name, share in shares.items()}
    about = record["id"], record["file"]["name"], record["status"]
    return *about, set(record["candidates"]), threshold, numbers


def test_the_way_of_a_visitor(visit, films, tmp_path):
    tab = visit()
    cards = send(tab, [*films[:3], films[3][:100]], names=[*NAMES, "half.png"])
    assert cards.locator("h2").all_inner_texts() == [*NAMES, "half.png"], "in the order of choice"
    assert tab.locator("#progress .state").all_inner_texts() == ["done", "done", "done", "failed"]
    assert "The file is incomplete" in cards.nth(3).inner_text()

    slider = tab.locator("#threshold")
    wanted = slider.locator("..").locator("output")
    slider.press("Home")
    until(tab, lambda: cards.locator(".badge-ok").count() == 3)
    for _ in range(40):
        slider.press("PageUp")
        expect(cards.locator("output"), "every film was decided again").to_have_text([wanted.inner_text()] * 3)
        if tab.locator("article[data-status=undecided]").count():
            break
    undecided = tab.locator("article[data-status=undecided]").first
    assert undecided.locator(".badge-status").inner_text() == "Undecided"
    assert " or " in undecided.locator(".answer").inner_text() and not undecided.locator(".answer strong").count()
    before = tab.locator("article[data-status=undecided]").count()

    tab.get_by_role("link", name="中文").click()
    expect(tab.locator("html")).to_have_attribute("lang", "zh-Hans")
    expect(tab.locator("#batches article h2"), "the films came along").to_have_text([*NAMES, "half.png"])
    expect(tab.locator("article[data-status=undecided]")).to_have_count(before)
    expect(tab.locator("#batches")).to_contain_text("未定")

    for kind in ("HTML", "CSV", "JSON"):
        with tab.expect_download() as waiting:
            tab.locator("#toolbar").get_by_role("link", name=kind).click()
        waiting.value.save_as(tmp_path / waiting.value.suggested_filename)
    table, page, data = (next(tmp_path.glob(f"pneumo-*.{kind}")) for kind in ("csv", "html", "json"))
    rows = list(csv.DictReader(StringIO(table.read_text("utf-8-sig"))))
    assert [row["file_name"] for row in rows] == [*NAMES, "half.png"]
    assert "研究与教学" in page.read_text("utf-8")
    records = json.loads(data.read_text("utf-8"))
    assert [as_shown(record) for record in records] == [shown(card) for card in cards.all()]
    assert len({record["status"] for record in records}) > 1, "they are not all alike"

    tab.get_by_role("link", name="历史记录").click()
    entries = tab.locator("table.cases tbody tr")
    expect(entries).to_have_count(3)
    assert sorted(entries.locator("th a").all_inner_texts()) == sorted(NAMES), "what cannot be read is not saved"
    entries.filter(has_text=NAMES[1]).get_by_role("link").click()
    expect(tab.locator("article h2")).to_have_text(NAMES[1])
    tab.go_back()
    first = entries.filter(has_text=NAMES[1])
    first.locator("summary").click()
    first.get_by_role("button").click()
    expect(entries).to_have_count(2)
    assert sorted(entries.locator("th a").all_inner_texts()) == [NAMES[0], NAMES[2]]
    tab.locator("details.wide summary").click()
    tab.locator("details.wide").get_by_role("button").click()
    expect(tab.locator("main")).to_contain_text("历史记录为空")


def furnish(site, films):
    """Films of every status, and more in the history than one page holds; gives the ids of one film of each."""
    model, *_ = known = site.clinic.catalog.models
    strict = posing(model, "tiny/strict", check=1e-9, papers=CARD.read_text())
    blind = posing(model, "slices/cnn2", check=None, alone=True, category="CT", title="cnn2, trained on slices")
    site.clinic.catalog = Catalog((*known, strict, blind))
    diagnosed(site, films[:19], names=[LONG, *NAMES])
    ids = diagnosed(site, [films[0], films[3][:100]], names=[LONG, "half.png"], threshold=0.0, keep_film=True)
    ids += diagnosed(site, films[:1], threshold=1.0)
    return ids + [id for offer in (strict, blind) for id in diagnosed(site, films[:1], model=offer.id, threshold=0.0)]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("language", [{}, CHINESE], ids=["English", "Chinese"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["wide", "narrow"])
def test_every_page_fits_and_can_be_used_by_all(
    visit, site, films, size, language, theme, monkeypatch, tmp_path, request
):
    still = {"reduced_motion": "reduce"}  # or contrast is measured halfway between two colours
    ids = furnish(site, films)
    tab = visit("/about", viewport=size, color_scheme=theme, forgiven=["404", "503"], **still, **language)

    def look(**sights):
        for name, path in sights.items():
            tab.goto(site.url + path)
            keep_picture(tab, f"{name}-{request.node.callspec.id}")
            folds = tab.locator("details > summary").all()
            for fold in folds:
                fold.click()
            until(tab, lambda: tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth)"))
            assert tab.evaluate("document.documentElement.scrollWidth") == size["width"], f"{path} scrolls sideways"
            assert (ground(tab) < 150) == (theme == "dark")
            assert_accessible(tab, path)
            if folds:
                keep_picture(tab, f"{name}-unfolded-{request.node.callspec.id}")

    results = "/?" + urlencode([("id", id) for id in (*ids, "gone")])
    look(form="/", results=results, result=f"/results/{ids[0]}", about="/about", card="/models/tiny/strict/card")
    look(nowhere="/nowhere")
    assert {site.clinic.case(id)["status"] for id in ids} == set(STATUSES)
    look(history="/history", older="/history?page=2", searched="/history?status=refused", unfit="/history?label=CAT")
    demo = tuple(replace(offer, phantom=True) for offer in site.clinic.catalog.models)
    monkeypatch.setattr(site.clinic, "catalog", Catalog(demo, ("tiny/cnn9 cannot be used (its weights are missing)",)))
    look(demo="/", drawn=f"/results/{diagnosed(site, films[:1])[0]}")
    monkeypatch.setattr(site.clinic, "history", History(f"sqlite:///{tmp_path / 'away' / 'history.sqlite3'}"))
    look(banners="/", away="/history")


def keep_picture(tab, name):
    """Save the whole page where someone wants to look at it."""
    if SCREENSHOTS:
        until(tab, lambda: tab.evaluate(f"{PICTURES}.every((image) => image.complete)"))
        tab.screenshot(path=Path(SCREENSHOTS) / f"{name.replace(' ', '-')}.png", full_page=True)


def axe():
    """Looks for what keeps people from using a page."""
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        test_report_browser.go_without("NO AXE: nothing was looked for; install axe-playwright-python to do so")
    return Axe()


@pytest.mark.parametrize(("required", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_where_a_browser_is_required_so_is_axe(monkeypatch, required, outcome):
    monkeypatch.setitem(sys.modules, "axe_playwright_python.sync_playwright", None)
    monkeypatch.setenv("PNEUMO_REQUIRE_BROWSER", required)
    with pytest.raises(outcome, match="NO AXE"):
        axe()


def assert_accessible(tab, path):
    """axe-core finds nothing serious; it runs outside the page's policy, as a debugger would."""
    found = axe().run(tab).response["violations"]
    serious = [
        (v["id"], v["impact"], [node["html"][:120] for node in v["nodes"]])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == [], path


def test_a_service_with_a_token_asks_for_it_first(visit, offers, settings):
    guarded = replace(settings, token="letmein")
    with (
        closing(Clinic(guarded, offers, History(guarded.history), threads=1)) as clinic,
        served(create_app(clinic)) as url,
    ):
        tab = visit("/history", base=url, forgiven=["401"])
        assert_accessible(tab, "/login")
        tab.get_by_label("Token").fill("wrong")
        tab.get_by_role("button", name="Log in").click()
        expect(tab.locator("main")).to_contain_text("This is not the token")
        assert_accessible(tab, "/login, refused")
        keep_picture(tab, "login")
        tab.get_by_label("Token").fill("letmein")
        tab.get_by_role("button", name="Log in").click()
        expect(tab.locator("#diagnose")).to_be_visible()
        tab.close()


def test_everything_works_without_a_script(visit, films):
    tab = visit(java_script_enabled=False)
    files = [{"name": name, "mimeType": "image/png", "buffer": film} for name, film in zip(NAMES, films, strict=False)]
    tab.set_input_files("#files", files)
    tab.get_by_role("button", name="Diagnose").click()
    expect(tab.locator("article h2")).to_have_text(NAMES)
    for language, tag in (("中文", "zh-Hans"), ("English", "en")):
        tab.get_by_role("link", name=language).click()
        expect(tab.locator("html")).to_have_attribute("lang", tag)
        expect(tab.locator("article h2")).to_have_text(NAMES)
    card = tab.locator("article").first
    card.locator("input[name=threshold]").press("End")
    card.get_by_role("button", name="Decide again").click()
    expect(tab.locator(".badge-status")).to_have_text(["Undecided"])
    tab.locator("select[name=cam]").select_option("COVID19")
    tab.get_by_role("button", name="Show").click()
    expect(tab.locator(".overlay")).to_have_attribute("src", re.compile(r"/cam/COVID19\.png$"))
    tab.get_by_text("Delete", exact=True).click()
    tab.get_by_role("button", name="Delete for good").click()
    expect(tab.locator("main")).to_contain_text("1 diagnosis was deleted.")


def test_at_most_three_films_are_on_their_way_at_once(visit, films):
    tab, held = visit(), []
    tab.route("**/diagnose", lambda route: held.append(route))
    names = [f"{k}.png" for k in range(5)]
    drop(tab, list(zip(names, films, strict=False)))
    tab.locator("#diagnose button").click()
    for done, sent in enumerate((3, 4, 5, 5, 5)):
        until(tab, lambda sent=sent: len(held) == sent)
        tab.wait_for_timeout(200)
        assert len(held) == sent, "the next one leaves when one has come back"
        held[done].continue_()
    cards = wait_for(tab, tab.locator("#batches article"), 5)
    assert cards.locator("h2").all_inner_texts() == names


def test_a_busy_service_is_asked_again(visit, films):
    tab, asked = visit(forgiven=["503"]), []

    def answer(route):
        asked.append(route.request)
        busy = {"status": 503, "headers": {"Retry-After": "1"}, "body": ""}
        route.fulfill(**busy) if len(asked) == 1 else route.continue_()

    tab.route("**/diagnose", answer)
    assert send(tab, films[:1], names=NAMES[:1]).get_attribute("data-status") != "error"
    assert len(asked) == 2 and tab.locator("#progress .state").all_inner_texts() == ["done"]


def test_a_film_that_fails_leaves_the_others(visit, films, site):
    site.clinic.settings = replace(site.clinic.settings, file_bytes=2**20)
    tab = visit(forgiven=["ERR_FAILED"])
    asked = []

    def answer(route):
        asked.append(route.request)
        route.abort() if len(asked) == 2 else route.continue_()

    tab.route("**/diagnose", answer)
    big = b"0" * (site.clinic.settings.file_bytes + 1)
    drop(tab, [*zip(NAMES, films, strict=False), ("big.png", big)])
    tab.locator("#diagnose button").click()
    wait_for(tab, tab.locator("#batches article"), 2)
    until(tab, lambda: tab.locator("#progress [data-state=failed]").count() == 2)
    assert "The service cannot be reached" in tab.inner_text("#batches")
    assert "big.png: The file is too large: at most 1 MB a film." in tab.inner_text("#batches")
    assert len(asked) == 3, "what is too large is not sent"
    keep_picture(tab, "progress")


def test_more_films_than_allowed_are_not_sent(visit, films):
    tab = visit()
    drop(tab, [(f"{k}.png", films[0]) for k in range(21)])
    tab.locator("#diagnose button").click()
    expect(tab.get_by_role("alert")).to_have_text("At most 20 films at a time. Choose fewer.")
    assert tab.locator("#progress li").count() == 0


def test_a_name_never_becomes_markup(visit, films):
    tab = visit()
    tab.on("dialog", lambda dialog: pytest.fail("a file name ran a script"))
    cards = send(tab, films[:1], names=[EVIL])
    assert cards.locator("h2").inner_text() == EVIL and EVIL in tab.inner_text("#progress")
    tab.goto(tab.url.partition("?")[0] + "history")
    assert tab.locator("th a").inner_text() == EVIL


def test_the_heat_map_follows_its_class_and_its_strength(visit, films):
    tab = visit()
    card = send(tab, films[:1], names=NAMES[:1])
    overlay = card.locator(".overlay")
    card.get_by_label("Grad-CAM of").select_option("PNEUMONIA")
    expect(overlay).to_have_attribute("src", re.compile(r"/cam/PNEUMONIA\.png$"))
    expect(overlay).to_have_attribute("alt", re.compile("PNEUMONIA"))
    card.get_by_label("Strength").press("Home")
    expect(overlay).to_have_css("opacity", "0")
    box = "image => JSON.stringify(image.getBoundingClientRect())"
    assert card.locator(".stack").evaluate(f"stack => new Set([...stack.children].map({box})).size") == 1, "on the film"


def test_feature_maps_are_fetched_only_when_wanted(visit, films):
    tab, fetched = visit(), []
    tab.on("request", lambda request: fetched.append(request.url))
    card = send(tab, films[:1], names=NAMES[:1])
    tab.wait_for_timeout(300)
    assert not [url for url in fetched if "/stage/" in url]
    card.get_by_text("Feature maps of the stages").click()
    until(tab, lambda: any("/stage/" in url for url in fetched))


def test_another_threshold_leaves_focus_and_pictures_alone(visit, films):
    tab, fetched = visit(), []
    card = send(tab, films[:1], names=NAMES[:1])
    tab.on("request", lambda request: fetched.append(request.url))
    slider = card.get_by_label("Decision threshold")
    slider.press("End")
    until(tab, lambda: card.get_attribute("data-status") == "undecided")
    assert slider.evaluate("slider => slider === document.activeElement")
    back = card.get_by_role("button", name="Back to the model's own")
    back.press("Enter")
    until(tab, lambda: back.count() == 0)
    assert slider.evaluate("slider => slider === document.activeElement"), "the button is gone, the focus is not"
    assert not [url for url in fetched if "/pictures/" in url]


def test_deleting_one_film_leaves_the_others_on_the_page(visit, films):
    tab = visit()
    cards = send(tab, films[:2], names=NAMES[:2])
    card = cards.first
    card.get_by_text("Delete", exact=True).click()
    card.get_by_role("button", name="Delete for good").click()
    until(tab, lambda: tab.get_by_text("The film and its answer were deleted.").count() == 1)
    assert tab.locator("article[data-id] h2").all_inner_texts() == [NAMES[1]]
    assert tab.locator("#toolbar a").first.get_attribute("href").count("id=") == 1
    tab.reload()
    assert tab.locator("article h2").all_inner_texts() == [NAMES[1]]


def test_pictures_that_are_gone_are_replaced_by_a_sentence(visit, site, films):
    tab = visit(forgiven=["404"])
    card = send(tab, films[:1], names=NAMES[:1])
    site.clinic.recent.clear()
    card.get_by_label("Grad-CAM of").select_option("PNEUMONIA")
    until(tab, lambda: "The pictures of this film are gone" in card.inner_text())
    tab.reload()
    assert "The pictures of this film are gone" in tab.locator("article").inner_text()
    assert tab.locator("article img").count() == 0


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_remembered(visit):
    tab = visit(color_scheme="dark")
    assert ground(tab) < 150
    tab.get_by_role("button", name="Light").click()
    until(tab, lambda: ground(tab) > 600)
    tab.goto(tab.url + "about")
    assert ground(tab) > 600 and tab.get_by_role("button", name="Dark").is_visible()


def test_the_keyboard_reaches_content_and_films_first(visit):
    tab = visit()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "files"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


FOCUSED = "(({ id, name, textContent }) => id || name || textContent.trim())(document.activeElement)"


def tabs(tab, n):
    """What the next stops of the Tab key are called."""
    found = []
    for _ in range(n):
        tab.keyboard.press("Tab")
        found.append(tab.evaluate(FOCUSED))
    return found


def test_the_keyboard_goes_from_films_over_options_to_answers(visit, films):
    tab = visit()
    drop(tab, list(zip(NAMES, films[:2], strict=False)))
    tab.locator("#files").focus()
    stops = ["category", "model", "noise-1", "own", "threshold", "save", "keep", "Diagnose"]
    assert tabs(tab, len(stops)) == stops
    tab.keyboard.press("Enter")
    card = wait_for(tab, tab.locator("#batches article"), 2).first
    expect(card, "focus waits at the first answer").to_be_focused()
    id = card.get_attribute("data-id")
    stops = [f"threshold-{id}", f"cam-{id}", f"strength-{id}", "Feature maps of the stages", "File and model"]
    stops += ["HTML", "CSV", "JSON", "Delete"]
    assert tabs(tab, len(stops)) == stops


def test_focus_stays_with_who_went_on_meanwhile(visit, films):
    tab, held = visit(), []
    tab.route("**/diagnose", lambda route: held.append(route))
    drop(tab, list(zip(NAMES, films[:1], strict=False)))
    tab.locator("#diagnose button").click()
    until(tab, lambda: held)
    tab.locator("#model").focus()
    held[0].continue_()
    wait_for(tab, tab.locator("#batches article"), 1)
    expect(tab.locator("#model")).to_be_focused()


def test_answers_are_announced_and_progress_has_names(visit, films):
    tab = visit()
    cards = send(tab, [*films[:2], films[3][:100]], names=NAMES)
    news = tab.locator("[aria-live=polite] p")
    answers = zip(NAMES, cards.locator(".answer").all_inner_texts(), strict=True)
    wanted = ["uploading", *(f"{name}: {' '.join(answer.split())}" for name, answer in answers)]
    assert sorted(news.all_inner_texts()) == sorted(wanted), "each once, and of every card its answer alone"
    for name in NAMES:
        expect(tab.get_by_role("progressbar", name=name)).to_have_count(1)
    cards.first.get_by_label("Decision threshold").press("End")
    expect(news.last).to_have_text(re.compile(rf"^{NAMES[0]}: Undecided: \w+ or \w+$"))


def test_the_history_is_searched_by_class_day_model_and_status(visit, site, films):
    first, second = (offer.id for offer in site.clinic.catalog.models)
    some, others = films[::4], films[1::8]  # films are sorted by class
    ids = [*diagnosed(site, some, model=first, threshold=0), *diagnosed(site, others, model=second, threshold=1)]
    made = [site.clinic.case(id) | {"created_at": f"2026-03-0{1 + k % 3}T23:59:59.000Z"} for k, id in enumerate(ids)]
    assert all(site.clinic.history.update(record) for record in made)
    tab = visit("/history")
    entries, everything = tab.locator("table.cases tbody tr"), tab.get_by_role("link", name="Show everything")
    button, field = tab.get_by_role("button", name="Search"), lambda name: tab.get_by_label(name, exact=True)
    expect(entries).to_have_count(len(made))
    expect(everything).to_have_count(0)

    def clear():
        everything.click()
        expect(entries).to_have_count(len(made))
        expect(everything).to_have_count(0)

    labels, statuses = ({record[name] for record in made if record[name]} for name in ("label", "status"))
    assert len(labels) > 1
    for name, key, values in (
        ("Class", lambda record: record["label"], labels),
        ("Model", lambda record: record["model"]["id"], {first, second}),
        ("Status", lambda record: record["status"], statuses),
    ):
        for value in values:
            field(name).select_option(value)
            button.click()
            expect(entries, f"{name} {value}").to_have_count(sum(key(record) == value for record in made))
            expect(field(name)).to_have_value(value)
        clear()
    field("From").fill("2026-03-02")
    button.click()
    expect(entries).to_have_count(6)
    field("To").fill("2026-03-02")
    button.click()
    expect(entries.locator("time")).to_have_text(["2026-03-02 23:59 UTC"] * 3)
    field("Model").select_option(second)
    button.click()
    expect(entries, "the conditions hold together").to_have_count(1)
    field("To").fill("2026-03-01")
    button.click()
    expect(tab.locator("main")).to_contain_text("Nothing in the history fits this search.")
    clear()


def test_the_kind_of_picture_chooses_among_the_models(visit, site, films):
    chest = site.clinic.catalog.models
    slices = posing(chest[0], "slices/cnn2", check=None, alone=True, category="CT", title="cnn2, trained on slices")
    site.clinic.catalog = Catalog((*chest, slices))
    tab = visit()
    kind, models = tab.get_by_label("Kind of picture"), tab.get_by_label("Model", exact=True).locator("option")
    denoise, trained = tab.get_by_label("Denoise first"), tab.get_by_label("As the model was trained")
    expect(models).to_have_text([offer.title for offer in chest])
    denoise.check()
    tab.get_by_label("Model", exact=True).select_option(chest[1].id)
    expect(tab.locator("#threshold-value"), "the slider has steps, its words are exact").to_have_text(
        f"{100 * chest[1].threshold:.1f}".removesuffix(".0") + " %"
    )
    kind.select_option(label="CT")
    expect(models).to_have_text([slices.title])
    expect(denoise).to_be_disabled()
    expect(trained, "what cannot be is not left chosen").to_be_checked()
    card = send(tab, films[:1], names=NAMES[:1])
    assert card.get_attribute("data-status") in ("unchecked", "undecided")
    card.get_by_text("File and model").click()
    facts = card.locator(".facts")
    expect(facts).to_contain_text(slices.title)
    expect(facts.get_by_text("Denoiser")).to_have_count(0)
    expect(card.locator(".pictures figure"), "the film and its heat map").to_have_count(2)
    kind.select_option(label="Chest X-ray")
    expect(denoise).to_be_enabled()
    expect(models).to_have_text([offer.title for offer in chest])


def test_the_export_opens_offline_and_prints_one_sheet_per_film(browser, site, films, visit, tmp_path):
    ids = diagnosed(site, films[:3])
    tab = visit()
    with tab.expect_download() as waiting:
        tab.evaluate(f"location.href = '/export.html?id={ids[0]}&id={ids[1]}&id={ids[2]}'")
    waiting.value.save_as(tmp_path / "export.html")
    context = browser.new_context(offline=True, color_scheme="dark")
    page, seen = context.new_page(), []
    page.on("console", lambda message: seen.append(message.text))
    page.on("request", lambda request: seen.append(request.url))
    page.goto((tmp_path / "export.html").as_uri())
    assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth)")
    assert [line for line in seen if not line.startswith("data:")] == [(tmp_path / "export.html").as_uri()]
    assert page.pdf(prefer_css_page_size=True).count(b"/Type /Page\n") == 3
    assert_accessible(page, "export")
    keep_picture(page, "export")
    context.close()
