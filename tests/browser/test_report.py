"""report.html from disk, in a real Chromium without a network."""

from __future__ import annotations

import pytest

from megatron_lwz.report.build import build_report
from tests.support.reading_run import write_reading_run

from .conftest import until
from .test_ui import picture

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return build_report(write_reading_run(tmp_path_factory.mktemp("report") / "novels", words=12_000, more=40))


@pytest.fixture
def open_report(browser, report):
    """Opens the file: `open_report(phone=True, dark=True)`. Any message and any request but that for the file fails the test."""
    contexts, said = [], []

    def open_it(*, phone: bool = False, dark: bool = False, **options):
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport=size, color_scheme=scheme, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url == report.as_uri() or said.append(f"asks {request.url}"))
        page.goto(report.as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert said == []


def test_the_rollouts_inside_are_searched_sorted_and_marked(open_report):
    page = open_report()
    shown = page.locator("#found > details:not([hidden])")
    assert page.title() != "owned" and page.locator("#search").is_visible()
    total = shown.count()
    page.locator("#search input").fill("河 第3条")
    until(page, f"document.querySelector('#search output').textContent.endsWith(' of {total}')")
    assert 0 < shown.count() < total
    assert all("第3条河" in text for text in shown.locator("> summary").all_text_contents())
    shown.first.locator("> summary").click()
    until(page, "CSS.highlights.get('match').size > 0")
    page.locator("#search input").fill('"stands in no text"')
    until(page, f"document.querySelector('#search output').textContent === '0 of {total}'")
    page.locator("#search input").fill("")
    page.locator("#search select").select_option("longest")
    words = [
        int(text)
        for text in page.evaluate("[...document.querySelectorAll('.found')].map((item) => item.dataset.words)")
    ]
    assert words == sorted(words, reverse=True) and words[0] > 10_000
    page.locator("#search select").select_option("worst")
    scores = page.evaluate("[...document.querySelectorAll('.found')].map((item) => Number(item.dataset.score))")
    assert scores == sorted(scores) and scores[0] < scores[-1]


def test_it_prints_without_the_controls_and_the_folded_rollouts_on_white(open_report):
    page = open_report(dark=True)
    page.locator("#found > details > summary").first.click()
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("#search").is_visible() and page.locator("#found > details:visible").count() == 1
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert len(page.pdf()) > 10_000


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_axe_finds_no_serious_fault_and_nothing_is_cut_off(open_report, phone, dark):
    from axe_playwright_python.sync_playwright import Axe

    page = open_report(phone=phone, dark=dark, bypass_csp=True)  # axe itself needs what the policy forbids
    for details in page.locator("#found > details > summary").all()[:2]:
        details.click()
    found = Axe().run(page).response["violations"]
    serious = {
        fault["id"]: [node["html"][:160] for node in fault["nodes"][:3]]
        for fault in found
        if fault["impact"] in ("serious", "critical")
    }
    assert serious == {}
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.evaluate("document.getElementById('search').scrollIntoView()")
    picture(page, f"report_{'phone' if phone else 'desktop'}_{'dark' if dark else 'light'}")
