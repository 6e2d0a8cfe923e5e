"""How long a report takes until it can be used: by default 40 runs of 2,000 logged steps, in headless Chromium.

    python benchmarks/report_load.py --runs 40 --steps 2000 --repeats 3

Made-up runs (`tests/toy_report.py`, every part that a run can have) go into one page, and a fresh browser window opens it:

    first chart       from the start of the navigation until the first chart, which is scrolled to, is drawn
    checkbox          from the click on a run's checkbox until the count and the first chart show one run less
    scripts, tasks    CPU seconds of the page's main thread until then, in JavaScript and in all (CDP: ScriptDuration and
                      TaskDuration in thread ticks); on a busy machine these tell the page from its neighbours

Prints bytes and seconds, the median of the repeats and the fastest. Chromium is the system's.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from qvit.report import make_report

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "runtime/tests")]
from toy_report import write_run

TIMEOUT = 120_000  # milliseconds
CHART = "accuracy-gbitops"  # the first one, below the table of the runs
POINTS = """count => document.querySelectorAll(
  "#accuracy-gbitops path[aria-roledescription=point]").length === count"""


def write_page(folder: Path, runs: int, steps: int) -> Path:
    """A report of so many runs, which differ in their seed."""
    for number in range(runs):
        write_run(folder / "runs" / f"run{number}", seed=number, steps=steps, depth=4)
    make_report([folder / "runs"], folder / "report.html")
    return folder / "report.html"


def load(browser: Browser, page_file: Path, runs: int) -> dict[str, float]:
    """Open the page once in a window of its own; seconds by what they are."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    start = time.perf_counter()
    page.goto(page_file.as_uri())
    page.evaluate(f"document.getElementById('{CHART}').scrollIntoView()")
    page.wait_for_selector(f"#{CHART}[data-drawn]")
    drawn = time.perf_counter()
    page.wait_for_function(POINTS, arg=runs)
    page.get_by_role("checkbox", name="runs/run7", exact=True).click()
    clicked = time.perf_counter()
    page.wait_for_function(POINTS, arg=runs - 1)
    handled = time.perf_counter()
    cpu = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
    context.close()
    return {
        "first chart": drawn - start,
        "checkbox": handled - clicked,
        "until then": handled - start,
        "scripts (CPU)": cpu["ScriptDuration"],
        "layout, styles (CPU)": cpu["LayoutDuration"] + cpu["RecalcStyleDuration"],
        "tasks (CPU)": cpu["TaskDuration"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40, metavar="N", help="at least 8 (default: 40)")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="logged steps of a run (default: 2000)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="windows opened (default: 3)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = write_page(Path(folder), arguments.runs, arguments.steps)
        print(f"{page.stat().st_size:,} bytes")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        found = [load(browser, page, arguments.runs) for _ in range(arguments.repeats)]
        browser.close()
    for what in found[0]:
        seconds = [one[what] for one in found]
        print(f"{what:22s} {statistics.median(seconds):6.2f} s   fastest {min(seconds):6.2f} s")


if __name__ == "__main__":
    main()
