"""vLLM's control routes for weights that come over a network of GPUs, and for engines that sleep; one engine at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.types import WeightVersion

DISCARD_WEIGHTS = 2
"""Sleep level: keys, values and weights are dropped; 1 would keep a copy of the weights in host memory."""

SERVER_OPTION = """--weight-transfer-config '{"backend": "nccl"}'"""


async def world_size(client: EngineClient) -> int:
    """GPUs of the engine: tensor × pipeline × data parallel. Raises RequestFailure."""
    size = (await client.call("GET", "/get_world_size")).get("world_size")
    if not isinstance(size, int) or size < 1:
        raise RequestFailure(client.url, f"/get_world_size gave {size!r}, not a number of GPUs", Failure.CONTRACT)
    return size


async def join(client: EngineClient, info: Mapping[str, Any]) -> None:
    """Has all its GPUs meet rank 0; returns when they have. `info`: unique id, ranks and wire format."""
    try:
        await client.call("POST", "/init_weight_transfer_engine", {"init_info": dict(info)})
    except RequestFailure as error:
        advice = f"does not join the trainer ({error.advice}): start vLLM, 0.32 or newer, with {SERVER_OPTION} and VLLM_SERVER_DEV_MODE=1"
        raise RequestFailure(client.url, advice, error.kind) from error


async def leave(client: EngineClient) -> None:
    """Ends what `join` began, and an update that nobody will finish. An engine that is gone, or never joined, has neither."""
    for path in ("/shutdown_weight_transfer_engine", "/finish_weight_update", "/shutdown_weight_transfer_engine"):
        try:
            await client.call("POST", path)
        except RequestFailure:
            continue
        if path != "/finish_weight_update":
            return


async def begin_update(client: EngineClient) -> None:
    """Holds running requests between two tokens and makes the model ready for new weights."""
    await client.pause()
    await client.call("POST", "/start_weight_update")


async def receive(client: EngineClient, description: Mapping[str, Any]) -> None:
    """Returns when every tensor of the description has come from rank 0 and is loaded."""
    await client.call("POST", "/update_weights", {"update_info": dict(description)})


async def finish_update(client: EngineClient, version: WeightVersion) -> None:
    """The new weights, under this name, write from here on; cached prefixes are dropped, held requests go on."""
    await client.call("POST", "/finish_weight_update", {"weight_version": str(version)})
    await client.forget_prefixes()
    client.version = version
    await client.resume()


async def sleep(client: EngineClient) -> None:
    """The engine leaves the GPU: weights are dropped, and keys and values. No request may be running."""
    await client.call("POST", f"/sleep?level={DISCARD_WEIGHTS}")


async def wake_up(client: EngineClient, tags: Sequence[str] = ()) -> None:
    """Takes memory again: `weights` (to be loaded anew), `kv_cache`, or both."""
    await client.call("POST", "/wake_up" + ("?" if tags else "") + "&".join(f"tags={tag}" for tag in tags))


async def wake_sleeper(client: EngineClient, part: str) -> None:
    """Has an engine that sleeps take memory for this part; one that is awake stays as it is."""
    if await is_sleeping(client):
        await wake_up(client, (part,))


async def is_sleeping(client: EngineClient) -> bool:
    """Whether the engine sleeps, in whole or in part."""
    return (await client.call("GET", "/is_sleeping")).get("is_sleeping") is True
