"""A running embedded engine, asked by OpenAI's client and by its control routes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import openai

from tests.support.waiting import wait_for

TOKEN = "secret"


class Served:
    """A running server, its two weight folders, and OpenAI's client for it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0)

    def complete(self, prompt: Any, **settings: Any) -> Any:
        """A completion by OpenAI's client; keys it does not know go into the body."""
        known = {"max_tokens", "temperature", "top_p", "stop", "seed", "stream", "logprobs", "n", "model"}
        extra = {key: settings.pop(key) for key in list(settings) if key not in known}
        settings.setdefault("model", "policy")
        return self.openai.completions.create(prompt=prompt, extra_body=extra, **settings)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of a control route."""

        async def ask() -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.request(method, self.url + path, json=body) as response,
            ):
                return response.status, await response.json()

        return asyncio.run(ask())

    def reload(self, name: str) -> tuple[int, Any]:
        """Status and JSON of loading the folder `name` beside the first one."""
        kwargs = {"weights_path": str(self.folder / name)}
        return self.call("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": kwargs})

    def running(self) -> tuple[int, int]:
        """(writing, waiting) requests."""
        info = self.call("GET", "/weight_info")[1]
        return info["running"], info["waiting"]

    def wait_until_idle(self) -> None:
        """Fails if requests still hold the engine after 10 s."""
        wait_for(lambda: self.running() == (0, 0), pause=0.05)
