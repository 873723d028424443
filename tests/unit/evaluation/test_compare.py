import json

import numpy as np
import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.arena_write import Tournament, elo_difference, report
from megatron_lwz.evaluation.compare import Row, difference, label, mixed, read_run, rows
from megatron_lwz.evaluation.published import PAPER

VALUE = {"value": 5.0, "low": 4.0, "high": 6.0, "count": 9}


def result(folder, kind, metrics, **keys):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}.json").write_text(json.dumps({"kind": kind, "metrics": dict.fromkeys(metrics, VALUE), **keys}))
    return folder


def test_what_was_judged_differently_stands_in_different_rows(tmp_path):
    judge = {"judge": {"model": "m"}, "wording": "ours"}
    old = read_run(result(tmp_path / "old", "writing_bench", ["Overall", "Domain2_x"], era="2025-03", **judge))
    new = read_run(result(tmp_path / "new", "writing_bench", ["Overall"], era="2025-04", **judge), "mine")
    found = rows([old, new])
    assert [row.condition for row in found] == ["2025-03, m, ours", "2025-04, m, ours"] and mixed(found) == [
        "writing_bench"
    ]
    assert (old.name, new.name) == ("old", "mine") and old.figures[found[0]].high == 6.0


def test_the_length_score_needs_no_judge_and_compares_always(tmp_path):
    judged = read_run(
        result(tmp_path / "a", "longbench_write", ["s_l", "s_q"], judge={"model": "m", "wording": "judge.txt"})
    )
    plain = read_run(result(tmp_path / "b", "longbench_write", ["s_l"]))
    shared = Row("longbench_write", "", "s_l")
    assert shared in judged.figures and shared in plain.figures and label(shared) == "length score S_l"
    assert Row("longbench_write", "m, judge.txt", "s_q") in judged.figures and mixed(rows([judged, plain])) == []


def test_another_model_under_the_same_name_is_another_judge(tmp_path):
    judges = [{"model": "latest", "answered_by": names} for names in ({"v1": 9}, {"v2": 9}, {"latest": 9})]
    runs = [
        read_run(result(tmp_path / str(n), "writing_bench", ["Overall"], era="2025-04", judge=judge, wording="ours"))
        for n, judge in enumerate(judges)
    ]
    found = [row.condition for row in rows(runs)]
    assert found == [
        "2025-04, latest (answered by v1), ours",
        "2025-04, latest (answered by v2), ours",
        "2025-04, latest, ours",
    ]


def test_curves_compare_when_the_texts_were_cut_alike(tmp_path):
    metrics = ["repeated", "change/repeated", "quality"]
    judged = result(tmp_path / "a", "curve", metrics, cut="8 parts", judge={"model": "m", "wording": "ours"})
    plain = result(tmp_path / "b", "curve", metrics[:2], cut="8 parts")
    other = result(tmp_path / "c", "curve", metrics[:2], cut="every 500 words")
    found = rows([read_run(folder) for folder in (judged, plain, other)])
    assert [row.condition for row in found] == ["8 parts"] * 2 + ["8 parts, m, ours"] + ["every 500 words"] * 2
    assert label(found[1]) == "8-grams that stood before, change" and mixed(found) == []


def test_elo_compares_only_against_the_same_opponents(tmp_path):
    common = {"anchor": "base", "anchor_elo": 1000.0, "prompt_version": "lwz-pair-1", "judge": {"model": "m"}}
    for name, elo in (("a", ["me", "base"]), ("b", ["you", "base"]), ("c", ["me", "base", "other"])):
        keys = common | {"name": elo[0], "elo": dict.fromkeys(elo, VALUE)}
        result(tmp_path / name, "arena_write", ["Elo"], **keys)
    a, b, c = (next(iter(read_run(tmp_path / name).figures)) for name in "abc")
    assert a == b != c and "base at 1000" in a.condition


def test_differences_are_paired_by_prompt(tmp_path):
    rng = np.random.default_rng(0)
    hard = rng.normal(50, 20, 100)  # prompts differ much more than runs do
    runs = []
    for name, gain, start in (("a", 0.0, 0), ("b", 2.0, 5)):
        folder = result(tmp_path / name, "text", ["s_l"])
        rows_ = [{"id": str(n), "s_l": hard[n] + gain + rng.normal(0, 1)} for n in range(start, 100)]
        (folder / "text_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
        runs.append(read_run(folder))
    found = difference(runs[1], runs[0], Row("text", "", "s_l"))
    assert found.count == 95 and 1.5 < found.low < 2 < found.high < 2.5
    assert difference(runs[1], runs[0], Row("text", "", "other")) is None


def test_elo_differences_are_paired_by_prompt(tmp_path):
    """Both models do badly on the same prompts; which prompts were drawn must not count as a difference between them."""
    rng = np.random.default_rng(1)
    prompts = 100
    hard = rng.normal(0, 2.0, prompts)
    gains = {"a": 0.0, "b": 0.8}
    for name, gain in gains.items():
        games = []
        for number in range(0 if name == "a" else 10, prompts):
            for order in (("model", "base"), ("base", "model")):
                odds = (gain - hard[number]) * (1 if order[0] == "model" else -1)
                won = float(rng.random() < 1 / (1 + np.exp(-odds)))
                games.append({"prompt": str(number), "first": order[0], "second": order[1], "sample": 0, "score": won})
        keys = {"name": "model", "anchor": "base", "anchor_elo": 1000.0, "judge": {"model": "m"}}
        folder = result(tmp_path / name, "arena_write", ["Elo"], elo=dict.fromkeys(("model", "base"), VALUE), **keys)
        (folder / "arena_write_games.jsonl").write_text("".join(json.dumps(game) + "\n" for game in games))
    a, b = (read_run(tmp_path / name) for name in gains)
    (row,) = b.figures
    found = difference(b, a, row)
    assert found.count == 90 and 0 < found.low < found.value < found.high
    own = [elo_difference(run.tournaments[row], run.tournaments[row]) for run in (a, b)]
    assert all((e.value, e.low, e.high) == (0.0, 0.0, 0.0) for e in own), (
        "the same games differ from themselves by nothing"
    )
    alone = [report(run.tournaments[row].games, ["model", "base"], anchor="base").elo["model"] for run in (a, b)]
    apart = np.hypot(*(e.high - e.low for e in alone))
    assert found.high - found.low < 0.85 * apart, "surer than two intervals side by side"
    other = Tournament("model", "somebody else", a.tournaments[row].games)
    assert elo_difference(b.tournaments[row], other) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"kind": "text"}',
        '{"kind": "other", "metrics": {}}',
        '{"kind": "text", "metrics": {"s_l": 3}}',
        '{"kind": "text", "metrics": {"s_l": {"value": "5", "low": 4, "high": 6, "count": 9}}}',
        '{"kind": "text", "metrics": {"s_l": {"value": NaN, "low": 4, "high": 6, "count": 9}}}',
        '{"kind": "text", "metrics": {"s_l": {"value": 5, "low": 6, "high": 4, "count": 9}}}',
        '{"kind": "text", "metrics": {"\\ud83d": {}}}',
    ],
)
def test_what_is_no_result_is_said(tmp_path, text):
    with pytest.raises(DataError, match="no evaluation here"):
        read_run(tmp_path)
    (tmp_path / "text.json").write_text(text)
    with pytest.raises(DataError, match=r"text\.json: not a result"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("kind", "metric", "keys", "file", "line"),
    [
        ("text", "s_l", {}, "text_rows.jsonl", '{"id": 1, "s_l": "high"}'),
        ("text", "s_l", {}, "text_rows.jsonl", '{"s_l": 1}'),
        ("text", "s_l", {}, "text_rows.jsonl", '{"id": "\\ud83d"}'),
        ("writing_bench", "Overall", {"scores": "s.jsonl"}, "s.jsonl", '{"index": 1, "scores": {"a": [3]}}'),
        ("writing_bench", "Overall", {"scores": "s.jsonl"}, "s.jsonl", '{"index": 1, "scores": {"a": [{"score": "3"}]}}'),
        ("arena_write", "Elo", {"name": "a", "anchor": "b"}, "arena_write_games.jsonl", '{"prompt": "1"}'),
        ("arena_write", "Elo", {"name": "a", "anchor": "b"}, "arena_write_games.jsonl",
         '{"prompt": 1, "first": "a", "second": "b", "sample": 0, "score": 1}'),
        ("arena_write", "Elo", {"name": "a", "anchor": "b"}, "arena_write_games.jsonl",
         '{"prompt": "1", "first": "a", "second": "b", "sample": 0, "score": null}'),
    ],
)  # fmt: skip
def test_a_row_beside_a_result_that_is_not_ours_is_named(tmp_path, kind, metric, keys, file, line):
    if kind == "arena_write":
        keys = keys | {"elo": {"a": VALUE, "b": VALUE}, "anchor_elo": 1000.0}
    result(tmp_path, kind, [metric], **keys)
    (tmp_path / file).write_text("\n" + line + "\n")
    with pytest.raises(DataError, match=rf"{file}, line 2: ") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_scores_without_an_overall_figure_or_without_a_score_are_no_traceback(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"index": 1, "scores": {}}\n')
    result(tmp_path, "writing_bench", ["style_R"], scores="s.jsonl")
    assert not read_run(tmp_path).values
    result(tmp_path, "writing_bench", ["Overall"], scores="s.jsonl")
    with pytest.raises(DataError, match=r"writing_bench\.json: not a result"):
        read_run(tmp_path)


def test_the_published_figures_are_the_papers():
    assert (PAPER[0].writing_bench, PAPER[0].arena_elo) == (8.69, 1447) and len(PAPER) == 10
