"""vLLM's control routes for weights sent over a network of GPUs and for sleeping engines; one engine at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.types import WeightVersion

DISCARD_WEIGHTS = 2
"""Sleep level at which the key-value cache and the weights are dropped. Level 1 would keep a copy of the weights in
host memory.
"""

SERVER_OPTION = """--weight-transfer-config '{"backend": "nccl"}'"""

_NCCL_PACKAGE = re.compile(r"^(?:\[\w+\] )?nvidia-nccl-cu\d+==(\d+\.\d+\.\d+)", re.MULTILINE)


async def world_size(client: EngineClient) -> int:
    """Returns the engine's number of GPUs: tensor × pipeline × data parallel. Raises RequestFailure."""
    size = (await client.call("GET", "/get_world_size")).get("world_size")
    if not isinstance(size, int) or size < 1:
        raise RequestFailure(client.url, f"/get_world_size gave {size!r}, not a number of GPUs", Failure.CONTRACT)
    return size


async def nccl_version(client: EngineClient) -> str | None:
    """Returns the version of NCCL in the engine's environment, for example 2.29.7; None if the engine does not say.

    vLLM lists the packages of its environment. With VLLM_NCCL_SO_PATH it uses a library that may be none of them.
    """
    info = await client.server_info()
    return read_nccl(info) if info is not None else None


def read_nccl(info: Mapping[str, Any]) -> str | None:
    """Returns NCCL's version from an answer of /server_info; None if it lists none, or several."""
    variables, system = info.get("vllm_env"), info.get("system_env")
    if isinstance(variables, dict) and variables.get("VLLM_NCCL_SO_PATH"):
        return None
    packages = system.get("pip_packages") if isinstance(system, dict) else None
    found = set(_NCCL_PACKAGE.findall(packages)) if isinstance(packages, str) else set()
    return found.pop() if len(found) == 1 else None


async def join(client: EngineClient, info: Mapping[str, Any]) -> None:
    """Makes all GPUs of the engine join rank 0. Returns when they have. `info`: unique id, ranks and wire format."""
    try:
        await client.call("POST", "/init_weight_transfer_engine", {"init_info": dict(info)})
    except RequestFailure as error:
        advice = f"does not join the trainer ({error.advice}): start vLLM, 0.32 or newer, with {SERVER_OPTION} and VLLM_SERVER_DEV_MODE=1"
        raise RequestFailure(client.url, advice, error.kind) from error


async def leave(client: EngineClient) -> None:
    """Leaves the group that `join` joined, and aborts an unfinished update.

    An engine that is gone, or never joined, has neither.
    """
    for path in ("/shutdown_weight_transfer_engine", "/finish_weight_update", "/shutdown_weight_transfer_engine"):
        try:
            await client.call("POST", path)
        except RequestFailure:
            continue
        if path != "/finish_weight_update":
            return


async def begin_update(client: EngineClient) -> None:
    """Pauses running requests between two tokens and prepares the model for new weights."""
    await client.pause()
    await client.call("POST", "/start_weight_update")


async def receive(client: EngineClient, description: Mapping[str, Any]) -> None:
    """Receives the tensors of the description from rank 0. Returns when all are loaded."""
    await client.call("POST", "/update_weights", {"update_info": dict(description)})


async def finish_update(client: EngineClient, version: WeightVersion) -> None:
    """Makes the new weights, under this name, generate from here on.

    Drops cached prefixes and resumes paused requests.
    """
    await client.call("POST", "/finish_weight_update", {"weight_version": str(version)})
    await client.forget_prefixes()
    client.version = version
    await client.resume()


async def sleep(client: EngineClient) -> None:
    """Makes the engine release its GPU memory: weights and key-value cache are dropped. No request may be running."""
    await client.call("POST", f"/sleep?level={DISCARD_WEIGHTS}")


async def wake_up(client: EngineClient, tags: Sequence[str] = ()) -> None:
    """Makes the engine allocate memory again for `weights` (which must then be loaded), `kv_cache`, or both."""
    await client.call("POST", "/wake_up" + ("?" if tags else "") + "&".join(f"tags={tag}" for tag in tags))


async def wake_sleeper(client: EngineClient, part: str) -> None:
    """Makes a sleeping engine allocate memory for this part. An engine that is awake stays as it is."""
    if await is_sleeping(client):
        await wake_up(client, (part,))


async def is_sleeping(client: EngineClient) -> bool:
    """Returns whether the engine sleeps, in whole or in part."""
    return (await client.call("GET", "/is_sleeping")).get("is_sleeping") is True
