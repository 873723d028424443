"""Names, connections, headers, bodies and time of our servers are bounded, on every route."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from aiohttp import web

from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.http import server as http_server
from megatron_lwz.http.hosts import Hosts, is_loopback
from megatron_lwz.http.listen import serve
from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import check_exposure, make_app, read_object

LARGE = b"x" * (8 << 20)


async def _echo(request: web.Request) -> web.Response:
    return web.json_response(await read_object(request))


async def _ok(_: web.Request) -> web.Response:
    return web.json_response({})


async def _large(_: web.Request) -> web.Response:
    return web.Response(body=LARGE)


async def _fail(_: web.Request) -> web.Response:
    raise RuntimeError


ROUTES = [
    web.post("/echo", _echo),
    web.get("/health", _ok),
    web.get("/large", _large),
    web.get("/fail{rest:[^/]*}", _fail),
]


def talk(client: Callable[[int], Awaitable[object]], *, hosts: Hosts | None = None, **limits: float) -> object:
    """Runs `client(port)` against the server as `run_app` runs it."""

    async def main() -> object:
        stop, listener = asyncio.Event(), bind("127.0.0.1", 0)
        app = make_app(ROUTES, token="secret", hosts=hosts, max_body_bytes=1000)
        serving = asyncio.create_task(serve(app, listener, stop, **limits))  # type: ignore[arg-type]
        try:
            return await asyncio.wait_for(client(listener.getsockname()[1]), 30)
        finally:
            stop.set()
            await serving

    return asyncio.run(main())


def send(*lines: str | bytes, hosts: Hosts | None = None, end: bool = True, **limits: float) -> tuple[int, str]:
    """Sends raw lines; returns (status, body) of the answer, (0, "") if the connection ends without one."""

    async def client(port: int) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\r\n".join(line.encode() if isinstance(line, str) else line for line in lines))
        writer.write(b"\r\n\r\n" if end else b"")
        with suppress(ConnectionError):
            said = (await reader.read(1 << 16)).decode()
            writer.close()
            head, _, body = said.partition("\r\n\r\n")
            return (int(head.split()[1]), body) if head else (0, "")
        return 0, ""

    return talk(client, hosts=hosts, **limits)  # type: ignore[return-value]


GOOD = ("Host: localhost", "Authorization: Bearer secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:80", "LOCALHOST.", "[::1]:8000", "[::1]"])
def test_loopback_names_are_served(host):
    assert send("GET /health HTTP/1.1", f"Host: {host}")[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost:80:80", "10.0.0.1", "", "[", "a b"]
)
@pytest.mark.parametrize("path", ["/health", "/nothing"])
def test_other_names_are_refused_on_every_route(path, host):
    assert send(f"GET {path} HTTP/1.1", f"Host: {host}")[0] in (400, 421)


def test_a_missing_and_a_doubled_host_are_refused():
    assert send("GET /health HTTP/1.1")[0] in (400, 421)
    assert send("GET /health HTTP/1.1", "Host: localhost", "Host: evil.example")[0] in (400, 421)


def test_hosts_follow_the_address_that_is_listened_on():
    assert "10.0.0.7:81" in Hosts("10.0.0.7") and "10.0.0.8" not in Hosts("10.0.0.7")
    assert "10.0.0.8" in Hosts("0.0.0.0") and "evil.example" not in Hosts("::")
    assert "Node1.cluster:80" in Hosts("10.0.0.7", ["node1.cluster"])
    assert send("GET /health HTTP/1.1", "Host: node1", hosts=Hosts("127.0.0.1", ["node1"]))[0] == 200


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("GET /" + "a" * 9000 + " HTTP/1.1", *GOOD), 400),
        (("GET /health HTTP/1.1", *GOOD, "X: " + "a" * 9000), 400),
        (("GET /health HTTP/1.1", *GOOD, *(f"X{n}: a" for n in range(200))), 400),
        (("GET /health HTTP/1.1", *GOOD, "Content-Length: 2000"), 413),
        (("GET /nothing HTTP/1.1", *GOOD, "Content-Length: 2000"), 413),
        (("POST /echo HTTP/1.1", *GOOD, "Content-Length: 2000"), 413),
        (("POST /echo HTTP/1.1", *GOOD, "Content-Length: -1"), 400),
        (("POST /echo HTTP/1.1", *GOOD, "Transfer-Encoding: chunked", "", "bb8", "x" * 3000, "0"), 413),
        (("GET /health HTTP/9.1", *GOOD), 400),
        (("POST /echo HTTP/1.1", "Host: localhost", b"Authorization: Bearer \xff\xfe"), 401),
    ],
    ids=["line", "field", "fields", "body of GET", "body of 404", "body", "length", "chunks", "version", "not UTF-8"],
)
def test_oversized_and_odd_requests_get_one_line(lines, status, caplog):
    got, body = send(*lines)
    assert got == status and "Traceback" not in body + caplog.text and len(body) < 1000


@pytest.mark.parametrize(
    "body",
    [b'{"a":' * 150 + b"1" + b"}" * 150, b'{"a": "\\ud800"}', b'{"a": ' + b"1" * 900 + b"}", b"\xff", b"[" * 900],
)
def test_bodies_are_bounded_in_depth_and_hold_only_characters(body, caplog):
    status, said = send("POST /echo HTTP/1.1", *GOOD, f"Content-Length: {len(body)}", "", body, end=False)
    assert status == (200 if b"111" in body else 400) and "Traceback" not in caplog.text
    assert status == 200 or "\n" not in json.loads(said)["error"]["message"]


def test_a_slow_header_and_a_slow_body_end(monkeypatch):
    monkeypatch.setattr(http_server, "BODY_SECONDS", 0.2)
    assert send("GET /health HTTP/1.1", "Host: local", end=False, idle_seconds=0.3) == (0, "")
    slow = send("POST /echo HTTP/1.1", *GOOD, "Content-Length: 9", "", "{", end=False)
    assert slow[0] == 408 and "did not arrive" in slow[1]


def test_a_client_that_stops_reading_is_dropped():
    async def client(port: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
        writer.write(f"GET /large HTTP/1.1\r\n{GOOD[0]}\r\n{GOOD[1]}\r\n\r\n".encode())
        await asyncio.sleep(1.5)
        size = 0
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while data := await reader.read(1 << 16):
                size += len(data)
        return size

    assert talk(client, stalled_seconds=0.3) < len(LARGE)  # type: ignore[operator]


def test_connections_beyond_the_limit_get_503_and_leave_room_again():
    async def client(port: int) -> list[bytes]:
        first = await asyncio.open_connection("127.0.0.1", port)
        second = await asyncio.open_connection("127.0.0.1", port)
        refused = await second[0].read()
        first[1].close()
        await first[1].wait_closed()
        served = b"HTTP/1.1 503"
        while served.startswith(b"HTTP/1.1 503"):  # until the server has seen the end of the first
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            served = await reader.read()
        return [refused, served]

    refused, served = talk(client, most=1)  # type: ignore[misc]
    assert refused.startswith(b"HTTP/1.1 503") and served.startswith(b"HTTP/1.1 200")


def test_the_log_of_a_failure_is_one_line_of_the_path(caplog):
    assert send("GET /fail%0aINFO%20forged%1b[2J HTTP/1.1", *GOOD)[0] == 500
    assert "\x1b" not in caplog.messages[0] and "\n" not in caplog.messages[0] and "%0a" in caplog.messages[0].lower()


def test_a_server_for_other_machines_needs_a_token():
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert is_loopback(host)
        check_exposure(host, None, "LWZ_ENGINE_TOKEN")
    check_exposure("0.0.0.0", "secret", "LWZ_ENGINE_TOKEN")
    for host in ("0.0.0.0", "::", "10.0.0.1", "node1"):
        with pytest.raises(EnvironmentSetupError, match=rf"--host {host} without a token: .*set LWZ_ENGINE_TOKEN"):
            check_exposure(host, "", "LWZ_ENGINE_TOKEN")
