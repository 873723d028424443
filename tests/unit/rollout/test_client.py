from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web

from megatron_lwz.errors import EngineError
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.chunks import LARGEST_VOCABULARY
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.events import StreamEnd
from megatron_lwz.types import FinishReason, WeightVersion
from tests.support.synthetic_engine import TOKEN, Engine, chunk, serve, written_logprob, written_token

PROMPT = [104, 124]


def ask(
    engine: Engine, *, token: str = TOKEN, timeout: float = 30.0, vocabulary: int = LARGEST_VOCABULARY, **changes
) -> list:
    async def run() -> list:
        runner, url = await serve(engine)
        settings = {"request_id": "r", "seed": 5, "max_tokens": 90, "temperature": 1.0, "top_p": 1.0, "stop": ()}
        try:
            async with EngineClient(url, token, timeout=timeout, vocabulary=vocabulary) as client:
                client.version = WeightVersion(9, 1, "last")
                return [event async for event in client.stream(PROMPT, **settings | changes)]
        finally:
            await runner.cleanup()

    return asyncio.run(run())


@pytest.mark.parametrize("delta", [1, 4, 100])
def test_stream_gives_every_token_once_with_its_logprob(delta):
    *deltas, end = ask(Engine(delta=delta, version="3.1.abc"))
    tokens = [token for event in deltas for token in event.tokens]
    assert tokens == [written_token(5, 2 + i, 42) for i in range(41)]
    assert [p for event in deltas for p in event.logprobs] == [written_logprob(5, 2 + i) for i in range(41)]
    assert {event.version for event in deltas} == {WeightVersion(3, 1, "abc")}
    assert end == StreamEnd(FinishReason.STOP)


def test_request_speaks_vllm():
    engine = Engine()
    ask(engine, stop=("</answer>", 7))
    body = engine.requests[0]
    assert body["prompt"] == PROMPT and body["stream"] is True and body["return_token_ids"] is True
    assert body["logprobs"] == 0 and body["model"] == "policy"
    assert body["stop"] == ["</answer>"] and body["stop_token_ids"] == [7]
    # said although they do nothing: vLLM's defaults are those of the model's generation_config.json
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)


def test_tokens_of_an_engine_that_names_no_version_take_the_last_set():
    *deltas, _ = ask(Engine(version=None))
    assert {event.version for event in deltas} == {WeightVersion(9, 1, "last")}


def test_a_running_stream_hears_of_new_weights_from_the_loop_that_brings_them():
    """Tokens between an engine's resume and the end of the push to all others carry the new version."""
    streaming = EngineClient("http://127.0.0.1:9", TOKEN)
    streaming.twin().version = WeightVersion(3, 1, "new")
    assert streaming.version == WeightVersion(3, 1, "new")


def test_the_token_limit_is_a_truncation_and_a_stop_string_is_named():
    assert ask(Engine(), max_tokens=10)[-1] == StreamEnd(FinishReason.LENGTH)
    *deltas, end = ask(Engine(text="ab</answer>cd"), stop=("</answer>",))
    assert end == StreamEnd(FinishReason.STOP, "</answer>")
    assert "".join(chr(token) for event in deltas for token in event.tokens) == "ab</answer>"


def test_chunks_may_be_cut_anywhere_even_inside_a_character():
    whole = chunk([1], [-1.0], text="写作 é") + b": comment\r\n\r\n" + chunk([2], [-0.5], "stop") + b"data: [DONE]\n\n"
    for step in (1, 7):
        *deltas, end = ask(Engine(script=[whole[i : i + step] for i in range(0, len(whole), step)]))
        assert [event.tokens for event in deltas] == [(1,), (2,)] and end.reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("script", "kind", "says"),
    [
        ([b"data: {broken\n\n"], Failure.CONTRACT, "not JSON"),
        ([b"data: \xff\xfe\n\n"], Failure.CONTRACT, "utf-8"),
        ([b'data: {"choices": []}\n\n'], Failure.CONTRACT, "contract does not know"),
        ([b"data: [1]\n\n"], Failure.CONTRACT, "contract does not know"),
        ([chunk([1, 2], [-1.0])], Failure.CONTRACT, "2 token ids with 1 log-probs"),
        ([chunk([1], [None])], Failure.CONTRACT, "contract does not know"),
        ([chunk(["x"], [-1.0])], Failure.CONTRACT, "contract does not know"),
        ([chunk([1], [float("nan")])], Failure.CONTRACT, "not JSON"),
        ([chunk([1], [0.5])], Failure.CONTRACT, "not above 0"),
        ([chunk([1, 2], [-1.0, -1e39])], Failure.CONTRACT, "must be finite"),
        ([chunk([1, -2], [-1.0, -1.0])], Failure.CONTRACT, "from 0 on"),
        ([chunk([1.0], [-1.0])], Failure.CONTRACT, "whole numbers"),
        ([chunk([1, 2**31], [-1.0, -1.0])], Failure.CONTRACT, "token id 2147483648 is beyond"),
        ([b"data: " + b"[" * 5000 + b"\n\n"], Failure.CONTRACT, "not JSON"),
        ([b'data: {"error": "\\u001b[2J\\nINFO: all is well\\u202e"}\n\n'], Failure.SERVER, r"\x1b[2J INFO"),
        ([chunk([1], [-1.0], "tired")], Failure.CONTRACT, "tired"),
        ([chunk([1], [-1.0]), b"data: [DONE]\n\n"], Failure.CONTRACT, "no finish_reason"),
        ([chunk([1], [-1.0])], Failure.CONNECTION, "without a finish_reason"),
        ([b'data: {"error": {"message": "out of memory"}}\n\n'], Failure.SERVER, "out of memory"),
        ([b"data: " + b"x" * (17 << 20)], Failure.CONTRACT, "bytes"),
    ],
)
def test_malformed_streams_are_one_line_errors(script, kind, says):
    with pytest.raises(RequestFailure) as caught:
        ask(Engine(script=script))
    assert caught.value.kind is kind and isinstance(caught.value, EngineError)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_statuses_have_their_class():
    with pytest.raises(RequestFailure, match=r"401.*api_key_env") as caught:
        ask(Engine(), token="wrong")
    assert caught.value.kind is Failure.REFUSED
    for status, kind in ((400, Failure.REFUSED), (429, Failure.SERVER), (503, Failure.SERVER)):
        with pytest.raises(RequestFailure, match=f"{status}.*no room") as caught:
            ask(Engine(status=status))
        assert caught.value.kind is kind


def test_a_silent_engine_times_out():
    with pytest.raises(RequestFailure, match="silent for") as caught:
        ask(Engine(pause=2.0), timeout=0.2)
    assert caught.value.kind is Failure.TIMEOUT


def test_a_dead_engine_is_a_connection_failure():
    async def run() -> None:
        async with EngineClient("http://127.0.0.1:9", None) as client:
            with pytest.raises(RequestFailure):
                await client.probe()
            await client.pause()

    with pytest.raises(RequestFailure, match=r"127\.0\.0\.1:9") as caught:
        asyncio.run(run())
    assert caught.value.kind is Failure.CONNECTION


def test_a_token_beyond_the_policys_vocabulary_breaks_the_contract():
    script = [chunk([1, 150], [-1.0, -1.0]), chunk([151], [-1.0], "stop")]
    with pytest.raises(RequestFailure, match=r"token id 151 is beyond the policy's vocabulary of 151") as caught:
        ask(Engine(script=script), vocabulary=151)
    assert caught.value.kind is Failure.CONTRACT
    assert EngineClient("http://127.0.0.1:9", None, vocabulary=151).twin()._vocabulary == 151


EMPTY = chunk([], [])
DRIPS = {"empty chunks": EMPTY, "comments": b": waiting\n\n", "half a chunk": EMPTY[:1]}


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
def test_bytes_without_a_token_do_not_keep_a_request_alive(drip):
    class Endless(Engine):
        async def complete(self, request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(chunk([1], [-1.0]))
            while True:
                await response.write(drip)
                await asyncio.sleep(0.02)

    begun = time.monotonic()
    with pytest.raises(RequestFailure, match=r"sends bytes but no token for 0\.3 s") as caught:
        ask(Endless(), timeout=0.3)
    assert caught.value.kind is Failure.TIMEOUT and time.monotonic() - begun < 20


@pytest.mark.parametrize(("status", "body"), [(200, b" "), (500, b"x")])
def test_an_answer_that_never_ends_is_a_timeout(status, body):
    class Endless(Engine):
        async def control(self, request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(status=status)
            await response.prepare(request)
            while True:
                await response.write(body)
                await asyncio.sleep(0.02)

    async def run() -> None:
        runner, url = await serve(Endless())
        try:
            async with EngineClient(url, TOKEN, timeout=0.3) as client:
                await client.probe()
        finally:
            await runner.cleanup()

    with pytest.raises(RequestFailure, match="did not end") as caught:
        asyncio.run(run())
    assert caught.value.kind is Failure.TIMEOUT


def test_an_endless_error_is_cut_off():
    with pytest.raises(RequestFailure, match="more than 33554432 bytes"):
        ask(Engine(status=500, error="x" * (33 << 20)))


def test_what_an_engine_says_cannot_reach_the_terminal_as_a_command():
    with pytest.raises(RequestFailure) as caught:
        ask(Engine(status=500, error="\x1b]0;owned\x07 \x9b31m red\u202e"))
    said = str(caught.value)
    assert said.isprintable() and r"]0;owned\u0007 \x9b31m red\u202e" in said
