"""Engines that the loss or the token cannot rely on are refused before a rollout is written."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.errors import EngineError
from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import make_app
from megatron_lwz.rollout.contract import check_logprobs
from megatron_lwz.rollout.tied_head import WORKER
from tests.support.engine_contract import check_engines
from tests.support.synthetic_engine import TOKEN, background_loop

GUARDED = {"/v1/models", "/is_paused", "/server_info"}


@pytest.mark.parametrize(
    ("mode", "temperature", "top_p", "fits"),
    [
        ("full_softmax_at_temperature", 0.8, 0.9, True),
        ("processed_logprobs", 0.8, 1.0, True),
        ("processed_logprobs", 0.8, 0.9, False),  # renormalised over the nucleus
        ("raw_logprobs", 1.0, 0.9, True),
        ("raw_logprobs", 0.8, 1.0, False),
        ("processed_logits", 1.0, 1.0, False),
    ],
)
def test_logprob_mode_must_fit_the_sampling(mode, temperature, top_p, fits):
    if fits:
        check_logprobs("http://127.0.0.1:1", mode, temperature=temperature, top_p=top_p)
    else:
        with pytest.raises(EngineError, match=rf"127\.0\.0\.1:1: gives {mode}.*--logprobs-mode"):
            check_logprobs("http://127.0.0.1:1", mode, temperature=temperature, top_p=top_p)


class LikeVllm:
    """What vLLM tells about itself; `guarded` routes ask for the token, as vLLM's own or our guard has it."""

    def __init__(
        self, mode: str | None, guarded: set[str], *, device: str = "cuda", worker: str = "", **entry: Any
    ) -> None:
        self.entry = {"id": "policy", "max_model_len": 16_384} | entry
        self.mode, self.guarded = mode, guarded
        self.rest = {"device_config": {"device": device}, "parallel_config": {"worker_extension_cls": worker}}

    def app(self) -> web.Application:
        handlers = {"/v1/models": self._models, "/is_paused": self._is_paused}
        if self.mode is not None:  # vLLM has the route in development mode only
            handlers["/server_info"] = self._server_info
        return make_app([web.get(path, handler) for path, handler in handlers.items()], token=None)

    def _check(self, request: web.Request) -> None:
        if request.path in self.guarded and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized

    async def _models(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.json_response({"data": [self.entry]})

    async def _is_paused(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.json_response({"is_paused": False})

    async def _server_info(self, request: web.Request) -> web.Response:
        self._check(request)
        config = {"model_config": {"logprobs_mode": self.mode}, **self.rest}
        return web.json_response({"vllm_config": config if request.query["config_format"] == "json" else "text"})


@pytest.fixture
def check() -> Iterator[Callable[..., None]]:
    """Checks a server of the given kind on a real socket."""
    with background_loop() as start:

        def serve_and_check(engine: Any, token: str | None = TOKEN, *, tied: bool = False, **section: Any) -> None:
            check_engines([start(engine)], token, RolloutSection(**section), longest=15_000, tied=tied)

        yield serve_and_check


def test_a_fitting_engine_passes(check):
    check(LikeVllm("processed_logprobs", GUARDED))
    check(LikeVllm(None, GUARDED, logprobs_mode="full_softmax_at_temperature"), top_p=0.9)


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (LikeVllm("raw_logprobs", GUARDED), "gives raw_logprobs"),
        (LikeVllm(None, GUARDED), "VLLM_SERVER_DEV_MODE=1"),
        (LikeVllm("processed_logprobs", GUARDED, max_model_len=8192), "--max-model-len 15000"),
        (LikeVllm("processed_logprobs", GUARDED, id="Qwen"), "no model named 'policy'"),
        (LikeVllm("processed_logprobs", {"/v1/models"}), "answer without the token.*RequireToken"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_in_one_line(check, engine, says):
    with pytest.raises(EngineError, match=says) as caught:
        check(engine)
    assert "\n" not in str(caught.value)


def test_vllm_on_a_cpu_must_renew_a_tied_output_layer(check):
    with pytest.raises(
        EngineError, match=r"keeps a tied output layer .* --worker-extension-cls megatron_lwz\S+ \(docs"
    ):
        check(LikeVllm("processed_logprobs", GUARDED, device="cpu"), tied=True)
    check(LikeVllm("processed_logprobs", GUARDED, device="cpu", worker=WORKER), tied=True)
    check(LikeVllm("processed_logprobs", GUARDED, device="cpu"), tied=False)
    check(LikeVllm("processed_logprobs", GUARDED), tied=True)
    module, name = WORKER.rsplit(".", 1)
    assert callable(getattr(importlib.import_module(module), name).renew_tied_head)


def test_an_engine_without_a_token_is_warned_of(check, caplog):
    check(LikeVllm("processed_logprobs", set()), token=None)
    assert "LWZ_ENGINE_TOKEN is not set" in caplog.text


def test_an_engine_that_is_not_there_is_one_line():
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(EngineError, match=f"127.0.0.1:{port}"):
        check_engines([f"http://127.0.0.1:{port}"], TOKEN, RolloutSection(), longest=10)
