"""The report of an evaluation: one file, small, that a real browser opens without a complaint."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arl2.evaluation.report.cases import STRIP_BYTES
from arl2.evaluation.report.page import html_page
from arl2.evaluation.report.table import markdown
from arl2.evaluation.suites.exclusions import Exclusion
from arl2.evaluation.suites.plan import Plan, make_plan
from arl2.evaluation.suites.registry import open_suite
from arl2.evaluation.suites.strips import filmstrip
from arl2.evaluation.suites.suite import Measured, Subject, SuiteOptions
from arl2.evaluation.suites.summary import Results, results_of
from arl2.shapes.evaluation.suites.prompted import captions
from arl2.shapes.prompts.parser import scenes_of_prompts
from arl2.shapes.world.renderer import render
from arl2.video.pixels import to_bytes

HOSTILE = '<script>throw new Error("a prompt runs")</script> & "quoted"'


def results(models: int, prompts: int, *, seeds: int = 1, strips: list[bytes] | None = None) -> Results:
    """Of models that were never run: the values are random, those of the first prompt the worst."""
    subjects = [Subject(f"model-{number}", "model", "shapes") for number in range(models)]
    given = [HOSTILE, *(f"prompt number {number}" for number in range(1, prompts))]
    options = SuiteOptions(prompts=tuple((one, None) for one in given), seeds=seeds)
    plan: Plan = make_plan(open_suite("video"), subjects, options, batch=16)
    random = np.random.default_rng(0)
    strips = strips or [b""]
    records = []
    for unit in plan.units:
        ones = []
        for item in unit.items:
            smooth = 0.1 if item.number == 0 else 0.9 + 0.01 * unit.subject + 0.01 * random.random()
            values = {"midframe_smoothness": smooth, "motion": random.random(), "moves": float(random.random() < 0.5)}
            ones.append(
                Measured(values, {"loops": "<b>short</b>"}, strips[item.number % len(strips)], 81, 64, 64, 16.0)
            )
        records.append(ones)
    return results_of(plan, records, ["0123456789abcdef"] * models)


def test_the_page_is_one_file_that_escapes_what_it_quotes() -> None:
    page = html_page(results(2, 5))
    assert HOSTILE not in page
    assert "&lt;script&gt;throw" in page
    assert "<b>short</b>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert page.index("a prompt runs") < page.index("prompt number 1")  # the worst comes first
    assert html_page(results(2, 5)) == page


def test_a_page_stays_small_whatever_it_shows() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (16, 128, 128, 3), np.uint8)
    strip = filmstrip(noise)  # no video compresses worse
    found = results(4, 300, seeds=2, strips=[strip])
    page = html_page(found)
    assert len(strip) * 4 * 600 > 2 * STRIP_BYTES  # all of them would not fit
    assert STRIP_BYTES < len(page) < 20_000_000
    assert "better cases are left out" in page
    assert "a prompt runs" in page


def test_the_table_names_what_is_better_than_chance() -> None:
    found = results(3, 60)
    text = markdown(found)
    assert "60 items, 1 seed each" in text
    row = next(line for line in text.splitlines() if line.startswith("| midframe_smoothness | +") or "| **+" in line)
    assert row.count("**") == 4
    assert "Left out: 180 values and videos; results.json lists each" in text
    assert any(line.startswith("| model-1 | loops | 60 | &lt;script>throw") for line in text.splitlines())
    assert "&lt;b>short&lt;/b> |" in text
    assert markdown(replace(found, excluded=())).count("Left out") == 0


def test_what_cannot_be_read_is_listed_before_any_number_of_routine_reasons() -> None:
    found = results(1, 600)
    unread = Exclusion("model-0", "prompt number 599", 0, "", "the file cannot be read")
    page = html_page(replace(found, excluded=(*found.excluded, unread)))
    groups, listed = page.split("One by one: 601 in no mean")
    assert groups.index("the file cannot be read") < groups.index("&lt;b&gt;short&lt;/b&gt;")
    assert listed.index("the file cannot be read") < listed.index("&lt;b&gt;short&lt;/b&gt;")
    assert "<p>101 more are in results.json.</p>" in listed


def test_one_is_not_written_as_several() -> None:
    found = results(1, 1)
    page, table = html_page(found), markdown(found)
    assert "1 item, 1 seed each." in table
    assert "Left out: 1 value or video;" in table
    for text in (page, table):
        assert not re.search(r"\b1 (items|seeds|values|videos|cases|prompts|noise seeds|video frames)\b", text)


@contextmanager
def browser_page() -> Iterator[tuple]:
    """A page of a real Chromium, and what it complains of."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser driver: pip install playwright")
    with playwright.sync_playwright() as driver:
        path = next((one for one in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(one).exists()), None)
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            complaints: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
            page.on("request", lambda one: complaints.append(one.url) if one.url.startswith("http") else None)
            yield page, complaints
        finally:
            browser.close()


@pytest.mark.browser
def test_a_report_of_four_models_and_200_prompts_opens_and_sorts(tmp_path: Path) -> None:
    prompts = captions(8, seed=0)
    strips = [filmstrip(to_bytes(render(scenes_of_prompts([one], seed=2), 81)[0])) for one in prompts]
    path = tmp_path / "report.html"
    path.write_text(html_page(results(4, 200, seeds=1, strips=strips)))
    assert path.stat().st_size < 20_000_000
    with browser_page() as (page, complaints):
        started = time.perf_counter()
        page.goto(path.as_uri(), wait_until="load")
        assert time.perf_counter() - started < 30  # a second or two; a busy machine takes longer
        assert page.locator("article").count() == 200
        assert "a prompt runs" in page.locator("article h3").first.text_content()
        assert page.locator("article img").first.evaluate("image => image.complete && image.naturalWidth") > 0
        # Another metric, of one model: the order is that of its values.
        page.select_option("#metric", "motion")
        page.select_option("#subject", "2")
        values = page.eval_on_selector_all(
            'article .strip[data-subject="2"]', "all => all.map(one => Number(one.dataset.motion))"
        )
        assert values == sorted(values)
        page.fill("#search", "number 17")
        visible = page.locator("article:visible h3").all_text_contents()
        assert len(visible) == 11  # 17, and 170 to 179
        assert page.locator("#count").text_content() == "11 cases"
        assert all("number 17" in one for one in visible)
        # Nothing is wider than the window.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert complaints == []
