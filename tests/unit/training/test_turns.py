"""Shared GPUs: who holds memory when, in the order of real HTTP calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from aiohttp import web

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import launch
from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import make_app
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.turns import Turns
from tests.support.waiting import PATIENCE

TOKEN = "secret"


class SleepingEngine:
    """vLLM's sleep routes; notes each call with the trainer's memory at that moment."""

    def __init__(self) -> None:
        self.asleep: set[str] = set()
        self.calls: list[tuple[str, bool]] = []
        self.state: TrainState | None = None

    def trainer_is_in(self) -> bool:
        assert self.state is not None
        sizes = {p.untyped_storage().nbytes() > 0 for policy in self.state.policies for p in policy.parameters()}
        assert len(sizes) == 1
        return sizes.pop()

    async def handle(self, request: web.Request) -> web.Response:
        if request.path == "/is_sleeping":
            return web.json_response({"is_sleeping": bool(self.asleep)})
        self.calls.append((request.path_qs, self.trainer_is_in()))
        if request.path == "/sleep":
            self.asleep = {"weights", "kv_cache"}
        else:
            self.asleep -= set(request.query.getall("tags"))
        return web.json_response({})


@pytest.fixture
def engine() -> Iterator[SleepingEngine]:
    engine, loop = SleepingEngine(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        routes = [web.post(path, engine.handle) for path in ("/sleep", "/wake_up")]
        runner = web.AppRunner(make_app([*routes, web.get("/is_sleeping", engine.handle)], token=TOKEN))
        await runner.setup()
        listener = bind("127.0.0.1", 0)
        await web.SockSite(runner, listener).start()
        engine.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE)
    yield engine
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    launch.shutdown()


def config_with(**rollout: object) -> Config:
    architecture = {
        "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 32,
    }  # fmt: skip
    return validate({"model": {"architecture": architecture}, "training": {"precision": "fp32"}, "rollout": rollout})


def turns_of(engine: SleepingEngine, config: Config) -> Turns:
    launch.initialize(config)
    engine.state = build_train_state(config)
    return Turns(config, engine.state, EnginePool([EngineClient(engine.url, TOKEN)], concurrency=1), attempt=0)


def test_each_leaves_before_the_other_comes(engine: SleepingEngine) -> None:
    turns = turns_of(engine, config_with(colocated=True))
    turns.weights()  # first push: the engine has just been started
    turns.engines()
    turns.engines()  # once is enough
    assert not engine.trainer_is_in() and engine.calls == []
    for _ in range(2):
        turns.trainer()
        assert engine.trainer_is_in() and engine.asleep == {"weights", "kv_cache"}
        turns.weights()
        assert engine.asleep == {"kv_cache"}
        turns.engines()
        assert not engine.trainer_is_in() and not engine.asleep
    sleep, weights, cache = (
        ("/sleep?level=2", False),
        ("/wake_up?tags=weights", True),
        ("/wake_up?tags=kv_cache", False),
    )
    assert engine.calls == [sleep, weights, cache] * 2


def test_engines_on_gpus_of_their_own_are_left_alone(engine: SleepingEngine) -> None:
    turns = turns_of(engine, config_with())
    turns.weights()
    turns.engines()
    assert engine.trainer_is_in()
    turns.trainer()
    assert engine.calls == []
