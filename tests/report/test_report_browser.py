"""The report in a real headless Chromium: nothing is loaded, nothing fails, and what a reader does works.

The browser is the system's (Debian: package `chromium`); without it these tests are skipped. A page counts as quiet when the
browser reported no error and asked for nothing but the file itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from toy_report import write_analysis, write_run

api = pytest.importorskip("playwright.sync_api")
make_report = pytest.importorskip("qvit.report").make_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
TIMEOUT = 120_000  # milliseconds, for a busy machine
VISIBLE_ARE_DRAWN = """() => [...document.querySelectorAll("figure:not([data-drawn])")].every((figure) => {
  const box = figure.getBoundingClientRect();
  return !figure.checkVisibility() || box.bottom < 0 || box.top > innerHeight;
})"""


class Reader:
    """A page, and what the browser had to say about it."""

    def __init__(self, browser: api.Browser, path: Path, width: int, scheme: str) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        self.page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.address = path.as_uri()
        self.page.goto(self.address)

    def read_all(self) -> None:
        """Scroll from top to bottom, waiting for the charts."""
        top = 0
        while top < self.page.evaluate("document.documentElement.scrollHeight"):
            self.page.evaluate("top => scrollTo(0, top)", top)
            self.page.wait_for_function(VISIBLE_ARE_DRAWN)
            top += 700
        self.page.evaluate("scrollTo(0, 0)")

    def assert_quiet(self) -> None:
        assert self.errors == []
        assert self.requests == [self.address]


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one of them uniform and one of a hostile name, and an analysis."""
    folder = tmp_path_factory.mktemp("browser") / "runs"
    write_run(folder / "a")
    write_run(folder / "b", ["result", "metrics", "bits"], seed=1, method="uniform W3A3")
    write_run(folder / "<img src=x onerror=document.title=1>", ["result", "metrics"], seed=2)
    write_analysis(folder / "analysis")
    make_report([folder], folder.parent / "report.html")
    return folder.parent / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_everything_is_drawn_in_silence(browser: api.Browser, report: Path, width: int, scheme: str) -> None:
    reader = Reader(browser, report, width, scheme)
    reader.read_all()
    page = reader.page
    for section in ("runs", "tradeoff", "training", "bits", "sensitivity", "details"):
        assert page.locator(f"section#{section} h2").is_visible()
    missing = page.evaluate(
        "[...document.querySelectorAll('figure:not([data-drawn])')].filter(f => f.checkVisibility()).map(f => f.id)"
    )
    assert missing == []
    empty = page.evaluate(
        "[...document.querySelectorAll('figure[data-drawn] .chart')].filter(c => !c.querySelector('svg, canvas')).length"
    )
    assert empty == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    expected = "rgb(21, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == expected
    assert page.title() == "qvit report: runs/<img src=x onerror=document.title=1> and 2 more"
    assert page.locator("img").count() == 0
    reader.assert_quiet()
    reader.context.close()


def test_hovering_tells_the_numbers(browser: api.Browser, report: Path) -> None:
    reader = Reader(browser, report, 1200, "light")
    page = reader.page
    page.locator("#accuracy-gbitops").scroll_into_view_if_needed()
    page.wait_for_selector("#accuracy-gbitops[data-drawn]")
    for point in page.locator("#accuracy-gbitops path[aria-roledescription=point]").all():
        point.hover()
        tooltip = page.locator("#vg-tooltip-element.visible")
        tooltip.wait_for()
        assert "top-1 %" in tooltip.inner_text()
    assert (
        "<img src=x" in tooltip.inner_text() or "uniform" in tooltip.inner_text() or "head-wise" in tooltip.inner_text()
    )
    assert page.locator("#vg-tooltip-element img").count() == 0
    reader.assert_quiet()
    reader.context.close()


def test_runs_are_selected_in_all_charts_by_keyboard(browser: api.Browser, report: Path) -> None:
    reader = Reader(browser, report, 1200, "light")
    page = reader.page
    page.wait_for_selector("#accuracy-gbitops[data-drawn]")
    points = page.locator("#accuracy-gbitops path[aria-roledescription=point]")
    assert points.count() == 3
    page.get_by_role("checkbox", name="runs/a").focus()
    page.keyboard.press("Space")
    api.expect(points).to_have_count(2)
    api.expect(page.locator("#count")).to_have_text("2 of 3")
    assert page.locator('details[data-run="runs/a"]').is_hidden()
    page.locator("#training-top1").scroll_into_view_if_needed()
    page.wait_for_selector("#training-top1[data-drawn]")  # drawn after the choice: it holds there, too
    api.expect(page.locator("#training-top1 path[aria-roledescription='line mark']")).to_have_count(2)
    page.reload()
    page.wait_for_selector("#accuracy-gbitops[data-drawn]")
    api.expect(points).to_have_count(2)  # a page that reloads itself keeps the choice
    page.get_by_role("button", name="None").click()
    api.expect(points).to_have_count(0)
    page.get_by_role("button", name="All").click()
    api.expect(points).to_have_count(3)
    assert reader.errors == []
    reader.context.close()


def test_tables_sort_by_number_and_say_so(browser: api.Browser, report: Path) -> None:
    reader = Reader(browser, report, 1200, "light")
    page = reader.page
    head = page.locator("#runs th", has_text="top-1 %").first
    column = page.evaluate("head => head.cellIndex", head.element_handle())
    order = f"[...document.querySelectorAll('#runs tbody tr')].map(row => row.cells[{column}].textContent)"
    head.get_by_role("button").focus()
    for direction, expected in (
        ("descending", ["72.00", "71.00", "70.00"]),
        ("ascending", ["70.00", "71.00", "72.00"]),
    ):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == direction
        assert page.evaluate(order) == expected
    page.locator("#runs th").first.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "none"
    reader.assert_quiet()
    reader.context.close()


def test_a_tensor_is_chosen_for_its_histogram(browser: api.Browser, report: Path) -> None:
    reader = Reader(browser, report, 1200, "light")
    page = reader.page
    page.locator('details[data-run="runs/a"]').scroll_into_view_if_needed()
    key = page.locator('details[data-run="runs/a"] figure[id$="-weights"]').get_attribute("id")
    page.locator(f"#{key}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{key}[data-drawn]")
    page.locator(f"#{key} select").select_option("head.weight")
    api.expect(page.locator(f"#{key}")).to_contain_text("8 bits, scale")
    chart = page.locator('details[data-run="runs/a"] figure[id$="-activations"]')
    chart.scroll_into_view_if_needed()
    lines = chart.locator("path[aria-roledescription='line mark']")
    api.expect(lines).to_have_count(2)  # one panel per head
    chart.locator("select").select_option("blocks.1.mlp.gelu_codes")
    api.expect(lines).to_have_count(1)
    api.expect(chart).to_contain_text("% clipped")
    reader.assert_quiet()
    reader.context.close()


def test_forty_runs_are_usable(browser: api.Browser, tmp_path: Path) -> None:
    for number in range(40):
        write_run(tmp_path / "runs" / f"run{number}", ["result", "metrics", "bits"], seed=number, steps=200)
    make_report([tmp_path / "runs"], tmp_path / "report.html")
    reader = Reader(browser, tmp_path / "report.html", 1200, "light")
    reader.page.locator("#accuracy-gbitops").scroll_into_view_if_needed()
    reader.page.wait_for_selector("#accuracy-gbitops[data-drawn]")
    reader.page.get_by_role("checkbox", name="runs/run7", exact=True).click()
    api.expect(reader.page.locator("#count")).to_have_text("39 of 40")
    reader.assert_quiet()
    reader.context.close()
