"""The embedded engine over HTTP: OpenAI's client, ours, control routes, refusals, disconnects."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psutil
import pytest

from megatron_lwz.cli import common, serve_engine
from megatron_lwz.distributed import environment
from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.models.hf import checksum_folder
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.events import StreamEnd
from megatron_lwz.rollout.limits import EngineLoad
from megatron_lwz.types import FinishReason
from tests.support.engine_model import EOS, HEAD, NORM, VOCAB, write_changed, write_engine_model
from tests.support.served_engine import TOKEN, Served
from tests.support.waiting import PATIENCE, wait_for

SLOTS = 4


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    write_engine_model(folder / "a", max_length=4096)
    write_engine_model(folder / "b", seed=1, max_length=4096)
    port = free_port()
    options = ["--model", str(folder / "a"), "--port", str(port), "--slots", str(SLOTS), "--threads", "1"]
    options += ["--weights-dir", str(folder)]
    server = ServerProcess(
        [sys.executable, "-m", "megatron_lwz.cli.serve_engine", *options],
        url=f"http://127.0.0.1:{port}",
        token=TOKEN,
        env=environment.child_environment(LWZ_ENGINE_TOKEN=TOKEN),
        log_path=folder / "engine.log",
    )
    server.start()
    try:
        server.wait_ready()
        yield Served(folder, server.url)
    finally:
        server.stop()


def test_openai_client_streams_and_gets_the_same_as_without_streaming(served: Served) -> None:
    settings = {"max_tokens": 60, "seed": 5, "logprobs": 1, "return_token_ids": True, "ignore_eos": True}
    whole = served.complete([1, 2, 3], **settings).choices[0]
    chunks = list(served.complete([1, 2, 3], stream=True, **settings))
    choices = [chunk.choices[0] for chunk in chunks]
    assert len(choices) < 30, "small deltas are merged"
    assert [token for choice in choices for token in choice.token_ids] == whole.token_ids
    assert [v for c in choices for v in c.logprobs.token_logprobs] == whole.logprobs.token_logprobs
    assert "".join(choice.text for choice in choices) == whole.text
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert choices[0].prompt_token_ids == [1, 2, 3]
    assert len(whole.token_ids) == 60 and whole.text
    assert all(chunk.weight_version == "0.0." for chunk in chunks)


def test_text_prompt_and_model_list(served: Served) -> None:
    answer = served.complete("hello", max_tokens=3, temperature=0)
    assert answer.usage.prompt_tokens == 5
    entry = served.openai.models.list().data[0]
    assert (entry.id, entry.logprobs_mode, entry.max_model_len) == ("policy", "full_softmax_at_temperature", 4096)


def test_without_a_seed_every_answer_differs(served: Served) -> None:
    answers = {served.complete([7, 8], max_tokens=20).choices[0].text for _ in range(4)}
    assert len(answers) == 4


def test_eos_ends_the_text_and_is_part_of_the_tokens(served: Served) -> None:
    for seed in range(40):
        choice = served.complete([9], max_tokens=900, seed=seed, return_token_ids=True).choices[0]
        if choice.finish_reason == "stop":
            break
    assert choice.token_ids[-1] == EOS and EOS not in choice.token_ids[:-1]
    assert choice.stop_reason is None and "<|endoftext|>" not in choice.text


def test_stop_strings_across_tokens(served: Served) -> None:
    settings = {"max_tokens": 200, "seed": 11, "return_token_ids": True, "ignore_eos": True}
    free = served.complete([4, 5], **settings).choices[0]
    place = next(
        i for i in range(20, 150) if free.text[i : i + 3].isascii() and free.text.find(free.text[i : i + 3]) == i
    )
    stop = free.text[place : place + 3]
    choices = [
        chunk.choices[0] for chunk in served.complete([4, 5], stop=["never seen", stop], stream=True, **settings)
    ]
    text = "".join(choice.text for choice in choices)
    tokens = [token for choice in choices for token in choice.token_ids]
    assert text == free.text[:place]
    assert (choices[-1].finish_reason, choices[-1].stop_reason) == ("stop", stop)
    assert tokens == free.token_ids[: len(tokens)], "the tokens of the stop string are kept"
    kept = served.complete([4, 5], stop=stop, include_stop_str_in_output=True, **settings).choices[0]
    assert kept.text == text + stop and kept.token_ids == tokens


def test_special_tokens_work_as_stop_strings(served: Served) -> None:
    settings = {"max_tokens": 900, "return_token_ids": True, "ignore_eos": True, "stop": "<|user|>"}
    for seed in range(40):
        choice = served.complete([9], seed=seed, **settings).choices[0]
        if choice.finish_reason == "stop":
            break
    assert choice.stop_reason == "<|user|>" and choice.token_ids[-1] == VOCAB - 2


def test_refusals_are_one_line_json(served: Served) -> None:
    for status, settings, words in (
        (400, {"prompt": [1], "n": 2}, "n = 2"),
        (400, {"prompt": [1], "seed": 2**70}, "seed"),
        (400, {"prompt": [1], "stop": ["x"] * 65}, "stop"),
        (400, {"prompt": [1], "stop": "x" * 2000}, "stop"),
        (400, {"prompt": [1], "extra_body": {"request_id": "x" * 2000}}, "request_id"),
        (400, {"prompt": [1, VOCAB]}, f"token id {VOCAB} is outside the vocabulary"),
        (400, {"prompt": [-1]}, "token id -1"),
        (400, {"prompt": []}, "at least one token"),
        (400, {"prompt": [1] * 4000, "max_tokens": 97}, "more than the engine's 4096"),
        (404, {"prompt": [1], "model": "gpt"}, "no model 'gpt' here: use 'policy'"),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            served.complete(**settings)
        assert caught.value.status_code == status
        assert words in caught.value.body["message"] and "\n" not in caught.value.body["message"]
    for path, body in (
        ("/pause?mode=sleep", None),
        ("/collective_rpc", {"method": "exec"}),
        ("/update_weight_version", {}),
        ("/weight_checker", {"action": "reset"}),
        ("/abort_requests", {"request_ids": "all"}),
        ("/v1/completions", [1]),
    ):
        assert served.call("POST", path, body)[0] == 400
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0).models.list()


def stream_in_thread(served: Served, events: list[Any], **settings: Any) -> threading.Thread:
    """Streams by our client into `events`."""

    async def read() -> None:
        wanted = {"seed": 1, "max_tokens": 3000, "temperature": 1.0, "top_p": 1.0, "stop": ()} | settings
        async with EngineClient(served.url, TOKEN) as client:
            async for event in client.stream(
                [3, 4, 5],
                request_id=settings.get("request_id", "one"),
                **{key: value for key, value in wanted.items() if key != "request_id"},
            ):
                events.append(event)

    thread = threading.Thread(target=lambda: asyncio.run(read()))
    thread.start()
    return thread


async def read_a_delta_and_leave(served: Served) -> None:
    """As a stream guard ends a rollout; the client stays connected for the next request.

    The engine is paused once the rollout has begun, so that it is still there to be counted. A rollout that ended
    before the pause arrived is replaced by the next.
    """
    settings = {"max_tokens": 3000, "temperature": 1.0, "top_p": 1.0, "stop": ()}
    async with EngineClient(served.url, TOKEN) as client:
        for seed in range(100):
            async with aclosing(client.stream([3, 4, 5], request_id="left", seed=seed, **settings)) as events:
                await anext(events)
                await asyncio.to_thread(served.call, "POST", "/pause?mode=keep")
                load = await client.load()
                if load is not None and load.running:
                    assert load.running == 1 and 0 < load.kv_use < 1 / SLOTS, "/metrics, as vLLM's"
                    assert await asyncio.to_thread(served.running) == (1, 0)
                    break
            await asyncio.to_thread(served.call, "POST", "/resume")
        else:
            raise AssertionError("every rollout ended before the pause")
        await asyncio.to_thread(served.wait_until_idle)  # still paused: it did not end by itself
        await asyncio.to_thread(served.call, "POST", "/resume")
        assert await client.load() == EngineLoad(0.0)


def test_new_weights_in_the_middle_of_a_rollout(served: Served) -> None:
    events: list[Any] = []
    versions = ["0.0.", "1.0.abc"]
    stream = served.complete([3, 4, 5], max_tokens=4000, seed=1, stream=True, ignore_eos=True, return_token_ids=True)
    thread = threading.Thread(target=lambda: [events.append(chunk) for chunk in stream])
    thread.start()
    try:
        wait_for(lambda: len(events) >= 3)
        assert served.call("POST", "/pause?mode=keep")[0] == 200
        assert served.call("GET", "/is_paused")[1] == {"is_paused": True}
        time.sleep(0.2)
        count = len(events)
        time.sleep(0.3)
        assert len(events) == count, "nothing is written while paused"
        before = served.call("POST", "/weight_checker", {"action": "checksum"})[1]["checksum"]
        assert before == checksum_folder(served.folder / "a")
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(served.folder / "b")}}
        assert served.call("POST", "/collective_rpc", body)[0] == 200
        after = served.call("POST", "/weight_checker", {"action": "checksum"})[1]["checksum"]
        assert after == checksum_folder(served.folder / "b") != before
        assert served.call("POST", "/update_weight_version", {"new_version": versions[1]})[0] == 200
        assert served.call("POST", "/resume")[0] == 200
        wait_for(lambda: len(events) > count + 3)
        assert served.call("POST", "/abort_requests")[0] == 200
        thread.join(PATIENCE)
        seen = [chunk.weight_version for chunk in events if chunk.choices[0].token_ids]
        assert seen == sorted(seen, key=versions.index) and set(seen) == set(versions)
        assert events[-1].choices[0].finish_reason == "abort"
    finally:
        served.call("POST", "/resume")
        thread.join(PATIENCE)
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(served.folder / "a")}}
        served.call("POST", "/collective_rpc", body)
        served.call("POST", "/update_weight_version", {"new_version": "0.0."})
    missing = {"method": "reload_weights", "kwargs": {"weights_path": str(served.folder / "c")}}
    status, answer = served.call("POST", "/collective_rpc", missing)
    assert status == 400 and "no such folder" in answer["error"]["message"]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_and_change_nothing(served: Served, value: float) -> None:
    folder = write_changed(served.folder / "b", served.folder / f"bad{value}", (NORM, value))
    before = served.call("POST", "/weight_checker", {"action": "checksum"})
    status, answer = served.reload(folder.name)
    said = f"checkpoint {folder}: tensor {NORM} holds NaN or infinite values: export or copy the weights again"
    assert status == 400 and answer["error"]["message"].startswith(said)
    assert served.call("POST", "/weight_checker", {"action": "checksum"}) == before
    assert served.complete([1, 2], max_tokens=3, ignore_eos=True).usage.completion_tokens == 3


def test_logits_that_are_not_finite_are_an_error_of_every_request_until_other_weights_come(served: Served) -> None:
    write_changed(served.folder / "b", served.folder / "huge", (NORM, 1e30), (HEAD, 1e30))
    try:
        assert served.reload("huge")[0] == 200, "the weights themselves are finite"
        for temperature, top_p in ((1, 1), (0, 1), (0.5, 0.9)):
            body = {"prompt": [1, 2], "max_tokens": 5, "temperature": temperature, "top_p": top_p}
            status, answer = served.call("POST", "/v1/completions", body)
            assert status == 503 and "the policy's logits are NaN or infinite" in answer["error"]["message"]
            assert served.call("GET", "/health")[0] == 503 and served.running() == (0, 0)
            assert served.reload("huge")[0] == 200, "and the next request is tried again"
        with pytest.raises(openai.APIError, match="logits are NaN or infinite"):
            list(served.complete([1, 2], max_tokens=5, stream=True))
    finally:
        assert served.reload("a")[0] == 200
    assert served.call("GET", "/health")[0] == 200
    assert served.complete([1, 2], max_tokens=3, ignore_eos=True).usage.completion_tokens == 3
    assert "Traceback" not in (served.folder / "engine.log").read_text()


def test_weights_come_only_from_the_folders_named_at_the_start(served: Served, tmp_path: Path) -> None:
    """Each odd path is answered with one line, without a stack in the log, and the weights stay."""
    write_engine_model(tmp_path / "outside", seed=9, max_length=4096)
    link, loop = served.folder / "link", served.folder / "loop"
    link.symlink_to(tmp_path / "outside")
    loop.symlink_to(loop)
    before = served.call("POST", "/weight_checker", {"action": "checksum"})
    log = (served.folder / "engine.log").read_text()
    outside = [
        tmp_path / "outside",
        link,
        link / ".",
        served.folder / "a/../..",
        "/",
        "",
        "a",
        "~",
        "/etc/passwd",
        "//",
    ]
    odd = [served.folder / ("n" * 300), f"{served.folder}/a\0b", served.folder / "a/config.json", served.folder, loop]
    for status, paths in ((403, outside), (400, odd)):
        for path in paths:
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}
            got, answer = served.call("POST", "/collective_rpc", body)
            assert got == status and "\n" not in answer["error"]["message"], (path, got, answer)
    for kwargs in (None, [], "x", 5, {"weights_path": 5}, {"weights_path": None}):
        got, answer = served.call("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": kwargs})
        assert got == 400 and "weights_path" in answer["error"]["message"]
    assert served.call("POST", "/weight_checker", {"action": "checksum"}) == before
    assert (served.folder / "engine.log").read_text() == log


def test_the_token_is_in_no_argument_and_no_log(served: Served) -> None:
    lines = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("serve_engine" in line for line in lines)
    assert not any(TOKEN in line for line in lines)
    assert TOKEN not in (served.folder / "engine.log").read_text()
    assert (served.folder / "engine.log").stat().st_mode & 0o777 == 0o600


def test_control_tokens_in_a_text_prompt_are_text(served: Served) -> None:
    settings = {"max_tokens": 1, "return_token_ids": True}
    written = served.complete("a<|user|>b", **settings)
    assert written.usage.prompt_tokens == len("a<|user|>b")


def leave_without_reading(served: Served) -> None:
    """Asks for a long text that is not streamed, and goes away while it is written."""
    body = json.dumps({"prompt": [6], "max_tokens": 4000, "ignore_eos": True}).encode()
    host, port = served.url.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(head.encode() + body)
        wait_for(lambda: served.running() == (1, 0))


def test_abort_and_disconnect_free_the_slots(served: Served) -> None:
    events: list[list[Any]] = [[] for _ in range(SLOTS + 2)]
    ids = [f"r{i}" for i in range(SLOTS + 2)]
    served.call("POST", "/pause?mode=keep")  # none may end by itself
    threads = [stream_in_thread(served, e, request_id=name) for name, e in zip(ids, events, strict=True)]
    wait_for(lambda: sum(served.running()) == SLOTS + 2)
    assert served.call("POST", "/abort_requests", {"request_ids": [*ids, "unknown"]})[1]["aborted"] == SLOTS + 2
    for thread in threads:
        thread.join(PATIENCE)
    assert events == [[StreamEnd(FinishReason.ABORT)]] * (SLOTS + 2)
    served.call("POST", "/resume")
    served.wait_until_idle()
    stream = served.complete([6], max_tokens=4000, stream=True, ignore_eos=True)
    next(iter(stream))
    assert served.running() == (1, 0)
    stream.close()
    served.wait_until_idle()
    asyncio.run(read_a_delta_and_leave(served))
    leave_without_reading(served)
    served.complete([6], max_tokens=800, ignore_eos=True)
    assert served.running() == (0, 0), "the first request is not written on beside the second"
    assert served.call("POST", "/pause?mode=abort&clear_cache=true")[0] == 200
    assert served.call("POST", "/resume")[0] == 200
    assert served.complete([6], max_tokens=2).usage.completion_tokens <= 2


def test_an_engine_that_slept_writes_as_before(served: Served) -> None:
    asked = {"prompt": [3, 1, 4], "max_tokens": 12, "temperature": 0, "seed": 1}
    before = served.complete(**asked).choices[0].text
    weights = served.call("POST", "/weight_checker", {"action": "checksum"})[1]
    assert served.call("POST", "/sleep?level=1")[1] == {"status": "sleeping", "level": 1}
    assert served.call("GET", "/is_sleeping")[1] == {"is_sleeping": True}
    assert served.call("POST", "/wake_up")[1] == {"status": "awake", "tags": None}
    assert served.complete(**asked).choices[0].text == before
    served.call("POST", "/sleep?level=2")
    status, answer = served.call("POST", "/weight_checker", {"action": "checksum"})
    assert status == 400 and "wake_up?tags=weights" in answer["error"]["message"]
    assert served.call("POST", "/wake_up?tags=weights")[1]["status"] == "sleeping"
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(served.folder / "a")}}
    assert served.call("POST", "/collective_rpc", body)[0] == 200
    assert served.call("POST", "/wake_up?tags=kv_cache")[1]["status"] == "awake"
    assert served.call("GET", "/is_sleeping")[1] == {"is_sleeping": False}
    assert served.call("POST", "/weight_checker", {"action": "checksum"})[1] == weights
    assert served.complete(**asked).choices[0].text == before
    assert served.call("POST", "/sleep?level=3")[0] == served.call("POST", "/wake_up?tags=mind")[0] == 400


def test_a_taken_port_and_a_missing_model_are_one_line(served: Served, tmp_path: Path, capsys: Any) -> None:
    port = served.url.rsplit(":", 1)[1]
    for options, words in (
        (["--model", str(served.folder / "a"), "--port", port], "another process listens there"),
        (["--model", str(tmp_path), "--port", str(free_port())], "no config.json in this folder"),
        (["--model", str(tmp_path), "--port", "many"], "'many' is no whole number"),
    ):
        assert common.run(serve_engine.main, options) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_streams_are_server_sent_events(served: Served) -> None:
    async def read() -> list[str]:
        headers = {"Authorization": f"Bearer {TOKEN}", "X-Request-Id": "mine"}
        body = {"prompt": [1, 2], "max_tokens": 30, "stream": True, "stream_options": {"include_usage": True}}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{served.url}/v1/completions", json=body) as response,
        ):
            assert response.content_type == "text/event-stream"
            return (await response.text()).strip().split("\n\n")

    events = asyncio.run(read())
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert {chunk["id"] for chunk in chunks} == {"mine"}
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["prompt_tokens"] == 2
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks[:-1])
