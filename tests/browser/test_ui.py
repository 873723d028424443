"""People's ways through `lwz ui`, in a real Chromium."""

from __future__ import annotations

import json
import re

import pytest

from megatron_lwz.types import Prompt
from tests.support.reading_run import ReadingRun, response

from .conftest import OUT, serving, until

pytestmark = pytest.mark.browser

RUN = "/runs/novels"
ENGLISH, CHINESE = f"{RUN}/rollouts/0/0", f"{RUN}/rollouts/1/0"
SCROLL = """async () => {
  const gaps = [];
  let last = performance.now();
  for (let frame = 0; frame < 120; frame++) {
    scrollBy(0, 400);
    await new Promise(requestAnimationFrame);
    gaps.push(performance.now() - last);
    last = performance.now();
  }
  gaps.sort((a, b) => a - b);
  return { median: gaps[60], p95: gaps[114], worst: gaps[119], scrolled: scrollY };
}"""
PAINTED = """() => new Promise((done) => {
  let longest = 0;
  new PerformanceObserver((list) => list.getEntries().forEach((task) => { longest = Math.max(longest, task.duration); }))
    .observe({ type: 'longtask', buffered: true });
  setTimeout(() => done([Math.round(performance.getEntriesByName('first-contentful-paint')[0].startTime), longest]), 300);
})"""
LAID_OUT = """() => [...document.querySelectorAll('.answer .chunk')].filter(
  (chunk) => chunk.firstElementChild.checkVisibility({ contentVisibilityAuto: true })).length"""
DRAWN = "(name) => [...(CSS.highlights.get(name) ?? [])].length"
RANGES = (
    """(name) => [...CSS.highlights.get(name)].map((r) => r.startContainer.data.slice(r.startOffset, r.endOffset))"""
)
MARKED = """() => [...CSS.highlights.get('mark')].map(
  (range) => `${range.startContainer.parentElement.dataset.o}.${range.startOffset}`).join()"""


def picture(page, name: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=OUT / f"{name}.png")


def all_indexed(page) -> None:
    """Reloads a list until the server's index holds every rollout."""
    for _ in range(600):
        if "indexed so far" not in page.locator("p.note[role=status]").text_content():
            return
        page.wait_for_timeout(500)
        page.reload()
    pytest.fail("the index never becomes whole")


def test_the_overview_shows_values_zooms_and_has_a_log_scale(open_page):
    page = open_page(RUN)
    page.locator("#chart-entropy svg").scroll_into_view_if_needed()
    box = page.locator("#chart-entropy svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    until(page, "document.getElementById('tip').textContent.startsWith('step ')")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    until(page, "JSON.parse(document.getElementById('chart-entropy').dataset.chart).zoomed")
    assert "from=" in page.url and "to=" in page.url
    page.keyboard.press("l")
    until(page, "JSON.parse(document.getElementById('chart-entropy').dataset.chart).log")
    page.keyboard.press("0")
    until(page, "!JSON.parse(document.getElementById('chart-entropy').dataset.chart).zoomed")
    page.locator("#chart-entropy").focus()
    page.keyboard.press("ArrowRight")
    until(page, "document.getElementById('tip').textContent.startsWith('step 1')")


def test_the_list_filters_searches_and_opens_by_keyboard(open_page):
    page = open_page(f"{RUN}/rollouts")
    page.wait_for_load_state()
    page.keyboard.press("/")
    page.keyboard.type("提纲")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=**")
    for _ in range(600):  # the index may still be in the making
        if page.locator("table.rollouts tbody tr").count():
            break
        page.wait_for_timeout(200)
        page.reload()
    assert page.locator("table.rollouts tbody tr").count() == 1
    assert all("提纲" in text for text in page.locator(".snippet mark").all_text_contents())
    page.locator("summary", has_text="Filters").click()
    page.locator("select[name=end]").select_option("guard")
    page.locator("input[name=q]").fill("")
    page.locator("button", has_text="Show").click()
    page.wait_for_url("**end=guard**")
    assert page.locator("table.rollouts tbody tr").count() == 2
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/rollouts/3/*")
    page.keyboard.press("u")
    page.wait_for_url("**end=guard**")


def test_many_rollouts_come_in_pages(open_page):
    page = open_page(f"{RUN}/rollouts?sort=oldest")
    all_indexed(page)
    assert page.locator("table.rollouts tbody tr").count() == 60
    first = page.locator("table.rollouts tbody tr a").first.get_attribute("href")
    page.keyboard.press("n")
    page.wait_for_url("**at=60**")
    assert page.locator("table.rollouts tbody tr a").first.get_attribute("href") != first


def test_thousands_of_rollouts_are_listed_sorted_and_searched_a_page_at_a_time(open_page, many, measured):
    figures: dict[str, object] = {}
    page = open_page("/runs/many/rollouts", address=many)
    figures["while it indexes"] = page.evaluate(PAINTED)
    all_indexed(page)
    assert "5,000 rollouts of 1,250 prompt groups" in page.locator("p.note[role=status]").text_content()
    ways = {
        "newest": "",
        "last page": "at=4980",
        "most repetition": "sort=repetition",
        "best score": "sort=best&score=writing",
        "English word": "q=river",
        "Chinese, by score": "q=河&score=writing&least=0.5&sort=best",
        "steps": "first=10&last=12&form=good",
    }
    for name, query in ways.items():
        page.goto(f"{many}/runs/many/rollouts?{query}")
        rows = page.locator("table.rollouts tbody tr").count()
        assert rows == (20 if name == "last page" else 60), name
        figures[name] = page.evaluate(PAINTED)
    page.goto(f"{many}/runs/many/rollouts")
    seen = []
    for key, at in (("n", "at=60"), ("n", "at=120"), ("p", "at=60")):
        seen.append(page.locator("table.rollouts tbody a").first.get_attribute("href"))
        page.keyboard.press(key)
        page.wait_for_url(f"**{at}")
    assert len(set(seen)) == 3 and "page 2 of 84" in page.locator(".paging").text_content()
    figures["scrolling"] = page.evaluate(
        SCROLL.replace("120", "40").replace("60", "20").replace("114", "38").replace("119", "39")
    )
    page.locator("a[rel=last]").click()
    page.wait_for_url("**at=4980**")
    measured["5,000 rollouts, ms from request to first paint, longest task"] = figures
    picture(page, "list_many")


@pytest.mark.parametrize(("path", "name"), [(ENGLISH, "english"), (CHINESE, "chinese")])
def test_a_long_rollout_is_laid_out_where_it_is_seen(open_page, measured, path, name):
    page = open_page(path)
    page.wait_for_load_state()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    tokens = page.locator("dl.facts dd").nth(1).text_content()
    chunks = page.locator(".answer .chunk").count()
    assert chunks > 8 and page.evaluate(LAID_OUT) < chunks / 2
    plain = page.evaluate(SCROLL)
    page.evaluate("scrollTo(0, 0)")
    page.locator("input[value=logprob]").check()
    until(page, "document.body.dataset.band === 'logprob'")
    banded = page.evaluate(SCROLL)
    assert plain["scrolled"] > 5000
    measured[name] = {
        "tokens": tokens,
        "first contentful paint, ms": paint,
        "frames, ms": plain,
        "with the band, ms": banded,
    }
    picture(page, f"{name}_logprob")


def test_bands_are_drawn_at_the_tokens_and_only_near_the_screen(open_page):
    page = open_page(f"{ENGLISH}?band=logprob")
    until(page, "document.body.dataset.band === 'logprob' && CSS.highlights.get('band-1').size > 10")
    data = page.evaluate("fetch(document.body.dataset.bands).then((answer) => answer.json())")
    drawn = sum(page.evaluate(DRAWN, f"band-{level}") for level in (1, 2, 3, 4))
    assert 0 < drawn < len(data["ends"]) / 3
    page.keyboard.press("n")
    until(page, "CSS.highlights.get('mark').size > 0")
    assert "#o" in page.url
    for name, legend in (
        ("entropy", "from 2"),
        ("mismatch", "from 0.5"),
        ("advantage", "+1.00"),
        ("version", "step 0"),
    ):
        page.keyboard.press("b")
        until(page, "(name) => document.body.dataset.band === name", name)
        assert legend in page.locator("#legend").text_content()
    assert "step 0" in page.locator("#legend").text_content()
    page.keyboard.press("b")
    until(page, "document.body.dataset.band === 'repetition'")
    page.keyboard.press("n")
    until(page, "CSS.highlights.get('band-3').size > 0")
    passage, here = page.evaluate(RANGES, "mark"), page.evaluate(MARKED)
    page.keyboard.press("t")
    until(page, f"(before) => ({MARKED})() !== before", here)
    words = [re.findall(r"\w+", " ".join(texts).lower()) for texts in (passage, page.evaluate(RANGES, "mark"))]
    assert words[0] == words[1] and len(words[0]) >= 8


def test_hovering_a_repeated_passage_shows_its_twin(open_page):
    page = open_page(f"{ENGLISH}?band=repetition")
    until(page, "document.body.dataset.band === 'repetition'")
    page.keyboard.press("n")
    until(page, "CSS.highlights.get('mark').size > 0")
    place = page.evaluate("""() => {
      const range = [...CSS.highlights.get('mark')][0];
      const seen = document.createRange();
      seen.setStart(range.startContainer, range.startOffset);
      seen.setEnd(range.endContainer, Math.min(range.endOffset, range.startOffset + 3));
      const box = seen.getBoundingClientRect();
      return [box.left + 4, box.top + box.height / 2];
    }""")
    page.mouse.move(*place)
    until(page, "document.getElementById('tip').textContent.includes('into the text already')")
    assert page.evaluate(DRAWN, "twin") >= 2


def test_a_deep_link_leads_to_its_place_and_the_keys_move_it(open_page):
    page = open_page(f"{CHINESE}#o9000")
    page.wait_for_selector("p.at")
    place = int(page.locator("p.at").get_attribute("data-o"))
    assert 7000 < place <= 9000 and page.locator("p.at").is_visible()
    page.keyboard.press("j")
    until(page, "(before) => Number(document.querySelector('p.at').dataset.o) > before", place)
    page.keyboard.press("?")
    assert page.locator("dialog[open]").is_visible()
    page.keyboard.press("Escape")
    page.locator("#minimap").click(position={"x": 5, "y": 700})
    until(page, "scrollY > 10000")


def test_siblings_steps_and_notes(open_page, long_run):
    page = open_page(ENGLISH)
    page.keyboard.press("]")
    page.wait_for_url("**/rollouts/0/1*")
    page.keyboard.press("s")
    page.wait_for_url("**/groups/0")
    assert page.locator(".column").count() == 2
    picture(page, "siblings")
    page.keyboard.press("u")
    page.wait_for_url("**/rollouts")
    page.goto(page.url.partition("/runs/")[0] + ENGLISH)
    page.keyboard.press("d")
    page.wait_for_url("**/prompt?**")
    assert page.locator(".pair ins").count() > 0
    picture(page, "steps")
    page.go_back()
    page.keyboard.press("m")
    page.keyboard.type("a good middle </textarea><script>1</script>")
    page.locator("button", has_text="Save note").click()
    until(page, "document.getElementById('note').dataset.saved === 'yes'")
    page.locator("h2", has_text="Note").click()
    page.keyboard.press("f")
    until(page, "document.getElementById('say').textContent === 'saved'")
    page.reload()
    assert page.locator("#note-text").input_value().startswith("a good middle </textarea>")
    assert page.locator("#flag").get_attribute("aria-pressed") == "true"
    noted = json.loads((long_run / "notes.jsonl").read_text())
    assert noted["flag"] and (noted["group"], noted["rollout"]) == (0, 0)


@pytest.mark.parametrize(
    "path",
    [
        f"{RUN}/rollouts?q=script",
        f"{RUN}/rollouts/2/0?band=repetition",
        f"{RUN}/rollouts/2/2",
        f"{RUN}/groups/2",
        f"{RUN}/prompt?id=hostile&a=2.0&b=2.1",
    ],
)
def test_hostile_texts_are_shown_and_do_nothing(open_page, path):
    page = open_page(path)
    page.wait_for_load_state("load")
    assert page.title() != "owned"
    assert page.locator("main img").count() == 0 and page.locator("main script").count() == 0
    assert "<script>document.title='owned'</script>" in page.locator("main").text_content()


def test_several_runs_share_charts(open_page):
    page = open_page("/")
    for box in page.locator("input[name=run]").all():
        box.check()
    page.locator("button", has_text="Compare").click()
    page.wait_for_url("**/compare?**")
    assert {"novels: entropy", "other: entropy"} <= set(page.locator("#chart-entropy .key").all_text_contents())
    page.keyboard.press("l")
    page.wait_for_url("**log=1**")
    assert "run=other" in page.url
    picture(page, "compare")


def test_the_page_follows_a_run_that_trains(open_page, tmp_path):
    run = ReadingRun(tmp_path / "live", name="live")
    run.add_step(1)
    with serving(run.root) as address:
        page = open_page("/runs/live", address=address)
        until(page, "document.querySelector('.lead').textContent.includes('step 1 of 40')")
        watching = open_page("/runs/live/rollouts", address=address)
        for step in range(2, 8):
            run.add_group(Prompt("a", "One?"), [response("A text.")], step=step)
            run.add_step(step, **{"rollout/engines_up": 0.0})
        until(page, "document.querySelector('.lead').textContent.includes('step 7 of 40')")
        until(page, "document.querySelector('.alarms .serious')?.textContent.includes('engines are out')")
        watching.locator("#fresh").click()
        until(watching, "document.querySelectorAll('table.rollouts tbody tr').length > 0")
        for opened in (page, watching):
            opened.close()
    run.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_axe_finds_no_serious_fault_and_nothing_is_cut_off(open_page, phone, dark):
    from axe_playwright_python.sync_playwright import Axe

    name = f"{'phone' if phone else 'desktop'}_{'dark' if dark else 'light'}"
    paths = {
        "runs": "/",
        "overview": RUN,
        "list": f"{RUN}/rollouts?q=chapter&form=good",
        "english": f"{ENGLISH}?band=logprob",
        "chinese": f"{CHINESE}?band=repetition",
        "group": f"{RUN}/groups/2",
        "prompt": f"{RUN}/prompt?id=novel-en",
        "both": "/compare?run=novels&run=other",
    }
    for title, path in paths.items():
        page = open_page(path, phone=phone, dark=dark, bypass_csp=True)  # axe itself needs what the policy forbids
        page.wait_for_load_state()
        if "band=" in path:
            until(page, "document.body.dataset.band !== undefined")
        found = Axe().run(page).response["violations"]
        serious = {
            fault["id"]: [node["html"][:160] for node in fault["nodes"][:3]]
            for fault in found
            if fault["impact"] in ("serious", "critical")
        }
        assert serious == {}, f"{title} {name}"
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, f"{title} {name}"
        picture(page, f"{title}_{name}")
        page.close()
