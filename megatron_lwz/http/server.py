"""The app factory of our HTTP servers: bearer token, Host check, bounds, errors as JSON in OpenAI's shape.

`http/listen.py` bounds connections and slow clients, aiohttp itself the header: 128 lines of at most 8190 bytes.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web

from megatron_lwz.errors import EnvironmentSetupError, LwzError
from megatron_lwz.http.hosts import Hosts, is_loopback
from megatron_lwz.http.listen import serve_until_signalled
from megatron_lwz.http.ports import bind
from megatron_lwz.reading import parse_json
from megatron_lwz.units import MIB

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN_PATHS = frozenset({"/health"})
"""Paths that need no token, so that a load balancer or a launcher can check whether the server is alive."""
MAX_BODY_BYTES = 64 * MIB
BODY_SECONDS = 60.0
"""Time in which a whole body must arrive."""

log = logging.getLogger(__name__)


def error_response(status: int, message: str) -> web.Response:
    """Returns an error response in the shape that OpenAI's clients understand."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return web.json_response({"error": {"message": message, "type": kind, "code": status}}, status=status)


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return error_response(error.status, error.text or error.reason)
    except LwzError as error:
        return error_response(400, str(error))
    except ConnectionError:  # the client disconnected, so no answer can be delivered
        return web.Response(status=499)
    except Exception:  # one bad request must not end the server; the log has the traceback
        log.exception("%s %s failed", request.method, request.rel_url.raw_path[:200])
        return error_response(500, "internal error, see the server's log")


def _require_token(token: str) -> Any:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if request.path not in OPEN_PATHS and not hmac.compare_digest(given, expected):
            raise web.HTTPUnauthorized(text="missing or wrong bearer token")
        return await handler(request)

    return check


def _require_host(hosts: Hosts) -> Any:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.getall("Host", [])
        if len(given) != 1 or given[0] not in hosts:
            named = ", ".join(given)[:80] or "none"
            raise web.HTTPMisdirectedRequest(text=f"Host = {named!a}: not this server's name; --allow-host accepts it")
        return await handler(request)

    return check


def _require_small_body(most: int) -> Any:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (length := request.content_length or 0) > most:  # also on routes that read no body
            raise web.HTTPRequestEntityTooLarge(max_size=most, actual_size=length)
        return await handler(request)

    return check


def make_app(
    routes: Iterable[web.AbstractRouteDef],
    *,
    token: str | None,
    hosts: Hosts | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> web.Application:
    """Returns an app with `routes`. If a token is given, all paths but /health require it.

    Requests whose Host header is not one of `hosts` (default: loopback) are answered with 421, bodies above
    `max_body_bytes` with 413. Errors are JSON.
    """
    middlewares = [_errors_as_json, _require_host(hosts or Hosts()), _require_small_body(max_body_bytes)]
    middlewares += [_require_token(token)] if token else []
    app = web.Application(client_max_size=max_body_bytes, middlewares=middlewares)
    app.add_routes(routes)
    return app


async def read_object(request: web.Request) -> dict[str, Any]:
    """Reads the request's JSON object. Answers 400 for any other body, and 408 for one that does not arrive in time."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            data = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    try:
        body = parse_json(data.decode("utf-8"), "the body")
    except UnicodeDecodeError as error:
        raise web.HTTPBadRequest(text=f"the body is not UTF-8: {error.reason}") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body must be a JSON object")
    return body


def check_exposure(host: str, token: str | None, variable: str) -> None:
    """Raises EnvironmentSetupError if other machines could use a server without a token. `variable` holds the token."""
    if not token and not is_loopback(host):
        advice = f"every machine that reaches it could use this server: set {variable}, or listen on 127.0.0.1"
        raise EnvironmentSetupError(f"--host {host} without a token: {advice}")


def run_app(app: web.Application, *, host: str = "127.0.0.1", port: int) -> None:
    """Serves until SIGINT or SIGTERM. Raises EnvironmentSetupError if the port is taken."""
    serve_until_signalled(app, bind(host, port))
