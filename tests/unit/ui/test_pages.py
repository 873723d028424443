import asyncio
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from megatron_lwz.report.build import build_report
from megatron_lwz.types import Prompt
from tests.support.reading_run import HOSTILE, ReadingRun, response
from tests.support.synthetic_run import write_run

from .conftest import indexed, served

VOID = {"meta", "br", "line", "circle", "path", "link", "input", "img", "rect"}
RUN = "/runs/novels"
PAGES = (
    RUN,
    f"{RUN}?log=1&from=3&to=20",
    f"{RUN}/live",
    f"{RUN}/rollouts",
    f"{RUN}/rollouts?q=script",
    f"{RUN}/rollouts?q=river&sort=best&score=writing&kind=all&form=good",
    f"{RUN}/rollouts?q=nothingofthekind",
    f"{RUN}/rollouts?at=9000",
    *(
        f"{RUN}/rollouts/{group}/{rollout}"
        for group, rollout in ((0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1))
    ),
    *(f"{RUN}/groups/{group}" for group in (0, 2, 3)),
)


class Reader(HTMLParser):
    """Fails on a tag closed out of order; collects tags, attributes and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.ids = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    return reader


@pytest.fixture(scope="module")
def texts(pages):
    found = pages(*PAGES)
    assert [status for status, _, _ in found] == [200] * len(PAGES)
    return {path: text for path, (_, text, _) in zip(PAGES, found, strict=True)}


def test_every_page_is_well_formed_and_hostile_text_is_text(texts):
    for path, text in texts.items():
        reader = read(text)
        assert not {"img", "iframe", "object", "base"} & set(reader.tags), path
        assert not [name for name in reader.attributes if name.startswith("on")], path
        assert not set("\x00\x07\x1b\u202e\u202c\u2066\u2069\u200b\u2028\U000e0041") & set(text), path
    shown = "".join(read(texts[f"{RUN}/rollouts/2/0"]).text)
    assert "<script>document.title='owned'</script><img src=x onerror=" in shown
    assert "⟦U+202E⟧right to left⟦U+202C⟧" in shown and "⟦U+001B⟧[31mred⟦U+0007⟧⟦U+0000⟧" in shown


def test_thinking_answer_and_text_outside_are_apart_and_nothing_is_lost(texts):
    text = texts[f"{RUN}/rollouts/2/1"]
    assert text.index('class="outside"') < text.index('class="answer"') and 'id="think"' not in text
    assert 'id="answer"' not in texts[f"{RUN}/rollouts/2/2"]
    whole = texts[f"{RUN}/rollouts/0/0"]
    assert '<details class="think" id="think">' in whole and whole.index('id="think"') < whole.index('id="answer"')
    assert whole.count("Chapter") >= 4


def test_the_overview_shows_charts_by_section_and_zoom_and_log(texts):
    whole, part = texts[RUN], texts[PAGES[1]]
    for title in ("Reward by component", "entropy", "Engines", "Seconds per step", "Length sampled and trained on"):
        assert f"<figcaption>{title}" in whole
    (figure,) = [line for line in whole.split("<figure ") if line.startswith('id="chart-entropy"')]
    data = json.loads(figure.split('data-chart="')[1].split('"')[0].replace("&quot;", '"').replace("&#x27;", "'"))
    assert len(data["series"][0][1]) == 40 and data["log"] is False
    (figure,) = [line for line in part.split("<figure ") if line.startswith('id="chart-entropy"')]
    data = json.loads(figure.split('data-chart="')[1].split('"')[0].replace("&quot;", '"').replace("&#x27;", "'"))
    assert len(data["series"][0][1]) == 18 and data["log"] is True and data["zoomed"] is True


def test_the_list_shows_matches_and_pages(texts):
    assert "<mark>script</mark>" in texts[f"{RUN}/rollouts?q=script"]
    assert "No rollout fits" in texts[f"{RUN}/rollouts?q=nothingofthekind"]
    assert "45 rollouts of 16 prompt groups" in texts[f"{RUN}/rollouts"]


def test_bands_give_every_token_its_place(pages):
    (whole, hostile) = pages(f"{RUN}/rollouts/0/0/bands", f"{RUN}/rollouts/2/0/bands")
    for _, text, _ in (whole, hostile):
        found = json.loads(text)
        assert sum(found["ends"]) == found["length"] and len(found["ends"]) == len(found["logprob"])
        assert [name for _, name in found["versions"]] == ["step 0", "step 1"]
    assert len(json.loads(whole[1])["twins"]) >= 1


def test_a_missing_tokenizer_leaves_the_text_and_says_so(pages, reading_run, tmp_path):
    copy = shutil.copytree(reading_run, tmp_path / "novels")
    settings = (copy / "config.yaml").read_text().replace(str(reading_run / "tokenizer"), "/moved/away")
    (copy / "config.yaml").write_text(settings)
    page, bands = pages(f"{RUN}/rollouts/0/0", f"{RUN}/rollouts/0/0/bands", root=copy)
    assert page[0] == 200 and "--tokenizer" in json.loads(bands[1])["missing"]["logprob"]


def test_bands_of_the_trainer_give_its_values_or_why_there_are_none(pages, texts, reading_run, tmp_path):
    whole, hostile, guarded = (
        json.loads(text) for _, text, _ in pages(*(f"{RUN}/rollouts/{place}/bands" for place in ("0/0", "2/0", "3/1")))
    )
    assert len(whole["entropy"]) == len(whole["mismatch"]) == len(whole["ends"]) and min(whole["mismatch"]) < 0
    assert whole["advantage"] == 1.0 and whole["missing"] == {}
    assert "entropy" not in hostile and hostile["missing"].keys() == {"entropy", "mismatch"}
    assert "hold nothing of this rollout" in hostile["missing"]["entropy"] and guarded["advantage"] == -0.5
    assert "<dd><bdi>+1: length +0.5, writing +0.5</bdi></dd>" in texts[f"{RUN}/rollouts/0/0"]
    copy = shutil.copytree(reading_run, tmp_path / "novels")
    shutil.rmtree(copy / "token_values")
    bare, waiting, page = pages(
        f"{RUN}/rollouts/0/0/bands", f"{RUN}/rollouts/15/0/bands", f"{RUN}/rollouts/0/0", root=copy
    )
    assert "step 1 left no values" in json.loads(bare[1])["missing"]["mismatch"]
    assert json.loads(waiting[1])["missing"]["advantage"] == "no step has trained on this rollout yet"
    assert page[1].count("<small>no data</small>") == 2
    for path in (copy / "token_values" / "step_00000001" / "rank_00000.safetensors",):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no tensors")
    assert (
        "rank_00000.safetensors: cannot be read"
        in json.loads(pages(f"{RUN}/rollouts/0/0/bands", root=copy)[0][1])["missing"]["entropy"]
    )


def test_a_judges_words_stand_beside_the_text_as_text_and_lead_to_what_they_quote(texts, pages):
    whole = texts[f"{RUN}/rollouts/0/0"]
    (box,) = [
        part for part in whole.split('<details class="score"') if 'class="reasons"' in part and " open>" in part[:8]
    ]
    box = box.partition("</details>")[0]
    place, end, quoted = re.search(r'data-to="(\d+)" data-end="(\d+)">([^<]+)</a>”', box).groups()
    assert int(end) - int(place) == len(quoted) >= 8 and box.count("<a ") == 1
    paragraph = whole.rindex("<p", 0, whole.index(quoted, whole.index('id="answer"')))
    assert int(re.search(r'data-o="(\d+)"', whole[paragraph:])[1]) <= int(place)
    assert "“this stands nowhere in it”" in box and "&lt;script&gt;" in box and "⟦U+202E⟧right to left" in box
    assert '<p lang="zh-Hans" dir="auto"><b><bdi>partly met</bdi></b> 人物前后一致。</p>' in box
    assert '<details class="score" open>' not in texts[f"{RUN}/groups/0"] and "reasons" in texts[f"{RUN}/groups/0"]
    ((_, markdown, _),) = pages(f"{RUN}/rollouts/0/0/markdown")
    assert "## Judge: `writing`\n\n```text\nIt holds together" in markdown and "partly met: 人物前后一致。" in markdown


def test_the_report_has_the_judges_words_and_hidden_characters_as_text(reading_run, tmp_path):
    page = build_report(shutil.copytree(reading_run, tmp_path / "novels")).read_text(encoding="utf-8")
    assert not {"\u202e", "\u200b", "\x1b", "\x07", "\x00", "\U000e0041"} & set(page)
    assert "⟦U+202E⟧right to left" in page and '<div class="reasons"><p lang="en"' in page and "人物前后一致。" in page
    assert "<img" not in page and page.count("</script>") == 1


def test_what_does_not_exist_is_404_and_a_browser_gets_a_page(pages):
    paths = (f"{RUN}/rollouts/99/0", f"{RUN}/rollouts/0/9", f"{RUN}/groups/99", "/runs/other", f"{RUN}/rollouts/x/0")
    for status, text, _ in pages(*paths, headers={"Accept": "text/html"}):
        assert status == 404 and text.startswith("<!doctype html>")
        read(text)


def test_notes_are_kept_in_a_file_beside_the_run(pages, reading_run, tmp_path):
    copy = shutil.copytree(reading_run, tmp_path / "novels")
    path = f"{RUN}/rollouts/0/1"
    note = {"flag": True, "text": f"good </textarea>{HOSTILE}"}
    own = {"Origin": "http://evil.example"}
    assert pages(f"{path}/note", method="POST", json=note, headers=own, root=copy)[0][0] == 403
    assert pages(f"{path}/note", method="POST", json={"flag": 1}, root=copy)[0][0] == 400
    assert pages(f"{path}/note", method="POST", json=note, root=copy)[0][0] == 200
    (line,) = (copy / "notes.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert json.loads(line) == {"group": 0, "rollout": 1, **note}
    assert (copy / "notes.jsonl").stat().st_mode & 0o077 == 0
    page, flagged = pages(path, f"{RUN}/rollouts?flag=1", root=copy)
    assert "good &lt;/textarea&gt;&lt;script&gt;" in page[1] and "1 rollouts" in flagged[1]
    assert pages(f"{path}/note", method="POST", json={"flag": False, "text": ""}, root=copy)[0][0] == 200
    assert (copy / "notes.jsonl").read_text() == ""


def test_damage_is_one_line_on_the_page(pages, reading_run, tmp_path):
    copy = shutil.copytree(reading_run, tmp_path / "novels")
    (copy / "notes.jsonl").write_text("{nonsense")
    ((status, text, _),) = pages(f"{RUN}/rollouts", root=copy)
    assert status == 500 and "notes.jsonl, line 1" in text


def test_a_run_without_journal_and_one_without_metrics_are_shown(tmp_path):
    root = write_run(tmp_path / "synthetic")
    (root / "journal.sqlite").unlink()
    other = tmp_path / "begun"
    ReadingRun(other).close()

    async def main():
        found = []
        async with served(root, other) as (client, _):
            for path in ("/", "/runs/synthetic", "/runs/synthetic/rollouts", "/runs/begun", "/runs/begun/rollouts"):
                async with client.get(path) as answer:
                    found.append((answer.status, await answer.text()))
        return found

    found = asyncio.run(main())
    assert [status for status, _ in found] == [200] * 5
    assert (
        "synthetic &lt;run&gt;" in found[1][1]
        and "has no journal" in found[2][1]
        and "No step is finished" in found[3][1]
    )


def test_a_page_that_waits_hears_of_every_step(tmp_path):
    run = ReadingRun(tmp_path / "live")
    run.add_step(1)

    async def main():
        async with served(tmp_path / "live") as (client, runs):
            await indexed(runs)
            async with client.get("/runs/live/events") as events:
                assert events.headers["Content-Type"] == "text/event-stream"
                assert await events.content.readline() == b": open\n"
                run.add_group(Prompt("a", "One?"), [response("a text")], step=1)
                run.add_step(2)
                async with asyncio.timeout(60):
                    while not (line := await events.content.readline()).startswith(b"data: "):
                        pass
                await indexed(runs)
                async with client.get("/runs/live/live") as answer:
                    return json.loads(line[6:]), await answer.text()

    news, text = asyncio.run(main())
    assert news["news"] > 0 and "step 2 of 40" in text and "Read 1 rollouts" in text
    run.close()


def test_the_page_loads_no_torch():
    code = "import sys, megatron_lwz.cli.ui; print([m for m in ('torch', 'megatron.core', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
