from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from megatron_lwz.errors import EngineError
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import WeightVersion
from tests.unit.rollout.synthetic_engine import TOKEN, Engine


def test_push_weights_reaches_every_engine_in_order(start_engine):
    engines = [Engine(), Engine()]
    pool = EnginePool([EngineClient(start_engine(engine), TOKEN) for engine in engines], concurrency=1)
    version = WeightVersion(4, 0, "abc")
    pool.push_weights(Path("/weights/4"), version)
    for engine in engines:
        assert engine.calls == ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
        assert engine.weights == ["/weights/4"] and engine.version == str(version)
    assert {client.version for client in pool.clients} == {version}
    assert set(pool.weight_checksum().values()) == {"abc"}
    assert {model["logprobs_mode"] for model in pool.models().values()} == {"full_softmax_at_temperature"}


def test_an_engine_that_cannot_reload_goes_on_under_its_old_version(start_engine):
    class Full(Engine):
        async def control(self, request):
            answer = await super().control(request)
            return web.Response(status=500, text="no space left") if request.path == "/collective_rpc" else answer

    engine = Full()
    pool = EnginePool([EngineClient(start_engine(engine), TOKEN)], concurrency=1)
    with pytest.raises(EngineError, match="no space left"):
        pool.push_weights(Path("/weights/4"), WeightVersion(4))
    assert engine.calls == ["/pause", "/collective_rpc", "/resume"] and engine.version == "0.0."


def test_an_engine_that_serves_another_model_is_named(start_engine):
    pool = EnginePool([EngineClient(start_engine(Engine()), TOKEN, model="other")], concurrency=1)
    with pytest.raises(EngineError, match="serves no model named 'other'"):
        pool.models()


def test_leases_bound_the_concurrency_and_avoid_failing_engines():
    clients = [EngineClient(f"http://engine-{i}", None) for i in range(2)]
    pool = EnginePool(clients, concurrency=2)
    running: dict[str, int] = {}
    most: dict[str, int] = {}

    async def work(group: int) -> None:
        async with pool.lease(group) as client:
            running[client.url] = running.get(client.url, 0) + 1
            most[client.url] = max(most.get(client.url, 0), running[client.url])
            await asyncio.sleep(0.005)
            running[client.url] -= 1

    async def run() -> None:
        await asyncio.gather(*(work(group) for group in range(20)))
        assert most == {client.url: 2 for client in clients}
        pool.report(clients[0], failed=True)
        async with pool.lease(0) as client:
            assert client is clients[1]
        pool.report(clients[0], failed=False)
        async with pool.lease(0) as client, pool.lease(0) as second:
            assert client is second is clients[0]

    asyncio.run(run())
