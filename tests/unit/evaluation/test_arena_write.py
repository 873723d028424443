from __future__ import annotations

import asyncio
import json
import re

import pytest

from megatron_lwz.config.sections import JudgeSection
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.arena_files import read_baselines, read_player
from megatron_lwz.evaluation.arena_write import Game, pairs, play, report
from megatron_lwz.evaluation.bradley_terry import ELO
from megatron_lwz.evaluation.tasks import Task, read_tasks
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_prompts import read_winner
from tests.support.planted_judge import BIAS, STRENGTHS, planted
from tests.support.scripted_server import KEY, Scripted, serving

TASKS = [Task(str(n), f"Task {n}", None, {}) for n in range(150)]
TEXTS = {name: {task.id: f"{name} writes {task.id}" for task in TASKS} for name in STRENGTHS}


def played(server: Scripted, who, **options):
    async def main():
        async with Judge(JudgeSection(url=server.url, model="j", malformed_retries=0), KEY) as judge:
            return await play(TASKS, TEXTS, who, judge, **options)

    with serving(server):
        return asyncio.run(main())


def test_planted_preferences_and_position_bias_are_recovered():
    games, incomplete = played(Scripted(planted), pairs(["strong", "weak"], ["baseline"], every=True))
    assert len(games) == 150 * 3 * 2 and incomplete == 0
    found = report(games, list(STRENGTHS), anchor="baseline")
    assert list(found.elo) == ["strong", "baseline", "weak"]
    for name, strength in STRENGTHS.items():
        planted_elo = 1000 + ELO * strength
        assert found.elo[name].low <= planted_elo <= found.elo[name].high, name
    assert found.elo["baseline"].low == found.elo["baseline"].high == 1000
    assert found.bias["first_place_elo"].low <= ELO * BIAS <= found.bias["first_place_elo"].high
    assert found.bias["first_place_share"].low > 0.5
    share = found.consistency
    assert share["first_place_won_both"].value > share["second_place_won_both"].value
    total = sum(
        share[name].value for name in ("same_winner_in_both_orders", "first_place_won_both", "second_place_won_both")
    )
    assert total == pytest.approx(1), "this judge knows no ties"
    assert found.win_rates["strong"]["weak"] == pytest.approx(1 - found.win_rates["weak"]["strong"])
    assert found.win_rates["strong"]["weak"] > found.win_rates["strong"]["baseline"] > 0.5
    assert found.online["strong"] > found.online["baseline"] == 1000 > found.online["weak"]
    assert found.elo["strong"].count == 600


def test_asking_again_shows_self_consistency():
    games, _ = played(
        Scripted(lambda prompt, number: planted(f"{prompt}\n{number}", number)), [("strong", "weak")], repeats=3
    )
    found = report(games, ["strong", "weak"], anchor="weak")
    assert found.consistency["same_verdict_when_asked_again"].count == 150 * 2 * 2
    assert 0.5 < found.consistency["same_verdict_when_asked_again"].value < 1


def test_a_pair_with_only_one_order_judged_is_left_out():
    def one_order(prompt: str, number: int) -> str:
        first = re.search(r"^(\w+) writes", prompt, re.MULTILINE).group(1)
        return "no idea" if first == "weak" and "writes 7\n" in prompt else planted(prompt, number)

    games, incomplete = played(Scripted(one_order), [("strong", "weak")])
    assert (len(games), incomplete) == (298, 1) and not [game for game in games if game.prompt == "7"]


def test_win_rates_count_ties_half():
    games = [
        Game("0", "a", "b", 0, 0.5),
        Game("0", "b", "a", 0, 0.5),
        Game("1", "a", "b", 0, 1.0),
        Game("1", "b", "a", 0, 0.0),
    ]
    found = report(games, ["a", "b", "absent"], anchor="b", resamples=20)
    assert found.win_rates == {"a": {"b": 0.75}, "b": {"a": 0.25}} and "absent" not in found.elo
    assert found.consistency["same_winner_in_both_orders"].value == 1


def test_who_meets_whom():
    assert pairs(["m", "n"], ["x", "y"]) == [("m", "x"), ("m", "y"), ("n", "x"), ("n", "y")]
    assert pairs(["m"], ["x", "y"], every=True) == [("m", "x"), ("m", "y"), ("x", "y")]
    assert pairs(["m", "n"], []) == [("m", "n")] and pairs(["m"], []) == []


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"winner": "first"}', 1.0),
        ("{'winner': 'Second'}", 0.0),
        ('{"winner": "tie"}', 0.5),
        ('{"winner": "A"}', None),
        ("first", None),
        ('{"winner": ["first"]}', None),
        ('{"reason": "x"}', None),
    ],
)
def test_verdicts_are_read_strictly(reply, score):
    assert read_winner(reply) == score


@pytest.mark.parametrize(
    ("value", "players"),
    [
        ("", {}),
        (None, {}),
        ("a", {"baseline": "a"}),
        (["a", "b"], {"baseline-1": "a", "baseline-2": "b"}),
        ({"gpt": "a", "r1": "<think>x</think>b"}, {"gpt": "a", "r1": "b"}),
        ([{"model": "gpt", "response": "a"}, {"model": "r1", "output": "b"}], {"gpt": "a", "r1": "b"}),
    ],
)
def test_baselines_are_read_in_every_form(tmp_path, value, players):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"idx": 1, "question": "q", "length": 200, "baseline_response": value}) + "\n")
    found = read_baselines(read_tasks(path), path)
    assert found == {name: {"1": text} for name, text in players.items()}


@pytest.mark.parametrize("value", [7, [7], [{"model": "gpt"}], {"gpt": {"tokens": 3}}])
def test_baselines_in_another_form_name_what_is_there(tmp_path, value):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"idx": 1, "question": "q", "baseline_response": value}) + "\n")
    with pytest.raises(DataError, match=r"line 1: 'baseline_response' (must|holds)"):
        read_baselines(read_tasks(path), path)


def test_a_player_answers_the_files_prompts_once(tmp_path):
    tasks = [Task("1", "q", None, {})]
    path = tmp_path / "r.jsonl"
    for rows, said in (
        ([{"idx": 2, "response": "a"}], "'2' answers no prompt"),
        ([{"idx": 1, "sample": 1, "response": "a"}], "several"),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(DataError, match=said):
            read_player(path, tasks)
