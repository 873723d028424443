import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from megatron_lwz.cli import common
from megatron_lwz.cli import report as report_command
from megatron_lwz.errors import DataError
from megatron_lwz.report.axes import HEIGHT, Frame, _tick_labels, frame_around, short, ticks
from megatron_lwz.report.build import build_report
from megatron_lwz.report.charts import LengthPoint, curves, histogram, lengths_scatter
from megatron_lwz.report.embedded import MOST, spread
from tests.support.synthetic_run import ATTACK, write_run

VOID = {"meta", "br", "line", "circle", "path", "input"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "synthetic")


@pytest.fixture(scope="module")
def page(run):
    return build_report(run).read_text(encoding="utf-8")


def test_the_page_is_one_well_formed_file_without_network(page, run):
    reader = Balanced()
    reader.feed(page)
    assert reader.open == []
    assert not {"link", "img", "iframe"} & set(reader.tags) and reader.tags.count("script") == 1
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'" in page
    assert not re.search(r"https?://|@import|url\(", page)
    assert [path.name for path in run.glob(".report*")] == []


def test_text_of_the_model_the_prompt_and_the_config_is_escaped(page):
    assert ATTACK not in page
    assert page.count("&lt;script&gt;alert(&#x27;model text&#x27;)") >= 3
    assert "<h1>synthetic &lt;run&gt;</h1>" in page


def test_the_page_shows_curves_lengths_readings_and_before_and_after(page):
    for title in (
        "Reward by component",
        "Share of rollouts",
        "Sameness of siblings",
        "Length of the answers",
        "entropy",
        "mismatch/kl",
        "To read",
    ):
        assert title in page
    assert "reward_masked/length" in page.split("All metrics")[1]
    assert "<tr><td>in the asked range</td><td>0.2</td><td>0.75</td><td>+0.55</td></tr>" in page
    assert "写一篇关于第" in page and "Write about river" in page
    assert "extra masked" in page
    assert "40 steps in 4 min 40 s" in page


def test_held_out_prompts_show_curves_texts_ratings_and_the_best_checkpoint(page):
    held_out = page.split("<h2>Held-out prompts</h2>")[1].split("</section>")[0]
    assert "<tr><td>length score S_l, 0 to 100</td><td>70</td><td>90</td><td>+20</td></tr>" in held_out
    for title in ("well-formed", "quality score S_q", "updates made meanwhile"):
        assert f"<figcaption>{title}" in held_out, title
    assert "Best checkpoint: step_00000040, eval/reward/length 0.92" in held_out


def test_two_rollouts_from_the_last_step_window_are_shown_and_the_same_number_from_the_first(page):
    after, before = page.split("The same from the first steps")
    assert after.count('class="rollout"') == 2 and "Step 38." in after
    assert before.count('class="rollout"') == 2 and "Step 1." in before


def test_rollouts_to_search_come_from_the_whole_run_and_their_size_is_bounded_and_said(run, page, tmp_path):
    section = page.split("<h2>Rollouts to search</h2>")[1].split("</section>")[0]
    steps = [int(step) for step in re.findall(r'class="found" data-step="(\d+)"', section)]
    assert len(steps) == 36 and steps == sorted(steps, reverse=True) and (steps[0], steps[-1]) == (40, 1)
    assert max(steps.count(step) for step in set(steps)) - min(steps.count(step) for step in set(steps)) <= 1
    assert "36 rollouts of the 36 groups" in section and f"at most {MOST} of them and 4 MB" in section
    copy = shutil.copytree(run, tmp_path / "copy")
    text = (copy / "config.yaml").read_text(encoding="utf-8")
    for size in ("0.03", "0"):
        changed = text.replace("report_megabytes: 4.0", f"report_megabytes: {size}")
        assert changed != text
        (copy / "config.yaml").write_text(changed, encoding="utf-8")
        less = build_report(copy).read_text(encoding="utf-8")
        steps = [int(step) for step in re.findall(r'class="found" data-step="(\d+)"', less)]
        items = less.partition('<div id="found">')[2].partition("</details></div>")[0]
        assert len(items.encode()) <= float(size) * 1e6 and len(steps) < 36
        assert (max(steps) > 30 and min(steps) == 1) if steps else (size == "0" and "to search</h2>" not in less)


def test_every_beginning_of_the_spread_order_covers_the_whole_run():
    for count, most in ((1, 5), (2, 5), (7, 5), (1000, 200), (200, 200)):
        order = spread(count, most)
        assert len(set(order)) == len(order) == min(count, most) and all(0 <= place < count for place in order)
    order = sorted(spread(1000, 200)[:50])
    assert max(after - before for before, after in pairwise([0, *order, 999])) < 70


def test_a_run_without_a_journal_has_a_report_too(run, tmp_path):
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(run / name, tmp_path)
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "Reward by component" in page and "To read" not in page


def test_the_command_prints_the_path_and_a_wrong_folder_is_one_line(run, tmp_path, capsys):
    assert common.run(report_command.main, [str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert common.run(report_command.main, [str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(DataError, match=r"metrics\.jsonl.*run folder"):
        build_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no step"):
        build_report(tmp_path)


def test_ticks_are_round_and_inside():
    assert ticks(0.0, 1.0, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [round(t, 9) for t in ticks(-0.013, 0.021, 4)] == [-0.01, 0.0, 0.01, 0.02]
    assert ticks(0, 14_000, 6)[:2] == [0, 2500]
    assert frame_around([1, 2], [1.0, 2.0]).whole and not frame_around([1, 2], [1.0, 2.5]).whole
    assert ticks(1, 3, 6, whole=True) == [1, 2, 3] and ticks(1, 15, 6, whole=True) == [5, 10, 15]
    assert _tick_labels([0.99998, 1.0, 1.00002]) == ["0.99998", "1.00000", "1.00002"]
    assert (
        short(12_000) == "12k"
        and short(0.00031) == "3.1e-4"
        and short(0.0018) == "0.0018"
        and short(0) == "0"
        and short(0.85) == "0.85"
    )


def test_a_frame_holds_every_point_even_of_a_constant_curve():
    for ys in ([2.0], [0.0, 0.0], [-1.0, 5.0]):
        frame = frame_around([1.0] * len(ys), ys)
        assert all(0 <= frame.y(y) <= HEIGHT and 0 <= frame.x(1.0) <= 480 for y in ys)
    assert Frame(0, 1, 0, 1).y(1) < Frame(0, 1, 0, 1).y(0)


def test_values_that_are_not_finite_are_left_out_and_an_empty_chart_is_no_chart():
    assert curves("kl", {"kl": [(1, float("nan"))]}) == ""
    assert "nan" not in curves("kl", {"kl": [(1, float("nan")), (2, 1.0), (3, float("inf"))]})
    assert histogram("h", {"a": []}, x_label="") == ""


def test_the_scatter_counts_hits_with_both_bounds_included():
    points = [LengthPoint(10, 20, written) for written in (9, 10, 20, 21)]
    chart = lengths_scatter("t", points, unit="words", largest=30)
    assert "2 of 4 in the asked range" in chart
    assert chart.count('class="hit"') == chart.count('class="miss"') == 2


def test_the_histogram_shares_add_up_to_one():
    from megatron_lwz.report.charts import _shares

    assert sum(_shares([0.0, 3.0, 7.0, 10.0], 10.0)) == 1.0


def test_a_function_of_the_users_that_is_not_here_costs_its_section_not_the_page(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    text = (copy / "config.yaml").read_text(encoding="utf-8")
    absent = text.replace("advantage_function: null", "advantage_function: somewhere_else:f")
    assert absent != text
    (copy / "config.yaml").write_text(absent, encoding="utf-8")
    page = build_report(copy).read_text(encoding="utf-8")
    assert "Left out, advantages cannot be computed here: config key &#x27;reward.advantage_function&#x27;" in page
    assert "To read" in page
