"""Checks of an engine that runs already, before the first rollout is requested from it."""

from __future__ import annotations

import logging

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.errors import EngineError
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.tied_head import WORKER, keeps_tied_head

GUARD = "--middleware megatron_lwz.rollout.vllm_guard.RequireToken"
EXTENSION = f"--worker-extension-cls {WORKER}"

log = logging.getLogger(__name__)


async def check_engine(client: EngineClient, section: RolloutSection, *, longest: int, tied: bool) -> None:
    """Raises EngineError unless the engine's settings fit the run and its control routes require the run's token.

    `longest`: number of tokens of the longest prompt plus the longest response. `tied`: whether the policy's output layer
    shares the embedding's weight.
    """
    entry = await client.models()
    limit = entry.get("max_model_len")
    if isinstance(limit, int) and limit < longest:
        advice = (
            f"takes sequences of {limit} tokens, data.max_prompt_tokens + rollout.max_new_tokens is {longest}: "
            f"start it with --max-model-len {longest} or more"
        )
        raise EngineError(client.url, advice)
    mode = entry.get("logprobs_mode") or await client.logprobs_mode()
    check_logprobs(client.url, mode, temperature=section.temperature, top_p=section.top_p)
    if tied and keeps_tied_head(await client.server_info()):
        advice = f"vLLM on a CPU keeps a tied output layer when it gets new weights: start it with {EXTENSION}"
        raise EngineError(client.url, advice + " (docs/vllm.md)")
    if not client.has_token:
        log.warning(
            "engine %s: %s is not set, whoever reaches it may change its weights", client.url, section.api_key_env
        )
    elif await client.answers_strangers():
        advice = f"its control routes answer without the token: start vLLM with {GUARD} and VLLM_API_KEY (docs/vllm.md)"
        raise EngineError(client.url, advice)


def check_logprobs(url: str, mode: str, *, temperature: float, top_p: float) -> None:
    """Raises EngineError unless log-probs are of the full softmax at the sampling temperature.

    The loss needs these log-probs. `mode`: the embedded engine's `full_softmax_at_temperature`, or vLLM's
    --logprobs-mode. `processed_logprobs` are computed at the temperature and after top-p, `raw_logprobs` at temperature
    1 and before top-p.
    """
    fitting = {"full_softmax_at_temperature"}
    if top_p == 1:
        fitting.add("processed_logprobs")
    if temperature == 1:
        fitting.add("raw_logprobs")
    if mode not in fitting:
        advice = f"gives {mode}, but temperature {temperature} and top_p {top_p} need one of {sorted(fitting)}"
        raise EngineError(url, advice + ": see vLLM's --logprobs-mode")
