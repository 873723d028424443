from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from aiohttp import web

from megatron_lwz.errors import DataError, EngineError
from megatron_lwz.evaluation.generate import Plan, generate, settings_of
from megatron_lwz.evaluation.presets import PRESETS, Sampling
from megatron_lwz.evaluation.response_file import ResponseFile
from megatron_lwz.evaluation.tasks import read_tasks
from megatron_lwz.http.completions import CompletionClient
from tests.support.scripted_server import KEY, Scripted, serving

PLAN = Plan(Sampling(0.7, 0.8, 20, 100), None, backoff=0.01, concurrency=4)


@pytest.fixture
def tasks(tmp_path):
    rows = [{"index": n, "query": f"Task {n}", "checklist": ["long"], "length": 5} for n in range(12)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_tasks(tmp_path / "p.jsonl")


def encode(text):
    return list(map(ord, text))


def write(path, tasks, server, plan=PLAN, api="chat"):
    """Generates; returns the rows of the file."""

    async def main() -> None:
        async with CompletionClient(server.url, KEY, model="m", api=api, timeout=5) as client:
            with ResponseFile(path, tasks, settings_of(plan, "m")) as file:
                await generate(tasks, client, file, plan)

    asyncio.run(main())
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_prompt_gets_one_response(tmp_path, tasks):
    server = Scripted(lambda prompt, _: f"<think>hm</think>\n{prompt} done 中文", delay=0.01)
    with serving(server):
        rows = write(tmp_path / "r.jsonl", tasks, server)
        assert server.most == 4
    assert sorted(row["index"] for row in rows) == list(range(12))
    row = next(row for row in rows if row["index"] == 3)
    assert row["response"] == "Task 3 done 中文" and row["response_length"] == 4 and row["raw"].startswith("<think>")
    assert (row["finish_reason"], row["model"], row["tokens"]) == ("stop", "scripted-1", 10)
    assert "checklist" not in row and row["query"] == "Task 3"
    body = server.bodies[0]
    assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (0.7, 0.8, 20, 100)
    assert len({b["seed"] for b in server.bodies}) == 12 and "stop" not in body


def test_template_gives_the_policys_prompt_and_its_stops(tmp_path, tasks):
    server = Scripted(lambda prompt, _: "<think>a</think><answer>b</answer>")
    with serving(server):
        rows = write(
            tmp_path / "r.jsonl", tasks, server, replace(PLAN, template="row", style="bare"), api="completions"
        )
        write(tmp_path / "s.jsonl", tasks, server, replace(PLAN, template="direct", samples=2), api="completions")
    assert server.bodies[0]["prompt"] == "<|user|>: Task 0 <|assistant|>:" and "</answer>" in server.bodies[0]["stop"]
    assert (rows[0]["response"], rows[0]["template"], rows[0]["fault"]) == ("b", "think", None)
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 24


def test_a_killed_run_goes_on_without_repeating_a_row(tmp_path, tasks):
    path = tmp_path / "r.jsonl"
    server = Scripted(lambda prompt, _: f"reply to {prompt}")
    with serving(server):
        write(path, tasks[:5], server)
        with path.open("a") as torn:  # what a kill in the middle of a write leaves
            torn.write('{"id": "7", "response": "half a l')
        rows = write(path, tasks, server)
        assert len(server.bodies) == 12
        assert write(path, tasks, server) == rows and len(server.bodies) == 12
    assert sorted(row["index"] for row in rows) == list(range(12))


def test_a_file_never_mixes_models_or_prompts(tmp_path, tasks):
    path = tmp_path / "r.jsonl"
    server = Scripted(lambda prompt, _: "text")
    with serving(server):
        write(path, tasks, server)
        with pytest.raises(DataError, match=r"made with temperature = 0\.7, not 0\.9"):
            write(path, tasks, server, replace(PLAN, sampling=replace(PLAN.sampling, temperature=0.9)))
        with pytest.raises(DataError, match=r"line 1: response '\d+' answers another prompt"):
            write(path, [replace(task, prompt="other") for task in tasks], server)
        with (
            ResponseFile(path, tasks, settings_of(PLAN, "m")),
            pytest.raises(DataError, match=r"process \d+ on .* writes this file"),
        ):
            write(path, tasks, server)
        path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
        with pytest.raises(DataError, match=r"line 13: response '\d+' stands there twice"):
            write(path, tasks, server)


def test_what_failed_is_counted_and_tried_again_by_the_next_call(tmp_path, tasks):
    path = tmp_path / "r.jsonl"
    bad = Scripted(
        lambda prompt, _: web.Response(status=400, text="too long") if prompt in ("Task 8", "Task 9") else "text"
    )
    good = Scripted(lambda prompt, _: "text")
    with serving(bad, good):
        with pytest.raises(EngineError, match=r"2 of 12 responses failed \(2 refused\), run again.*too long"):
            write(path, tasks, bad)
        assert len(write(path, tasks, good)) == 12 and len(good.bodies) == 2


def test_a_server_that_answers_nothing_ends_it_early(tmp_path, tasks):
    server = Scripted(lambda *_: web.Response(status=404, text="no such model"))
    with serving(server), pytest.raises(EngineError, match="no such model"):
        write(tmp_path / "r.jsonl", tasks, server)
    assert len(server.bodies) < 12


def test_a_stream_that_breaks_is_begun_again(tmp_path, tasks):
    def broken(_, number: int):
        if number:
            return "whole"
        return web.Response(
            text='data: {"choices": [{"delta": {"content": "half"}}]}\n\n', content_type="text/event-stream"
        )

    server = Scripted(broken)
    with serving(server):
        rows = write(tmp_path / "r.jsonl", tasks[:1], server)
    assert [row["response"] for row in rows] == ["whole"] and len(server.bodies) == 2


STORY = "abcdefghij" * 6


class Breaking:
    """Streams STORY from where the prompt ends, 10 characters at a time; each request breaks off after `most` pieces."""

    def __init__(self, most: int, *, usage: bool = False) -> None:
        self.most, self.usage, self.written = most, usage, 0

    def __call__(self, prompt: str, number: int) -> web.Response:
        prompt = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        start = len(prompt.partition("|>:")[2].rpartition("|>:")[2])
        rest = STORY[start:]
        pieces = [rest[place : place + 10] for place in range(0, len(rest), 10)][: self.most]
        whole = start + 10 * len(pieces) >= len(STORY)
        events = []
        for count, piece in enumerate(pieces, start=1):
            end = "stop" if whole and count == len(pieces) else None
            chunk = {"choices": [{"text": piece, "finish_reason": end}]}
            events.append(
                chunk | ({"usage": {"prompt_tokens": 1, "completion_tokens": 5 * count}} if self.usage else {})
            )
        self.written += 10 * len(pieces)
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return web.Response(text=text, content_type="text/event-stream")


@pytest.mark.parametrize(("usage", "left"), [(True, [100, 90, 80]), (False, [100, 98, 96])])
def test_a_completion_goes_on_where_its_stream_broke(tmp_path, tasks, usage, left):
    script = Breaking(2, usage=usage)
    server = Scripted(script)
    with serving(server):
        plan = replace(PLAN, template="direct", style="bare")
        (row,) = write(tmp_path / "r.jsonl", tasks[:1], server, plan, api="completions")
    assert row["raw"] == STORY and row["finish_reason"] == "stop"
    assert script.written == len(STORY), "nothing was written twice"
    assert [body["max_tokens"] for body in server.bodies] == left
    assert [len(body["prompt"]) - len(server.bodies[0]["prompt"]) for body in server.bodies] == [0, 20, 40]
    assert len({body["seed"] for body in server.bodies}) == 3
    assert server.bodies[0]["stream_options"]["continuous_usage_stats"]
    assert not list(tmp_path.glob("*.partial.jsonl"))


def test_a_killed_process_goes_on_with_unfinished_completions(tmp_path, tasks):
    path, plan = tmp_path / "r.jsonl", replace(PLAN, template="direct", style="bare", retries=0)
    script = Breaking(2)
    server = Scripted(script)
    with serving(server):
        with pytest.raises(EngineError):  # every request breaks off, and none is tried again
            write(path, tasks[:3], server, plan, api="completions")
        partial = path.with_name("r.jsonl.partial.jsonl")
        with partial.open("a") as torn:
            torn.write('{"id": "0", "sample": 0, "text": "torn')
        script.most = 9
        rows = write(path, tasks[:3], server, plan, api="completions")
    assert [row["raw"] for row in rows] == [STORY] * 3 and script.written == 3 * len(STORY)
    assert not partial.exists()


def test_beginnings_made_in_another_way_are_not_gone_on_with(tmp_path, tasks):
    path, plan = tmp_path / "r.jsonl", replace(PLAN, template="direct", style="bare", retries=0)
    script = Breaking(2)
    server = Scripted(script)
    with serving(server):
        for other, changed in ((replace(plan, seed=5), tasks), (plan, [replace(t, prompt="Else") for t in tasks])):
            with pytest.raises(EngineError):
                write(path, tasks[:1], server, plan, api="completions")
            script.most, asked = 9, len(server.bodies)
            (row,) = write(path, changed[:1], server, other, api="completions")
            assert row["raw"] == STORY and server.bodies[asked]["prompt"].endswith("<|assistant|>:")
            script.most = 2
            path.unlink()
        with pytest.raises(EngineError):
            write(path, tasks[:1], server, plan, api="completions")
    path.with_name("r.jsonl.partial.jsonl").write_text("{}\n")
    with serving(server), pytest.raises(DataError, match=r"partial\.jsonl, line 1: damaged"):
        write(path, tasks[:1], server, plan, api="completions")


def test_a_beginning_as_long_as_allowed_is_the_whole(tmp_path, tasks):
    path, plan = (
        tmp_path / "r.jsonl",
        replace(PLAN, template="direct", style="bare", retries=0, encode=encode, context=900),
    )
    script = Breaking(2)
    server = Scripted(script)
    with serving(server):
        plan = replace(plan, sampling=replace(plan.sampling, max_tokens=20))
        with pytest.raises(EngineError):
            write(path, tasks[:1], server, plan, api="completions")
        (row,) = write(path, tasks[:1], server, plan, api="completions")
    assert (row["raw"], row["finish_reason"]) == (STORY[:20], "length") and len(server.bodies) == 1
    assert server.bodies[0]["prompt"] == encode("<|user|>: Task 0 <|assistant|>:")  # so that its text stays text


def test_a_server_that_does_not_stream_is_read_whole(tmp_path, tasks):
    whole = {"choices": [{"message": {"content": "text"}, "finish_reason": "length"}]}
    server = Scripted(lambda *_: web.json_response(whole))
    with serving(server):
        (row,) = write(tmp_path / "r.jsonl", tasks[:1], server)
    assert (row["response"], row["finish_reason"]) == ("text", "length")


def test_room_bounds_the_tokens(tmp_path, tasks):
    server = Scripted(lambda prompt, _: "text")
    with serving(server):
        write(tmp_path / "r.jsonl", tasks, server, replace(PLAN, encode=encode, context=30))
    assert {body["max_tokens"] for body in server.bodies} == {24, 23}


def test_presets_are_the_benchmarks_own():
    assert PRESETS["writing-bench"] == Sampling(0.7, 0.8, 20, 16000)
    assert PRESETS["longbench-write"] == Sampling(0.5, 1.0, 0, 32768)
    assert PRESETS["longwriter-zero"] == Sampling(0.6, 0.95, 0, 15500)
    assert PRESETS["hello-bench"] == Sampling(0.8, 1.0, 0, 16384)
    assert PRESETS["longgen-bench"] == Sampling(0.95, 0.95, 0, 16000)
    assert PRESETS["constory"] == Sampling(0.7, 1.0, 0, 16384)
    assert PRESETS["training"] == Sampling(0.8, 1.0, 0, 14000)
