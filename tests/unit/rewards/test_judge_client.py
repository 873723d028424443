from __future__ import annotations

import asyncio
import json
import re
import time

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_lwz.config.sections import JudgeSection
from megatron_lwz.errors import ConfigError, DataError
from megatron_lwz.http.completions import CompletionClient, CompletionFailure
from megatron_lwz.http.retry import Failure
from megatron_lwz.rewards.judge_cache import Reply, ReplyCache
from megatron_lwz.rewards.judge_client import Judge, Question
from megatron_lwz.rewards.judge_json import as_score, read_object
from tests.support.files import stamps
from tests.support.scripted_server import KEY, Scripted, serving


def score_of(reply: str) -> int | None:
    return as_score((read_object(reply, ("score",)) or {}).get("score"), 1, 10)


def said(number: object) -> str:
    return f'```json\n{{"score": {number}, "reason": "because"}}\n```'


def length_score(prompt: str, _: int) -> str:
    return said(len(prompt) % 10 + 1)


def ask_all(server: Scripted, questions, key=KEY, **chosen):
    """(verdicts, counters) of a judge at `server`."""

    async def main():
        section = JudgeSection(**({"url": server.url, "model": "judge", "backoff": 0.01} | chosen))
        async with Judge(section, key) as judge:
            verdicts = await asyncio.gather(*(judge.ask(question, score_of) for question in questions))
            return verdicts, judge.counters

    return asyncio.run(main())


def questions(count: int) -> list[Question]:
    return [Question("x" * size, "v1", "You judge.") for size in range(count)]


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_parallel_questions_within_the_limit(api):
    server = Scripted(length_score, delay=0.02)
    with serving(server):
        verdicts, counters = ask_all(server, questions(40), concurrency=8, api=api, temperature=0.5)
    extra = 12 if api == "completions" else 0  # the system text comes first in the prompt
    assert [v.value for v in verdicts] == [(size + extra) % 10 + 1 for size in range(40)]
    assert {v.judge for v in verdicts} == {"scripted-1/v1"}
    assert 1 < server.most <= 8
    assert server.bodies[0]["temperature"] == 0.5 and server.bodies[0]["model"] == "judge"
    assert counters["requests"] == counters["answered"] == 40 and counters["prompt_tokens"] == 4000


def test_no_reply_is_paid_twice(tmp_path):
    server = Scripted(length_score, delay=0.01)
    kept = {"cache": str(tmp_path / "deep" / "cache.sqlite")}
    with serving(server):
        first, _ = ask_all(server, [*questions(10), *questions(10)], **kept)  # twins at the same time: sent once
        assert len(server.bodies) == 10
        again, counters = ask_all(server, questions(12), **kept)
        assert len(server.bodies) == 12 and counters["cached"] == 10
        assert [v.text for v in again[:10]] == [v.text for v in first[:10]]
        ask_all(server, [Question("", "v2", "You judge."), Question("", "v1", "You judge.", sample=1)], **kept)
        ask_all(server, questions(1), **kept, temperature=1.0)
        ask_all(server, questions(1), **kept, model="other")
    assert len(server.bodies) == 16, "prompt version, sample, settings and model are all part of the key"


def test_a_killed_process_keeps_what_it_received(tmp_path):
    server = Scripted(length_score)
    cache = str(tmp_path / "cache.sqlite")

    async def killed() -> None:
        judge = Judge(JudgeSection(url=server.url, model="judge", cache=cache), KEY)
        await judge.ask(questions(1)[0], score_of)  # never closed, nothing flushed

    with serving(server):
        asyncio.run(killed())
        ask_all(server, questions(1), cache=cache)
    assert len(server.bodies) == 1


def test_replies_that_cannot_be_read_are_asked_for_again_and_not_paid_twice(tmp_path):
    server = Scripted(lambda _, number: "no idea" if number < 2 else said(3))
    cache = str(tmp_path / "cache.sqlite")
    with serving(server):
        (verdict,), counters = ask_all(server, questions(1), cache=cache)
        assert verdict.value == 3 and counters["malformed"] == 2
        (verdict,), counters = ask_all(server, questions(1), cache=cache)
        assert verdict.cached and counters["requests"] == 0
    assert len(server.bodies) == 3


def test_hostile_replies_give_none_and_are_counted():
    texts = ["__import__('os').abort()", said('"</answer> ignore, 10"'), said(99), said(True), "{" * 1000, ""]
    server = Scripted(lambda prompt, _: texts[int(prompt)])
    asked = [Question(str(number), "v1") for number in range(len(texts))]
    with serving(server):
        verdicts, counters = ask_all(server, asked, malformed_retries=1)
    assert verdicts == [None] * len(texts)
    assert counters["failed/malformed"] == len(texts) and counters["malformed"] == 2 * len(texts)


def body(data: object) -> web.Response:
    return web.Response(text=data if isinstance(data, str) else json.dumps(data), content_type="application/json")


@pytest.mark.parametrize(
    ("answer", "kind", "requests"),
    [
        (lambda: web.Response(status=500, text="down"), "server", 4),
        (lambda: web.Response(status=429, text="slow down"), "server", 4),
        (lambda: web.Response(status=400, text="too long"), "refused", 1),
        (lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"}), "refused", 1),
        (lambda: body("<html>"), "contract", 2),
        (lambda: body({"choices": []}), "contract", 2),
        (lambda: body({"choices": [{"message": {"content": 7}}]}), "contract", 2),
        (lambda: body({"choices": "x" * 100}), "contract", 2),
        (lambda: body("[" * 100_000), "contract", 2),
        (lambda: body({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}), "contract", 2),
        (
            lambda: body('{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1e999}}'),
            "contract",
            2,
        ),
    ],
    ids=["500", "429", "400", "302", "html", "empty", "number", "string", "deep", "usage", "infinite"],
)
def test_failures_are_retried_by_class_and_counted(answer, kind, requests):
    server = Scripted(lambda *_: answer())
    with serving(server):
        (verdict,), counters = ask_all(server, questions(1), retries=3)
    assert verdict is None
    assert counters[f"failed/{kind}"] == 1 and counters["requests"] == len(server.bodies) == requests


def test_text_that_utf8_does_not_know_is_kept_as_far_as_it_goes(tmp_path):
    broken = '{"choices": [{"message": {"content": "\\ud800 \\ud83d\\ude00 {\\"score\\": 7}"}}], "model": "\\udfff", '
    server = Scripted(lambda *_: body(broken + f'"usage": {{"prompt_tokens": {10**40}, "completion_tokens": -5}}}}'))
    with serving(server):
        (verdict,), _ = ask_all(server, questions(1), cache=str(tmp_path / "c"))
        assert (verdict.value, verdict.text[2:4], verdict.judge) == (7, "😀 ", "\ufffd/v1")
        assert ask_all(server, questions(1), cache=str(tmp_path / "c"))[0][0].cached


@settings(max_examples=300)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ["choices", "message", "content", "usage", "prompt_tokens", "model", "finish_reason", "text"]), inner),
                    max_leaves=12))  # fmt: skip
def test_any_json_is_a_completion_or_a_failure(value):
    for api in ("chat", "completions"):
        try:
            done = CompletionClient("http://x", None, model="m", api=api)._read_whole(json.dumps(value).encode())
        except CompletionFailure as failure:
            assert failure.kind is Failure.CONTRACT
        else:
            assert isinstance(done.text, str)


def test_the_body_may_be_changed():
    server = Scripted(length_score)
    change = {"max_completion_tokens": 9, "max_tokens": None, "temperature": None}
    with serving(server):
        ask_all(server, questions(1), body=change)
    assert server.bodies[0]["max_completion_tokens"] == 9
    assert {"max_tokens", "temperature"}.isdisjoint(server.bodies[0]) and server.bodies[0]["top_p"] == 1.0


def test_a_cache_is_made_by_its_first_use(tmp_path):
    cache = ReplyCache(tmp_path / "deep" / "cache.sqlite")
    cache.close()
    assert not (tmp_path / "deep").exists()
    cache.put("key", "1", Reply("text", "judge"))
    cache.close()
    again = ReplyCache(tmp_path / "deep" / "cache.sqlite")
    assert again.get("key") == Reply("text", "judge")
    again.close()


@pytest.mark.parametrize("place", ["file", "file/cache", "folder"])
def test_a_cache_that_cannot_be_is_said_before_it_is_needed(tmp_path, place):
    (tmp_path / "file").write_text("no database, but long enough to be seen as another file " * 20)
    (tmp_path / "folder").mkdir()
    before = stamps(tmp_path)
    with pytest.raises(DataError, match="the judge's cache cannot be opened"):
        ReplyCache(tmp_path / place)
    assert stamps(tmp_path) == before


def test_what_is_no_address_is_said():
    for url in ("localhost:8000", "ftp://x", "http://"):
        with pytest.raises(ValidationError, match="not an address"):
            JudgeSection(url=url, model="m")


def test_silent_slow_and_absent_judges():
    silent = Scripted(length_score, delay=30)
    with serving(silent):
        (verdict,), counters = ask_all(silent, questions(1), timeout=0.1, retries=1)
        assert verdict is None and counters["failed/timeout"] == 1 and counters["retried"] == 1
    (verdict,), counters = ask_all(silent, questions(1), retries=1)  # stopped now
    assert verdict is None and counters["failed/connection"] == 1


def test_a_judge_that_recovers_is_asked_until_it_answers():
    server = Scripted(lambda _, number: web.Response(status=503) if number < 3 else said(5))
    with serving(server):
        (verdict,), counters = ask_all(server, questions(1))
    assert verdict.value == 5 and counters["retried"] == 3


def test_retry_after_is_respected():
    server = Scripted(lambda _, number: said(5) if number else web.Response(status=429, headers={"Retry-After": "0.5"}))
    with serving(server):
        begin = time.monotonic()
        (verdict,), _ = ask_all(server, questions(1))
    assert verdict.value == 5 and time.monotonic() - begin >= 0.5


def test_the_budget_is_never_exceeded(tmp_path):
    server = Scripted(length_score)
    with serving(server):
        verdicts, counters = ask_all(server, questions(20), max_requests=7)
        assert len(server.bodies) == 7 and sum(v is None for v in verdicts) == counters["failed/budget"] == 13
        # 110 tokens were used per request, but up to 1000 could have been
        verdicts, _ = ask_all(server, questions(20), max_total_tokens=2050, max_tokens=1000, concurrency=4)
        used = 110 * (len(server.bodies) - 7)
        assert 0 < used <= 2050 and sum(v is not None for v in verdicts) == len(server.bodies) - 7


def test_a_wrong_key_is_said_with_the_variable_that_holds_it(caplog, monkeypatch):
    server = Scripted(length_score)
    with serving(server):
        (verdict,), counters = ask_all(server, questions(1), key="sk-123", api_key_env="MY_KEY")
        assert verdict is None and counters["failed/refused"] == 1
        assert "MY_KEY" in caplog.text and "sk-123" not in caplog.text and KEY not in caplog.text
        monkeypatch.setenv("MY_KEY", KEY)
        (verdict,), _ = ask_all(server, questions(1), key=None, api_key_env="MY_KEY")
    assert verdict is not None


def test_what_it_needs_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"judge\.url"):
        Judge(JudgeSection(model="m"))
    with pytest.raises(ConfigError, match=r"judge\.model"):
        Judge(JudgeSection(url="http://x"))
    (tmp_path / "cache").write_text("not a database, but long enough to be read as one" * 100)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "cache"))):
        Judge(JudgeSection(url="http://x", model="m", cache=str(tmp_path / "cache")))


def test_a_damaged_cache_is_one_line(tmp_path):
    path = tmp_path / "cache.sqlite"
    cache = ReplyCache(path)
    cache.put("key", "v1", Reply("7", "m"))
    cache.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    with pytest.raises(DataError, match=r"cache\.sqlite: the judge's cache is damaged \(.*\): move it away"):
        ReplyCache(path).get("key")
