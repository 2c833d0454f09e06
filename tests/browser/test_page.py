"""The page in a real browser: every width and theme, by keyboard, on paper, live."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.serve import Site, server
from tests.harness.test_serve import ROW, begun
from tests.report import pages
from tests.report.cases import definition

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: see .ci/run")
    with playwright.sync_playwright() as started:
        # A container has no user namespaces for the sandbox; the page is our own.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def toy_task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from harness import registry, spec
    from tests.conftest import TOY_RECIPE

    configs = tmp_path_factory.mktemp("configs")
    (configs / "toy").mkdir()
    (configs / "toy" / "mini.yaml").write_text(TOY_RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.TASKS, "toy", "tests.toy:INFO")
        patch.setattr(spec, "configs_dir", lambda: configs)
        yield


@pytest.fixture(scope="module")
def url(toy_task: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the page as a file; ``NORMBENCH_REPORT`` names another one to look at."""
    if chosen := os.environ.get("NORMBENCH_REPORT"):
        return Path(chosen).resolve().as_uri()
    results = tmp_path_factory.mktemp("results")
    pages.filled(results)
    path = results / "report.html"
    path.write_text(pages.html_of(results))
    return path.as_uri()


class Opened:
    """A page and whatever it complains of or asks the network for."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda asked: self._asked(asked.url, url))
        self.page.goto(url)

    def _asked(self, asked: str, own: str) -> None:
        if not asked.startswith(("data:", own, own.removesuffix("/") + "/progress.json")):
            self.complaints.append(f"asked for {asked}")


def until(page: Any, expression: str) -> None:
    """Wait until an expression is true; playwright's own way is what the page's policy forbids."""
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_every_width_and_theme(chromium, url, width, theme, tmp_path):
    opened = Opened(chromium, url, viewport={"width": width, "height": 900}, color_scheme=theme)
    page = opened.page
    assert page.title() == "normbench: what the normalisation does"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in paper.strip("rgb()").split(",")) > 3 * 128
    assert light == (theme == "light")
    shot = Path(os.environ.get("NORMBENCH_SHOTS", tmp_path)) / f"{width}-{theme}.png"
    page.screenshot(path=shot, full_page=width == 1280)
    assert shot.stat().st_size > 10_000
    charts = page.locator("main svg.chart[role=img]")
    assert charts.count() >= 3
    for box in (charts.nth(i).bounding_box() for i in range(charts.count())):
        assert box["width"] > 200
        assert box["x"] + box["width"] <= width
    assert opened.complaints == []
    page.close()


def test_no_number_of_a_run_is_cut_off_on_a_laptop(chromium, url):
    opened = Opened(chromium, url, viewport={"width": 1280, "height": 900})
    table = opened.page.locator("#runs .scroll")
    assert table.evaluate("(one) => one.scrollWidth - one.clientWidth") <= 1
    opened.page.close()


def test_tables_sort_by_keyboard(chromium, url):
    opened = Opened(chromium, url, viewport={"width": 1280, "height": 900})
    table = opened.page.locator("table.sortable").first
    heading = table.locator("thead th").nth(1)

    def keys() -> list[str]:
        cells = table.locator("tbody tr td:nth-child(2)")
        return [cells.nth(i).get_attribute("data-s") for i in range(cells.count())]

    heading.locator("button").focus()
    for direction in ("ascending", "descending"):
        opened.page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == direction
        found = keys()
        numbers = [float(key) for key in found if key]
        assert numbers == sorted(numbers, reverse=direction == "descending")
        assert found == [key for key in found if key] + [""] * found.count("")
    opened.page.keyboard.press("Shift+Tab")
    opened.page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") is None
    assert table.locator("thead th").first.get_attribute("aria-sort") == "ascending"
    assert "ascending" in opened.page.locator("#said").text_content()
    assert opened.complaints == []
    opened.page.close()


def test_legend_picks_a_row_out_and_lets_it_go(chromium, url):
    opened = Opened(chromium, url, viewport={"width": 1280, "height": 900})
    page = opened.page
    button = page.locator("#effect .legend button").first
    faint = "document.querySelectorAll('#effect .card .chart [style*=\"var(--s\"]')"
    count = f"[...{faint}].filter((one) => getComputedStyle(one).opacity < 0.5).length"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(count) == 0
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    until(page, f"{count} > 0")
    button.press("Enter")
    until(page, f"{count} === 0")
    assert button.get_attribute("aria-pressed") == "false"
    assert opened.complaints == []
    page.close()


def test_theme_can_be_chosen(chromium, url):
    opened = Opened(chromium, url, color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    before = opened.page.evaluate(paper)
    opened.page.locator("#theme").press("Enter")
    assert opened.page.evaluate(paper) != before
    opened.page.locator("#theme").press("Enter")
    assert opened.page.evaluate(paper) == before
    opened.page.close()


def test_paper_shows_all_and_no_controls(chromium, url, tmp_path):
    opened = Opened(chromium, url, color_scheme="dark")
    page = opened.page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("details:not([open])").count() == 0
    assert not page.locator("nav.contents").is_visible()
    assert not page.locator("#theme").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    file = Path(os.environ.get("NORMBENCH_SHOTS", tmp_path)) / "page.pdf"
    page.pdf(path=file, format="A4")
    assert file.read_bytes().startswith(b"%PDF")
    page.close()


def test_every_picture_and_control_has_a_name(chromium, url):
    opened = Opened(chromium, url)
    nameless = opened.page.evaluate(
        """[...document.querySelectorAll("button, img, svg[role=img], [role=region], summary, a")]
           .filter((one) => !(one.getAttribute("aria-label") || one.alt || one.textContent.trim()))
           .map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    levels = opened.page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    opened.page.close()


def test_live_progress(chromium, toy_task, tmp_path):
    run = begun(tmp_path)
    site = Site(tmp_path, [definition()], (), asked=False)
    with run.lock(), server(site, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        address = f"http://127.0.0.1:{listening.server_port}/"
        opened = Opened(chromium, address, viewport={"width": 390, "height": 844})
        bar = opened.page.locator("#live-runs progress")
        bar.wait_for()
        assert (bar.get_attribute("value"), bar.get_attribute("max")) == ("3", "6")
        assert bar.bounding_box()["width"] > 300
        name = opened.page.locator("#live-runs code").bounding_box()
        assert name["height"] < 30
        assert "training 3/6" in opened.page.locator("#live-runs").text_content()
        with run.metrics.open("a") as file:
            file.write(json.dumps(ROW | {"step": 5, "eta_s": 90.0}) + "\n")
        until(opened.page, "document.querySelector('#live-runs progress').value === 5")
        assert "left" in opened.page.locator("#live-runs").text_content()
        assert opened.complaints == []
        opened.page.close()
        listening.shutdown()
        thread.join()
