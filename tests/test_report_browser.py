"""The report in a real browser with the network off: no complaint, no request, links and themes that work."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from test_report import page, png, shown

from pneumo_lib.report_language import Language

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def go_without(message: str) -> NoReturn:
    """Skip a test; fail it where a browser is required: nothing that was not looked at shall count as tested."""
    pytest.fail(message) if os.environ.get("PNEUMO_REQUIRE_BROWSER") == "1" else pytest.skip(message)


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if CHROMIUM is None or sync_playwright is None:
        go_without("NO BROWSER: no page was opened; install chromium and playwright to test them")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    table = "<table><thead><tr><th></th><th>n</th></tr></thead><tbody><tr><th>A</th><td>1</td></tr></tbody></table>"
    cells = [new_markdown_cell("# 02 Cleaning\n\n" + "A line of text.\n\n" * 60)]
    cells += [new_markdown_cell("## Losses"), shown({"image/png": png()}, alt="A curve that falls.")]
    cells += [
        shown({"text/html": f"<style>td {{ color: red }}</style>{table}"}, source="x = 'wide' " + "+ 'code' " * 60)
    ]
    cells += [new_code_cell("print(1)", outputs=[new_output("stream", name="stdout", text="wide " * 200)])]
    cells += [new_markdown_cell("The end.\n\n" * 40)]
    path = folder / "report.html"
    path.write_text(page(folder, *cells), "utf-8")
    return path


@pytest.fixture
def opened(browser, report_file):
    """Open the report; the two lists say what the console and the network saw."""
    contexts = []

    def open_page(**options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)
        context.set_offline(True)
        tab, complaints, requests = context.new_page(), [], []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(report_file.as_uri())
        return tab, complaints, requests

    yield open_page
    for context in contexts:
        context.close()


def ground(tab) -> int:
    """Brightness of the page's ground, 0 to 765."""
    return tab.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b, 0)"
    )


def test_opens_offline_without_complaint_or_request(opened, report_file):
    tab, complaints, requests = opened()
    tab.locator("#code-switch").click()
    tab.wait_for_timeout(200)
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [report_file.as_uri()]
    assert tab.evaluate(
        "document.images.length === 1 && [...document.images].every((i) => i.complete && i.naturalWidth)"
    )


def test_policy_is_in_force(opened):
    tab, complaints, _ = opened()
    tab.evaluate(
        "document.body.append(Object.assign(document.createElement('img'), { src: 'https://example.org/x.png' }))"
    )
    tab.wait_for_timeout(200)
    assert any("Content Security Policy" in line for line in complaints)


def test_contents_lead_to_their_sections(opened):
    tab, _, _ = opened(reduced_motion="reduce")
    tab.locator(".toc a", has_text="Losses").click()
    tab.wait_for_timeout(200)
    assert 0 <= tab.locator("h3", has_text="Losses").bounding_box()["y"] < 200
    assert tab.locator(".toc").bounding_box()["y"] == 0
    assert tab.locator(".toc a[aria-current]").inner_text().endswith("Losses")


def test_dark_by_preference_and_by_switch_and_remembered(opened):
    tab, complaints, _ = opened(color_scheme="dark")
    assert ground(tab) < 150
    tab.locator("#theme-switch").click()
    assert ground(tab) > 600
    tab.reload()
    assert ground(tab) > 600 and complaints == []
    assert tab.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor") == "rgb(255, 255, 255)"


def test_switch_works_where_storage_is_forbidden(browser, report_file):
    tab, complaints = browser.new_page(color_scheme="light"), []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    forbid = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    tab.add_init_script(forbid)
    tab.goto(report_file.as_uri())
    tab.locator("#theme-switch").click()
    assert ground(tab) < 150 and complaints == []
    tab.close()


def test_buttons_speak_the_language_of_the_page(browser, tmp_path):
    path = tmp_path / "report.zh.html"
    path.write_text(page(tmp_path, new_markdown_cell("# 02 Cleaning"), language=Language.zh), "utf-8")
    tab = browser.new_page(color_scheme="light")
    tab.goto(path.as_uri())
    button = tab.locator("#theme-switch")
    assert (button.inner_text(), tab.locator("#code-switch").inner_text()) == ("深色主题", "显示代码")
    button.click()
    assert button.inner_text() == "浅色主题"
    tab.close()


def test_code_unfolds_together(opened):
    tab, _, _ = opened()
    assert not tab.locator("details.code pre").first.is_visible()
    tab.locator("#code-switch").click()
    assert tab.locator("details.code pre").first.is_visible()


def test_phone_has_no_sideways_scrolling_and_folded_contents(opened):
    tab, _, _ = opened(viewport={"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    entry = tab.locator(".toc a", has_text="Losses")
    assert not entry.is_visible()
    tab.locator(".toc summary").click()
    entry.click()
    tab.wait_for_timeout(800)
    assert not entry.is_visible()
    assert 0 < tab.locator("h3", has_text="Losses").bounding_box()["y"] < 200


def test_skip_link_is_the_first_stop(opened):
    tab, _, _ = opened()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "chapters"


def test_paper_is_light_without_code_or_buttons_and_one_page_per_part(opened):
    tab, _, _ = opened(color_scheme="dark")
    pages = tab.pdf(prefer_css_page_size=True).count(b"/Type /Page\n")
    tab.emulate_media(media="print", color_scheme="dark")
    assert ground(tab) > 600
    assert not tab.locator("details.code").first.is_visible() and not tab.locator("#theme-switch").is_visible()
    assert tab.locator(".toc").evaluate("toc => getComputedStyle(toc).position") == "static"
    assert pages >= 3
