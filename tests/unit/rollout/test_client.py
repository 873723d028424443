from __future__ import annotations

import asyncio

import pytest

from megatron_lwz.errors import EngineError
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.events import StreamEnd
from megatron_lwz.types import FinishReason, WeightVersion
from tests.support.synthetic_engine import TOKEN, Engine, chunk, serve, written_logprob, written_token

PROMPT = [104, 124]


def ask(engine: Engine, *, token: str = TOKEN, timeout: float = 30.0, **changes) -> list:
    async def run() -> list:
        runner, url = await serve(engine)
        settings = {"request_id": "r", "seed": 5, "max_tokens": 90, "temperature": 1.0, "top_p": 1.0, "stop": ()}
        try:
            async with EngineClient(url, token, timeout=timeout) as client:
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
