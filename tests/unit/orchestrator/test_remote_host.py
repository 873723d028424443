"""Trainer and rollout process over a real socket pair and a real engine's routes: weights, errors, ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web

from megatron_lwz.errors import ConfigError, DataError, EngineError, EnvironmentSetupError, LwzError
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.orchestrator.connection import Codec, Connection, describe_error, error_from
from megatron_lwz.orchestrator.process import HostProcess
from megatron_lwz.orchestrator.protocol import Host, callback_kinds, signatures
from megatron_lwz.orchestrator.remote import stub
from megatron_lwz.rollout import weight_routes
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import WeightVersion
from tests.support.stages import forked
from tests.support.synthetic_engine import TOKEN, Engine, background_loop
from tests.support.waiting import PATIENCE, wait_for
from tests.unit.orchestrator.echo_host import FAIL, ITEMS, plain, sample
from tests.unit.orchestrator.host_child import OLD

NEW = WeightVersion(1, 0, "new")


MOST = 4000
"""Tokens of a `Tireless` engine under the same weights: a busy reader is not to fall ever further behind."""


class Tireless(Engine):
    """Writes "a" until it has new weights, "b" from then on, and ends when `over`; it never names its weights."""

    def __init__(self) -> None:
        super().__init__(version=None, prompt_length=lambda tokens: len(tokens))
        self.over, self.held, self.new = False, False, False
        self.after = 0

    async def control(self, request: web.Request) -> web.Response:
        if request.path in ("/pause", "/resume"):
            self.held = request.path == "/pause"
        self.new |= request.path == "/finish_weight_update"
        return await super().control(request)

    async def _stream(self, request, response, body, cut) -> None:
        while True:
            await asyncio.sleep(0.001)
            if self.held or (not self.over and (self.after if self.new else self.sent) >= MOST):
                continue
            over = self.over  # the test sets it at any time, also while a chunk is written
            tokens = [0] if over else [ord("b" if self.new else "a")] * 4
            self.sent += len(tokens)
            self.after += len(tokens) * self.new
            choice = {"index": 0, "text": "", "token_ids": tokens, "logprobs": {"token_logprobs": [-1.0] * len(tokens)}}
            chunk = {"choices": [choice | {"finish_reason": "stop" if over else None, "stop_reason": None}]}
            await response.write(b"data: " + web.json_response(chunk).body + b"\n\n")
            if over:
                return


@pytest.fixture(autouse=True)
def rollout_processes_are_forked() -> Iterator[None]:
    """tests/end_to_end/test_grpo.py starts a real one."""
    with forked():
        yield


@pytest.fixture
def engine() -> Tireless:
    return Tireless()


@pytest.fixture
def process(engine: Tireless, tmp_path: Path) -> Iterator[HostProcess]:
    with background_loop() as start:
        made = HostProcess(["-m", "tests.unit.orchestrator.host_child", str(tmp_path), start(engine)])
        made.call("open")
        yield made
        made.close()


def bring(clients: Sequence[EngineClient]) -> None:
    """New weights, as rank 0 gives them to an engine that takes no part in this test."""

    async def give() -> None:
        async with clients[0].twin() as twin:
            await weight_routes.begin_update(twin)
            await weight_routes.finish_update(twin, NEW)

    asyncio.run(give())


def test_what_old_weights_wrote_keeps_their_name_when_rank_0_sends_new_ones(
    engine: Tireless, process: HostProcess, tmp_path: Path
) -> None:
    engines = stub(process, partial(EngineClient, token=TOKEN)).engines
    wait_for(lambda: engine.sent > 400)
    engines.push_together(NEW, bring)
    wait_for(lambda: engine.after > 400)
    engine.over = True
    wait_for(lambda: finished(tmp_path))
    process.close()
    with JournalReader(tmp_path / "journal.sqlite") as journal:
        ((rollout,),) = (group.rollouts for group in journal.groups())
    first = rollout.text.index("b")
    assert rollout.text == "a" * first + "b" * (len(rollout.text) - first) and first > 400
    assert [(segment.start, segment.version) for segment in rollout.versions] == [(0, OLD), (first, NEW)]


def finished(folder: Path) -> bool:
    with JournalReader(folder / "journal.sqlite") as journal:
        return bool(journal._db.execute("SELECT 1 FROM finished").fetchall())


def test_what_goes_wrong_while_rank_0_sends_is_raised_and_the_process_goes_on(process: HostProcess) -> None:
    engines = stub(process, partial(EngineClient, token=TOKEN)).engines

    def fail(clients: Sequence[EngineClient]) -> None:
        raise EngineError(clients[0].url, "took fewer weights than were to be sent")

    with pytest.raises(EngineError, match="took fewer"):
        engines.push_together(NEW, fail)
    assert list(engines.weight_checksum().values()) == ["abc"]


def test_errors_keep_their_kind_and_ours_are_one_line(process: HostProcess) -> None:
    host = stub(process, partial(EngineClient, token=TOKEN))
    with pytest.raises(DataError) as caught:
        host.trained(3)
    assert str(caught.value) == "journal.sqlite: no room for step 3"
    assert "host_child.py" in "".join(traceback.format_exception(caught.value)), "--traceback shows it all"
    with pytest.raises(EnvironmentSetupError, match="rollout process: KeyError: 'b'; its traceback is above"):
        host.lengths(3)
    for name in ("run", "_answer", "no_such_call", "engines", "engines.close", "engines._push"):
        with pytest.raises(EnvironmentSetupError, match="no call"):
            process.call(name)
    assert list(host.engines.weight_checksum().values()) == ["abc"], "it goes on"


def test_every_call_of_a_host_is_served_with_its_own_types_and_its_own_errors() -> None:
    process = HostProcess(["-m", "tests.unit.orchestrator.echo_host"])
    process.call("open")
    host = stub(process, partial(EngineClient, token=TOKEN))
    calls = signatures(Host)
    assert {"connect", "experience", "trained", "evaluated", "engines.push_together"} < calls.keys()

    def call(name: str) -> Any:
        heard: list[Any] = []
        kinds = [callback_kinds(kind) for kind in calls[name].parameters]
        arguments = [
            sample(kind) if taken is None else heard.append
            for kind, taken in zip(calls[name].parameters, kinds, strict=True)
        ]
        found = attrgetter(name)(host)(*arguments)
        found = list(found) if calls[name].streams else found
        assert plain(heard) == plain([sample(taken[0]) for taken in kinds if taken is not None])
        return found

    for name, signature in calls.items():
        expected = [sample(signature.result)] * ITEMS if signature.streams else sample(signature.result)
        assert plain(call(name)) == plain(expected), name
    with pytest.raises(DataError, match="checkpointed: fails"):
        host.checkpointed(FAIL)
    for name in calls:
        with pytest.raises(DataError) as caught:
            call(name)
        assert str(caught.value) == f"{name}: fails"
    process.close()


def test_the_codec_refuses_what_it_cannot_carry() -> None:
    for kind in (set[int], object, tuple[int, ...], dict[int, str], int | str):
        with pytest.raises(TypeError, match="cannot be sent"):
            Codec().encode({1}, kind, {})
    coded: Any = [Codec().encode(value, int | None, {}) for value in (None, 3)]
    assert coded == [None, 3]


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("run.dir", 1, "x"),
        DataError("f", "x", line=3),
        RequestFailure("u", "x", Failure.SERVER),
        LwzError("y"),
    ],
)
def test_a_described_error_is_the_same_line(error: LwzError) -> None:
    again = error_from(describe_error(error))
    assert str(again) == str(error) and isinstance(error, type(again)) and type(again).__module__.endswith(".errors")


def test_a_process_that_dies_ends_every_call_with_one_line(process: HostProcess) -> None:
    process.call("engines.weight_checksum")
    failures = []

    def wait() -> None:
        try:
            process.call("experience", following=True)  # nothing was begun: it would fail otherwise
        except LwzError as error:
            failures.append(error)

    process._child.send_signal(signal.SIGSTOP)
    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    time.sleep(0.2)
    process._child.kill()
    for thread in waiting:
        thread.join(PATIENCE)
    assert [type(error) for error in failures] == [EnvironmentSetupError] * 2
    with pytest.raises(EnvironmentSetupError, match=r"ended with status -9: see what it said above"):
        process.call("settle")


def test_it_keeps_what_was_received_at_once_and_ends_with_the_journal_closed(
    engine: Tireless, process: HostProcess, tmp_path: Path
) -> None:
    wait_for(lambda: engine.sent > 400)
    process.keep()
    assert (tmp_path / "kept").exists()
    process.close()
    process.keep()  # nothing is left to do
    log = tmp_path / "journal.sqlite-wal"
    assert process._child.returncode == 0 and (not log.exists() or log.stat().st_size == 0)


def test_tensors_and_values_come_as_they_went() -> None:
    near, far = map(Connection, socket.socketpair())
    tensors = {
        "tokens": torch.arange(300_000, dtype=torch.int64).view(3, -1),
        "weights": torch.randn(7)[::2],
        "none": torch.empty(0, dtype=torch.float32),
    }
    sending = threading.Thread(target=near.send, args=({"metrics": {"loss": float("nan"), "ü": 0.1}}, tensors))
    sending.start()
    message = far.receive()
    sending.join()
    assert message.content["metrics"]["ü"] == 0.1 and message.content["metrics"]["loss"] != 0.1
    assert message.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert message.tensors[name].dtype == tensor.dtype and torch.equal(message.tensors[name], tensor)
    near.close()
    with pytest.raises(EOFError):
        far.receive()


def test_it_ends_when_its_trainer_is_gone(tmp_path: Path) -> None:
    with background_loop() as start:
        process = HostProcess(["-m", "tests.unit.orchestrator.host_child", str(tmp_path), start(Tireless())])
        process.call("open")
        process._connection._end.shutdown(socket.SHUT_RDWR)
        assert process._child.wait(PATIENCE) == 0
        process.close()
