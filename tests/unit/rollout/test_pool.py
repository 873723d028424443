from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from megatron_lwz.config.pool import PoolSection
from megatron_lwz.errors import EngineError
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.engine_list import EngineList
from megatron_lwz.rollout.limits import EngineLoad
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import WeightVersion
from tests.support.synthetic_engine import TOKEN, Engine
from tests.support.waiting import until

QUICK = PoolSection(probe_interval=0.02)


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


def test_leases_bound_the_concurrency_and_avoid_failing_engines(start_engine):
    urls = [start_engine(Engine()) for _ in range(2)]
    running, most = dict.fromkeys(urls, 0), dict.fromkeys(urls, 0)

    async def run() -> None:
        pool = EnginePool([EngineClient(url, TOKEN) for url in urls], concurrency=2, section=QUICK)

        async def work(group: int) -> None:
            async with pool.lease(group) as client:
                running[client.url] += 1
                most[client.url] = max(most[client.url], running[client.url])
                await asyncio.sleep(0.005)
                running[client.url] -= 1

        await asyncio.gather(*(work(group) for group in range(20)))
        assert most == dict.fromkeys(urls, 2)
        with pytest.raises(RequestFailure):
            async with pool.lease(20) as first:
                raise RequestFailure(first.url, "cut", Failure.CONNECTION)
        async with pool.lease(20) as one, pool.lease(20) as two, pool.lease(20) as three:
            assert one is two is not first and three is first, "the last choice, until it finishes something"
        async with pool.lease(20) as again:
            assert again is first, "the group's home"
        await pool.close()

    asyncio.run(run())


def test_a_rollout_waits_for_another_engine_than_the_one_it_avoids(start_engine):
    urls = [start_engine(Engine()) for _ in range(2)]

    async def run() -> None:
        pool = EnginePool([EngineClient(url, TOKEN) for url in urls], concurrency=1, section=QUICK)
        order = []

        async def avoiding(client: EngineClient) -> None:
            async with pool.lease(0, client) as found:
                order.append(found)

        async with pool.lease(0) as bad, AsyncExitStack() as other:
            good = await other.enter_async_context(pool.lease(0))
        async with AsyncExitStack() as other:
            assert await other.enter_async_context(pool.lease(0, bad)) is good
            waiting = asyncio.ensure_future(avoiding(bad))
            await asyncio.sleep(0.05)
            assert not waiting.done(), "the engine it avoids is free, the other one is not"
            async with pool.lease(1) as taken:
                assert taken is bad, "one that avoids nothing is not held up"
        await waiting
        assert order == [good]
        pool._roster.members[urls.index(good.url)].health.take_out()
        await asyncio.wait_for(avoiding(bad), 5)
        assert order == [good, bad], "the only engine that is up"
        await pool.close()

    asyncio.run(run())


def test_the_samples_of_a_group_share_an_engine_and_groups_are_spread(start_engine):
    urls = [start_engine(Engine()) for _ in range(3)]

    async def run() -> None:
        pool = EnginePool([EngineClient(url, TOKEN) for url in urls], concurrency=8)
        async with AsyncExitStack() as stack:
            found = [{(await stack.enter_async_context(pool.lease(g))).url for _ in range(8)} for g in range(3)]
            assert found == [{url} for url in urls]
        async with AsyncExitStack() as stack:
            homes = [(await stack.enter_async_context(pool.lease(g))).url for g in (2, 2, 0, 1)]
            assert homes == [urls[2], urls[2], urls[0], urls[1]], "also when they come again"
        await pool.close()

    asyncio.run(run())


def test_one_that_waits_and_is_cancelled_leaves_its_slot_to_the_next(start_engine):
    url = start_engine(Engine())

    async def run() -> None:
        pool = EnginePool([EngineClient(url, TOKEN)], concurrency=1)

        async def work() -> str:
            async with pool.lease(0) as client:
                return client.url

        async with pool.lease(0):
            waiting = [asyncio.ensure_future(work()) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        waiting[1].cancel()  # it has been given the slot, and has not heard of it
        assert await waiting[2] == url
        async with pool.lease(0):
            pass
        await pool.close()

    asyncio.run(run())


class Mortal(Engine):
    """Drops connections while it is dead; without its weights afterwards."""

    alive = True

    async def control(self, request):
        if not self.alive:
            request.transport.abort()
        return await super().control(request)

    async def complete(self, request):
        if not self.alive:
            request.transport.abort()
        return await super().complete(request)

    def die(self) -> None:
        self.alive, self.version = False, "default"


def test_a_push_does_not_fail_because_one_engine_is_dead_and_it_gets_the_weights_later(start_engine):
    engines = [Mortal(), Mortal()]
    pool = EnginePool([EngineClient(start_engine(engine), TOKEN) for engine in engines], concurrency=2, section=QUICK)
    pool.push_weights(Path("/weights/1"), WeightVersion(1))
    engines[0].die()
    pool.push_weights(Path("/weights/2"), WeightVersion(2))
    assert engines[1].version == "2.0." and pool.metrics()["rollout/engines_up"] == 1
    assert len(pool.weight_checksum()) == 1
    engines[1].die()
    pool.push_weights(Path("/weights/3"), WeightVersion(3))
    assert pool.metrics()["rollout/engines_up"] == 0

    async def run() -> None:
        waiting = asyncio.ensure_future(lease_all(pool, 4))
        await asyncio.sleep(0.2)
        assert not waiting.done(), "no engine is there: it waits"
        for engine in engines:
            engine.alive = True
        assert {client.url for client in await waiting} == {client.url for client in pool.clients}
        await pool.close()

    asyncio.run(run())
    assert [engine.weights[-1] for engine in engines] == ["/weights/3"] * 2
    assert {engine.version for engine in engines} == {"3.0."} == {str(client.version) for client in pool.clients}
    metrics = pool.metrics()
    assert metrics["rollout/engines_up"] == 2 and metrics["rollout/total_engines_lost"] == 2


async def lease_all(pool: EnginePool, count: int) -> list[EngineClient]:
    async with AsyncExitStack() as stack:
        return [await stack.enter_async_context(pool.lease(group)) for group in range(count)]


def test_a_push_that_no_engine_takes_or_hears_at_first_says_why(start_engine):
    pool = EnginePool([EngineClient("http://127.0.0.1:9", TOKEN)], concurrency=1)
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9"):
        pool.push_weights(Path("/weights/1"), WeightVersion(1))


def test_an_engine_started_anew_unseen_gets_its_weights_by_the_next_probe(start_engine):
    engine = Engine()
    pool = EnginePool([EngineClient(start_engine(engine), TOKEN)], concurrency=1, section=QUICK)
    pool.push_weights(Path("/weights/1"), WeightVersion(1))

    async def run() -> None:
        await lease_all(pool, 1)
        engine.version = "default"
        await until(lambda: engine.version == "1.0.")
        await lease_all(pool, 1)
        await pool.close()

    asyncio.run(run())
    assert engine.weights == ["/weights/1"] * 2


def test_engines_come_and_go_by_their_file(start_engine, tmp_path):
    old, new = Engine(), Engine()
    urls = [start_engine(old), start_engine(new)]
    listing, checked = tmp_path / "engines.txt", []
    listing.write_text(urls[0] + "\n")

    async def check(client: EngineClient) -> None:
        checked.append(client.url)

    pool = EnginePool(
        [],
        concurrency=1,
        section=QUICK,
        check=check,
        listed=(EngineList(listing), lambda url: EngineClient(url, TOKEN)),
    )
    pool.meet()
    pool.push_weights(Path("/weights/1"), WeightVersion(1))

    async def run() -> None:
        async with pool.lease(0) as first:
            assert first.url == urls[0]
            listing.write_text("\n".join(urls) + "\n")
            async with pool.lease(1) as second:
                assert second.url == urls[1] and new.weights == ["/weights/1"], "weights before its first rollout"
                listing.write_text(urls[1] + "\n# gone\n")
                await until(lambda: pool.metrics()["rollout/engines_leaving"])
                await asyncio.to_thread(pool.push_weights, Path("/weights/2"), WeightVersion(2))
                assert old.weights[-1] == new.weights[-1] == "/weights/2", "what still writes gets new weights too"
                listing.write_text("nonsense\n")
        await until(lambda: len(pool.clients) == 1)
        async with pool.lease(0) as client:
            assert client.url == urls[1]
        await pool.close()

    asyncio.run(run())
    assert checked == urls


def test_an_engine_that_does_not_fit_is_refused_at_the_start_and_left_out_later(start_engine, tmp_path, caplog):
    urls, listing = [start_engine(Engine()) for _ in range(2)], tmp_path / "engines.txt"
    listing.write_text(urls[1])

    async def check(client: EngineClient) -> None:
        if client.url == urls[1]:
            raise EngineError(client.url, "takes too few tokens")

    def pool() -> EnginePool:
        listed = (EngineList(listing), lambda url: EngineClient(url, TOKEN))
        return EnginePool([], concurrency=1, section=QUICK, check=check, listed=listed)

    with pytest.raises(EngineError, match="too few tokens"):
        pool().meet()
    listing.write_text(urls[0])
    later = pool()
    later.meet()

    async def run() -> None:
        await lease_all(later, 1)
        listing.write_text("\n".join(urls))
        await until(lambda: "too few tokens: it is out" in caplog.text)
        await later.close()

    asyncio.run(run())
    assert later.metrics()["rollout/engines_up"] == 1 and caplog.text.count("too few tokens") == 1


def test_an_engine_that_is_away_at_the_start_may_come_later(start_engine):
    async def check(client: EngineClient) -> None:
        await client.models()

    away = Mortal()
    away.die()
    urls = [start_engine(Engine()), start_engine(away)]
    pool = EnginePool([EngineClient(url, TOKEN) for url in urls], concurrency=1, section=QUICK, check=check)
    pool.meet()
    assert pool.metrics()["rollout/engines_up"] == 1

    async def run() -> None:
        away.alive = True
        assert len({client.url for client in await lease_all(pool, 2)}) == 2
        await pool.close()

    asyncio.run(run())
    alone = EnginePool([EngineClient("http://127.0.0.1:9", TOKEN)], concurrency=1, check=check)
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9"):
        alone.meet()


def test_a_full_cache_gets_fewer_rollouts(start_engine):
    engine = Engine(load=EngineLoad(0.99, running=16))
    section = PoolSection(probe_interval=0.02, least_concurrency=2)
    pool = EnginePool([EngineClient(start_engine(engine), TOKEN)], concurrency=16, section=section)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            for group in range(16):
                await stack.enter_async_context(pool.lease(group))
            await until(lambda: pool.metrics()["rollout/concurrency_limit"] <= 12)
        await pool.close()

    asyncio.run(run())
    assert pool.metrics()["rollout/kv_use"] == pytest.approx(0.99)


class Process:
    """A keeper of an engine that ends again and again."""

    def __init__(self, engine: Mortal, works_at: int) -> None:
        self.engine, self.works_at = engine, works_at
        self.starts: list[Path | None] = []

    def ended(self, *, failed: bool) -> bool:
        return failed or not self.engine.alive

    def start_again(self, weights: Path | None) -> None:
        self.starts.append(weights)
        self.engine.alive = len(self.starts) >= self.works_at

    def last_words(self) -> str:
        return "out of memory"


@pytest.mark.parametrize("works_at", [2, 9])
def test_an_ended_engine_is_started_again_with_the_weights_but_not_for_ever(start_engine, works_at):
    engine = Mortal()
    keeper, section = Process(engine, works_at), PoolSection(probe_interval=0.02, restarts=3)
    pool = EnginePool([EngineClient(start_engine(engine), TOKEN)], concurrency=1, section=section, keeper=keeper)
    pool.push_weights(Path("/weights/1"), WeightVersion(1))
    engine.die()
    pool.push_weights(Path("/weights/2"), WeightVersion(2))

    async def run() -> None:
        if works_at == 2:
            await lease_all(pool, 1)
        else:
            with pytest.raises(EngineError, match="ended 4 times in a row before it finished a rollout; out of memory"):
                await lease_all(pool, 1)
        await pool.close()

    asyncio.run(run())
    assert keeper.starts == [Path("/weights/2")] * min(works_at, 3)
    assert pool.metrics()["rollout/total_engine_restarts"] == len(keeper.starts)
    if works_at == 2:
        assert engine.version == "2.0."
