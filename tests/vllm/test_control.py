"""Who may control a real vLLM, and what it says about itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.errors import EngineError
from tests.support.engine_contract import check_engines
from tests.vllm.conftest import TOKEN, Served, vllm_server
from tests.vllm.served_model import MAX_LENGTH

pytestmark = pytest.mark.vllm

CONTROL = ["/pause", "/resume", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/abort_requests"]
CONTROL += ["/update_weights", "/weight_checker", "/sleep", "/wake_up", "/is_paused", "/weight_info", "/server_info"]


async def statuses(url: str, token: str | None) -> dict[tuple[str, str], int]:
    """Status of every route that vLLM documents, called without a body."""
    async with aiohttp.ClientSession() as session:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        async with session.get(f"{url}/openapi.json", headers=bearer) as response:
            paths = (await response.json())["paths"]
        found = {}
        for path, methods in paths.items():
            for method in methods:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                async with session.request(method, url + path, headers=headers) as response:
                    found[method.upper(), path] = response.status
        return found


def test_every_route_but_health_asks_for_the_token(vllm: Served) -> None:
    for token in (None, "wrong"):
        found = asyncio.run(statuses(vllm.url, token))
        assert {path for _, path in found} >= {*CONTROL, "/v1/completions", "/metrics"}
        assert {route for route, status in found.items() if status != 401} == {("GET", "/health")}


def test_a_fitting_engine_passes_and_another_is_refused(vllm: Served) -> None:
    check_engines([vllm.url], TOKEN, RolloutSection(temperature=0.8), longest=MAX_LENGTH)
    for section, longest, says in (
        (RolloutSection(temperature=0.8, top_p=0.9), MAX_LENGTH, "gives processed_logprobs"),
        (RolloutSection(temperature=0.8), MAX_LENGTH + 1, f"--max-model-len {MAX_LENGTH + 1}"),
    ):
        with pytest.raises(EngineError, match=says):
            check_engines([vllm.url], TOKEN, section, longest=longest)
    with pytest.raises(EngineError, match=r"401.*api_key_env"):
        check_engines([vllm.url], "wrong", RolloutSection(), longest=10)


def test_vllm_with_its_own_defaults_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Raw log-probs, and control routes that its own API key leaves open."""
    with vllm_server(models[0], tmp_path / "vllm.log") as url:
        with pytest.raises(EngineError, match="gives raw_logprobs"):
            check_engines([url], TOKEN, RolloutSection(temperature=0.8), longest=MAX_LENGTH)
        with pytest.raises(EngineError, match=r"answer without the token.*RequireToken"):
            check_engines([url], TOKEN, RolloutSection(temperature=1.0), longest=MAX_LENGTH)

        async def ask() -> dict[str, int]:
            found = {}
            async with aiohttp.ClientSession() as session:
                for path in ("/v1/models", "/is_paused", "/server_info"):
                    async with session.get(url + path) as response:
                        found[path] = response.status
                for path in ("/pause?mode=keep", "/resume", "/reset_prefix_cache"):
                    async with session.post(url + path) as response:
                        found[path] = response.status
                body = {"method": "reload_weights", "kwargs": {"weights_path": str(models[1])}}
                async with session.post(f"{url}/collective_rpc", json=body) as response:
                    found["/collective_rpc"] = response.status
            return found

        found = asyncio.run(ask())
        assert found.pop("/v1/models") == 401
        assert set(found.values()) == {200}, "anybody may pause it and change its weights: docs/vllm.md says so"
