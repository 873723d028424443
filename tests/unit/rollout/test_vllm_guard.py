"""The middleware that has vLLM ask for its token on every route."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.rollout.vllm_guard import TOKEN_NAME, RequireToken

ROOT = Path(__file__).resolve().parents[3]


def answer(path: str, *headers: tuple[bytes, bytes], kind: str = "http") -> list[dict[str, Any]]:
    """What is sent back for a request: the app behind the guard sends `{"type": "inside"}`."""
    sent: list[Any] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "inside"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read from a request that is refused")

    asyncio.run(RequireToken(inside)({"type": kind, "path": path, "headers": list(headers)}, receive, send))
    return sent


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_NAME, "secret")


@pytest.mark.parametrize("path", ["/pause", "/collective_rpc", "/v1/completions", "/health/", "/metrics", ""])
@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"authorization", b"Bearer wrong"),),
        ((b"authorization", b"secret"),),
        ((b"authorization", b"Bearer "),),
        ((b"authorization", b"Bearer secret"), (b"authorization", b"Bearer other")),
        ((b"authorization", "Bearer sécret".encode()),),
    ],
)
def test_every_route_but_health_needs_the_token(path, headers):
    start, body = answer(path, *headers)
    assert start["status"] == 401 and dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
    assert answer(path, *headers, kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_health_start_up_and_the_holder_of_the_token_pass():
    assert answer("/health") == answer("/", kind="lifespan") == [{"type": "inside"}]
    for kind in ("http", "websocket"):
        assert answer("/pause", (b"authorization", b"Bearer secret"), kind=kind) == [{"type": "inside"}]


def test_without_a_token_nothing_starts(monkeypatch):
    monkeypatch.setenv(TOKEN_NAME, "")
    with pytest.raises(RuntimeError, match=TOKEN_NAME):
        answer("/health")


def test_it_needs_nothing_but_the_standard_library():
    """vLLM's environment has this project on its path, not what this project depends on."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import megatron_lwz.rollout.vllm_guard"
    # isolated and without site-packages: any other import fails
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
