from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from megatron_lwz.errors import ConfigError, EnvironmentSetupError
from megatron_lwz.http.ports import bind, free_port
from megatron_lwz.http.server import make_app, read_object, run_app


async def _echo(request: web.Request) -> web.Response:
    return web.json_response(await read_object(request))


async def _fail(request: web.Request) -> web.Response:
    raise RuntimeError("secret details")


async def _refuse(request: web.Request) -> web.Response:
    raise ConfigError("a.b", 3, "too large")


def ask(method: str, path: str, *, headers=None, body: bytes = b"{}", token: str | None = "secret") -> tuple[int, dict]:
    async def run() -> tuple[int, dict]:
        routes = [
            web.post("/echo", _echo),
            web.get("/fail", _fail),
            web.get("/refuse", _refuse),
            web.get("/health", _ok),
        ]
        runner = web.AppRunner(make_app(routes, token=token, max_body_bytes=1000))
        await runner.setup()
        listener = bind("127.0.0.1", 0)
        await web.SockSite(runner, listener).start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}{path}"
            async with (
                aiohttp.ClientSession() as session,
                session.request(method, url, headers=headers, data=body) as a,
            ):
                return a.status, await a.json()
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def _ok(request: web.Request) -> web.Response:
    return web.json_response({})


GOOD = {"Authorization": "Bearer secret"}


def test_the_token_is_needed_everywhere_but_for_health():
    assert ask("POST", "/echo", headers=GOOD, body=b'{"a": 1}') == (200, {"a": 1})
    assert ask("GET", "/health") == (200, {})
    for headers in (
        None,
        {"Authorization": "Bearer wrong"},
        {"Authorization": "secret"},
        {"Authorization": "Bearer ключ"},
    ):
        status, body = ask("POST", "/echo", headers=headers)
        assert status == 401 and "token" in body["error"]["message"]
    assert ask("POST", "/missing")[0] == 401
    assert ask("POST", "/echo", token=None)[0] == 200


def test_errors_are_json_and_keep_internals_to_the_log():
    assert ask("GET", "/missing", headers=GOOD)[1]["error"]["code"] == 404
    assert ask("GET", "/echo", headers=GOOD)[1]["error"]["code"] == 405
    status, body = ask("GET", "/fail", headers=GOOD)
    assert status == 500 and "secret details" not in str(body)
    status, body = ask("GET", "/refuse", headers=GOOD)
    assert status == 400 and body["error"]["message"] == "config key 'a.b' = 3: too large"


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"\xff", 400), (b"[1]", 400), (b"[" * 999, 400), (b"x" * 2000, 413)]
)
def test_bad_bodies(body, status):
    got, answer = ask("POST", "/echo", headers=GOOD, body=body)
    assert got == status and answer["error"]["code"] == status


def test_a_taken_port_is_a_one_line_error():
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(EnvironmentSetupError, match=f"127.0.0.1:{port}: another process"):
            run_app(make_app([], token=None), port=port)
    with pytest.raises(EnvironmentSetupError, match=r"cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_free_port_can_be_bound():
    port = free_port()
    with bind("127.0.0.1", port) as listener:
        assert listener.getsockname() == ("127.0.0.1", port)
