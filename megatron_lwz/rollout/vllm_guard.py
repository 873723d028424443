"""Token check inside vLLM: `vllm serve … --middleware megatron_lwz.rollout.vllm_guard.RequireToken`.

It needs this project on PYTHONPATH. vLLM requires its API key only below /v1, /v2, /inference and /cohere. The routes
that pause it, change its weights or call any method of its workers (/collective_rpc) answer everybody. This middleware
makes all routes but /health require the key. It imports nothing outside the standard library and this project, because
vLLM has an environment of its own.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from megatron_lwz.distributed import environment

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

TOKEN_NAME = "VLLM_API_KEY"
OPEN_PATHS = frozenset({"/health"})
REFUSAL = b'{"error": {"message": "missing or wrong bearer token", "type": "invalid_request_error", "code": 401}}'


class RequireToken:
    """ASGI middleware that answers 401 without `Authorization: Bearer $VLLM_API_KEY`. It never buffers streams."""

    def __init__(self, app: App) -> None:
        """Raises RuntimeError if there is no token to require: a guard that admits everybody is worse than none."""
        token = environment.get(TOKEN_NAME)
        if not token:
            raise RuntimeError(f"{TOKEN_NAME} is not set: the token that {type(self).__name__} asks for")
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Passes the request on, or rejects it."""
        kind = scope["type"]
        if kind not in ("http", "websocket") or scope["path"] in OPEN_PATHS or self._may_enter(scope):
            await self._app(scope, receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(REFUSAL)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSAL})

    def _may_enter(self, scope: Message) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
