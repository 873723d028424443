"""Which engines renew a tied output layer with new weights: vLLM on a CPU does so only with rollout/vllm_worker.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORKER = "megatron_lwz.rollout.vllm_worker.TiedHead"


def renews_tied_head(info: Mapping[str, Any] | None) -> bool:
    """Returns whether the engine's workers have `renew_tied_head`. `info`: an answer of /server_info."""
    return _setting(info, "parallel_config", "worker_extension_cls") == WORKER


def keeps_tied_head(info: Mapping[str, Any] | None) -> bool:
    """Returns whether the engine would go on with the old output layer after new weights, if it is tied."""
    return _setting(info, "device_config", "device") == "cpu" and not renews_tied_head(info)


def _setting(info: Mapping[str, Any] | None, *path: str) -> object:
    found: object = (info or {}).get("vllm_config")
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found
