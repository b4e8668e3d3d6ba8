"""The page in a real browser: ask, no answer, upload, errors, keys, a phone's width, the keyboard. Screenshots are kept
where THINBERT_SCREENSHOTS says."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright import sync_api as playwright

import files
import thinbert
from thinbert.serve.app import Settings, create_app
from thinbert.serve.library import Library

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is tested in a real browser only")

CONTEXT = "A 🐨 sleeps by the river. Anna Voss built the mill in 1802, and it burned down twice."


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Site:
    """A server in this process."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        models = {"default": thinbert.load("default", threads=1)}
        app = create_app(models, Library(folder / "index", folder / "uploads"), Settings(log=False, **changes))
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stop()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    faults: list[str] = []
    page.on("pageerror", lambda e: faults.append(str(e)))
    expected = ("status of", "ERR_CONNECTION_REFUSED")  # what the page tells people itself
    page.on("console", lambda m: m.type == "error" and not any(e in m.text for e in expected) and faults.append(m.text))
    page.goto(site.url)
    yield page
    page.close()
    assert not faults


def keep(page: Any, name: str) -> None:
    if folder := os.environ.get("THINBERT_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def paste(page: Any, text: str, question: str) -> None:
    page.get_by_label("A pasted text").check()
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()


def test_an_answer_is_marked_in_its_passage(page: Any) -> None:
    paste(page, CONTEXT, "Who built the mill?")
    best = page.locator("#result article").first
    assert best.locator(".answer").inner_text() == "Anna Voss"
    assert best.locator("mark").inner_text() == "Anna Voss"  # also after a character of two halves
    assert "built the mill in 1802" in best.locator("blockquote").inner_text()
    assert "ms" in page.locator("#result > .dim").inner_text()
    keep(page, "answer")
    best.get_by_role("button", name="Show in place").click()
    assert page.locator("dialog #page mark").inner_text() == "Anna Voss"
    assert page.locator("dialog #page").inner_text() == CONTEXT
    keep(page, "in-place")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_no_answer_is_said(page: Any) -> None:
    page.route("**/v1/ask", lambda route: route.continue_(post_data={**route.request.post_data_json, "threshold": 0}))
    paste(page, "Bread is made from flour and water.", "Who was the king of Norway in 1905?")
    page.locator("#result .card").first.wait_for()
    assert "No answer in this text" in page.locator("#result .card").first.inner_text()
    assert page.locator("#result article .answer").count() == 1  # the nearest, rejected
    keep(page, "no-answer")
    page.get_by_label("Text", exact=True).fill(" ")
    page.get_by_role("button", name="Ask").click()
    assert page.get_by_role("alert").inner_text() == "Paste a text first."


def test_documents_are_added_asked_opened_and_removed(page: Any, tmp_path: Path) -> None:
    pdf = tmp_path / "mill <b>.pdf"
    pdf.write_bytes(
        files.pdf([["Contents."], ["The mill was built by Anna Voss."], ["The end."]], labels="0 << /S /r >>")
    )
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.4 cut")
    page.get_by_text("None yet.").wait_for()
    page.get_by_label("Question").fill("Who built the mill?")
    page.keyboard.press("Enter")
    page.get_by_text("There are no documents yet").wait_for()
    keep(page, "nothing-yet")
    page.locator("#files").set_input_files([pdf, broken])
    page.get_by_text("broken.pdf: is not a readable PDF").wait_for()
    keep(page, "documents")
    assert page.locator("#list .name").all_inner_texts() == ["mill _b_.pdf"]
    assert page.locator("#count").inner_text() == "(1)"
    page.get_by_label("Question").fill("Who built the mill?")
    page.keyboard.press("Enter")
    best = page.locator("#result article").first
    assert best.locator(".answer").inner_text() == "Anna Voss"
    assert "mill _b_.pdf, page 2 (ii)" in best.locator(".place").inner_text()
    keep(page, "cited")
    best.get_by_role("button", name="Show in place").click()
    page.locator("dialog mark").wait_for()
    assert page.locator("dialog h2").inner_text() == "mill _b_.pdf, page 2 (ii)"
    assert page.locator("dialog mark").inner_text() == "Anna Voss"
    page.get_by_label("Next page").click()
    page.locator("dialog #page", has_text="The end.").wait_for()
    assert "page=3" in page.locator("#original").get_attribute("href")
    page.get_by_label("Close").click()
    page.get_by_role("button", name="Remove mill _b_.pdf").click()
    page.get_by_text("None yet.").wait_for()
    assert page.evaluate("document.activeElement.id") == "files"  # and not lost with the button


def test_files_that_are_added_while_others_are_sent(page: Any, tmp_path: Path) -> None:
    """What becomes of the first is not lost."""
    held: list[Any] = []

    def first_held(route: Any) -> None:
        if route.request.method == "POST" and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/documents", first_held)
    for name, content in (("broken.pdf", b"%PDF-1.7 broken"), ("mill.txt", b"Anna Voss built the mill.")):
        (tmp_path / name).write_bytes(content)
        page.locator("#files").set_input_files(tmp_path / name)
    while not held:
        page.wait_for_timeout(50)
    held[0].continue_()
    page.get_by_text("mill.txt added.").wait_for()
    assert page.locator("#list .name").all_inner_texts() == ["mill.txt"]
    assert "broken.pdf: " in page.locator("#uploads .fault").inner_text()


def test_dropped_files_are_added(page: Any) -> None:
    page.evaluate(
        """() => {
        const data = new DataTransfer();
        data.items.add(new File(["The oven belongs to Jean Petit."], "oven.txt", {type: "text/plain"}));
        document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    )
    page.locator("#list .name").first.wait_for()
    assert page.locator("#list .name").all_inner_texts() == ["oven.txt"]


def test_a_server_that_is_gone_is_said(page: Any, site: Site) -> None:
    site.stop()
    paste(page, CONTEXT, "Who built the mill?")
    page.get_by_role("alert").wait_for()
    assert "cannot be reached" in page.get_by_role("alert").inner_text()
    keep(page, "gone")


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, keys=("secret",))
    yield site
    site.stop()


def test_a_key_is_asked_for(browser: Any, locked: Site) -> None:
    page = browser.new_page()
    page.goto(locked.url)
    page.locator("#key").wait_for()
    keep(page, "key")
    page.locator("#key-value").fill("secret")
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("None yet.").wait_for()
    paste(page, CONTEXT, "Who built the mill?")
    assert page.locator("#result .answer").first.inner_text() == "Anna Voss"
    page.close()


def test_on_a_phone_and_in_the_dark(browser: Any, site: Site) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.goto(site.url)
    paste(page, CONTEXT, "Who built the mill?")
    page.locator("#result article").first.wait_for()
    keep(page, "phone-dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#result article").first.get_by_role("button", name="Show in place").click()
    box = page.locator("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    keep(page, "phone-in-place")
    page.close()


def test_the_keyboard_is_enough(page: Any) -> None:
    page.get_by_label("Question").focus()
    page.keyboard.type("Who built the mill?")
    page.keyboard.press("Tab")  # the button
    page.keyboard.press("Tab")  # where to look
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.type(CONTEXT)
    page.get_by_label("Question").focus()
    page.keyboard.press("Enter")
    page.locator("#result article").first.wait_for()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([type=radio]), textarea, meter, dialog")]
        .filter(e => !(e.labels?.length || e.ariaLabel || e.getAttribute("aria-labelledby") || e.textContent.trim()))
        .map(e => e.outerHTML)"""
    )
    assert unnamed == []


def test_the_api_page(page: Any, site: Site) -> None:
    page.goto(f"{site.url}/docs")
    page.get_by_text("/v1/ask").first.click()
    keep(page, "api")
    assert "Who built it?" in page.locator("details[open] pre").inner_text()
