"""The app factory of our HTTP servers: bearer token, body limit, errors as JSON in OpenAI's shape."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web

from megatron_lwz.errors import LwzError
from megatron_lwz.http.ports import bind

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN_PATHS = frozenset({"/health"})
"""Paths that need no token, so that a load balancer or a launcher can check whether the server is alive."""

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
        log.exception("%s %s failed", request.method, request.path)
        return error_response(500, "internal error, see the server's log")


def _require_token(token: str) -> Any:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if request.path not in OPEN_PATHS and not hmac.compare_digest(given, expected):
            raise web.HTTPUnauthorized(text="missing or wrong bearer token")
        return await handler(request)

    return check


def make_app(
    routes: Iterable[web.AbstractRouteDef], *, token: str | None, max_body_bytes: int = 64 << 20
) -> web.Application:
    """Returns an app with `routes`. If a token is given, all paths but /health require it.

    Bodies above `max_body_bytes` are answered with 413. Errors are JSON.
    """
    middlewares = [_errors_as_json] + ([_require_token(token)] if token else [])
    app = web.Application(client_max_size=max_body_bytes, middlewares=middlewares)
    app.add_routes(routes)
    return app


async def read_object(request: web.Request) -> dict[str, Any]:
    """Reads the request's JSON object. Answers 400 for any other body."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(text=f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body must be a JSON object")
    return body


def run_app(app: web.Application, *, host: str = "127.0.0.1", port: int) -> None:
    """Serves until SIGINT or SIGTERM. Raises EnvironmentSetupError if the port is taken."""
    web.run_app(app, sock=bind(host, port), print=None, access_log=None, handle_signals=True, shutdown_timeout=5.0)
