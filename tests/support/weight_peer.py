"""Engines that take weights as vLLM's workers do, over gloo in place of NCCL, in a process of their own.

`running(sizes)` starts one HTTP server per number of GPUs; `python -m tests.support.weight_peer` is that process. Written after
vLLM's own receiver (worker_init_process_group, packed_nccl_broadcast_consumer, gpu_worker.py), not after our sender.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from aiohttp import web
from safetensors.torch import save_file

from megatron_lwz.http.ports import bind
from megatron_lwz.http.server import make_app, read_object
from tests.support import warm
from tests.support.gloo_channel import join
from tests.support.stages import ROOT, variables

TOKEN = "secret"


@dataclass
class Worker:
    """One GPU of an engine."""

    rank: int
    info: dict[str, Any]
    group: Any = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    buckets: list[int] = field(default_factory=list)

    def join(self) -> None:
        unique_id = base64.b64decode(self.info["nccl_unique_id_b64"], validate=True)
        self.group = join(unique_id, self.rank, self.info["world_size"])

    def receive(self, names: list[str], dtypes: list[str], shapes: list[list[int]], most: int | None = None) -> None:
        """A bucket ends with the tensor that takes it over the limit; it is raw bytes, one tensor after the other."""
        bucket: list[tuple[str, torch.dtype, list[int], int]] = []
        limit = self.info["packed_buffer_size_bytes"]
        for index, (name, dtype_name, shape) in enumerate(zip(names, dtypes, shapes, strict=True)):
            dtype = getattr(torch, dtype_name)
            bucket.append((name, dtype, shape, prod(shape) * dtype.itemsize))
            total = sum(size for *_, size in bucket)
            if total > limit or index == len(names) - 1:
                packed = torch.empty(total, dtype=torch.uint8)
                options = dist.BroadcastOptions()
                options.rootRank, options.rootTensor = 0, 0
                self.group.broadcast([packed], options).wait()
                self.buckets.append(total)
                pieces = packed.split([size for *_, size in bucket])
                for piece, (found, kind, dims, _) in zip(pieces, bucket, strict=True):
                    self.tensors[found] = piece.view(kind).view(*dims).clone()
                bucket = []
                if most is not None and len(self.buckets) >= most:
                    os._exit(3)


class Peer:
    """One engine; `fault` makes it fail in one way. Calls out of order answer 409."""

    def __init__(self, size: int, out: Path, fault: str) -> None:
        self.size, self.out, self.fault = size, out, fault
        self.workers: list[Worker] = []
        self.calls: list[str] = []
        self.version: str | None = None
        self.paused = self.updating = False

    def app(self) -> web.Application:
        posts = {
            "/init_weight_transfer_engine": self.init,
            "/shutdown_weight_transfer_engine": self.shutdown,
            "/start_weight_update": self.start,
            "/update_weights": self.update,
            "/finish_weight_update": self.finish,
            "/update_weight_version": self.rename,
            "/reset_prefix_cache": self.ok,
            "/pause": self.pause,
            "/resume": self.resume,
        }
        gets = {"/health": self.ok, "/get_world_size": self.world, "/weight_info": self.info, "/state": self.state}
        gets["/server_info"] = self.server_info
        routes = [web.post(path, self.noted(act)) for path, act in posts.items()]
        return make_app(routes + [web.get(path, act) for path, act in gets.items()], token=TOKEN)

    def noted(self, act: Any) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.calls.append(request.path)
            if self.fault == f"refuse {request.path}":
                raise web.HTTPBadRequest(text="no such thing\nhere")
            if self.fault == f"hang {request.path}":
                await asyncio.sleep(60)
            return await act(request)

        return handle

    async def ok(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def world(self, _: web.Request) -> web.Response:
        return web.json_response({"world_size": self.size})

    async def info(self, _: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.version})

    async def state(self, _: web.Request) -> web.Response:
        seen = {
            "calls": self.calls,
            "paused": self.paused,
            "ranks": [worker.rank for worker in self.workers],
            "buckets": [worker.buckets for worker in self.workers],
            "files": [str(self._file(worker)) for worker in self.workers],
        }
        return web.json_response(seen)

    async def server_info(self, _: web.Request) -> web.Response:
        """As far as NCCL's version is concerned: the packages in the form of vLLM's collect_env."""
        word, _, version = self.fault.partition(" ")
        packages = ["numpy==2.4.6", *([f"nvidia-nccl-cu13=={version}"] if word == "nccl" else []), "torch==2.14.0"]
        return web.json_response({"vllm_env": {}, "system_env": {"pip_packages": "\n".join(packages)}})

    async def init(self, request: web.Request) -> web.Response:
        info = (await read_object(request))["init_info"]
        self.workers = [Worker(info["rank_offset"] + index, info) for index in range(self.size)]
        await asyncio.gather(*(asyncio.to_thread(worker.join) for worker in self.workers))
        return web.json_response({"message": "Weight transfer initialized"})

    async def shutdown(self, _: web.Request) -> web.Response:
        self._require(not self.updating)
        self.workers = []
        return web.json_response({})

    async def pause(self, request: web.Request) -> web.Response:
        self.paused = request.query["mode"] == "keep"
        return web.json_response({"status": "paused"})

    async def resume(self, _: web.Request) -> web.Response:
        self._require(not self.updating)
        self.paused = False
        return web.json_response({"status": "resumed"})

    async def start(self, _: web.Request) -> web.Response:
        self._require(self.paused and bool(self.workers))
        self.updating = True
        return web.json_response({})

    async def update(self, request: web.Request) -> web.Response:
        self._require(self.updating)
        told = (await read_object(request))["update_info"]
        names, dtypes, shapes = told["names"], told["dtype_names"], told["shapes"]
        if self.fault == "short":
            names, dtypes, shapes = names[:1], dtypes[:1], shapes[:1]
        most = int(self.fault.split()[1]) if self.fault.startswith("die ") else None
        receiving = (asyncio.to_thread(worker.receive, names, dtypes, shapes, most) for worker in self.workers)
        await asyncio.gather(*receiving)
        return web.json_response({"message": "Weights updated"})

    async def finish(self, request: web.Request) -> web.Response:
        self._require(self.updating)
        self.updating = False
        if request.can_read_body:
            self.version = (await read_object(request))["weight_version"]
        for worker in self.workers:
            save_file(worker.tensors, self._file(worker))
        return web.json_response({})

    async def rename(self, request: web.Request) -> web.Response:
        self.version = (await read_object(request))["new_version"]
        return web.json_response({})

    def _file(self, worker: Worker) -> Path:
        return self.out / f"{id(self)}-{worker.rank}.safetensors"

    def _require(self, holds: bool) -> None:
        if not holds:
            raise web.HTTPConflict(text=f"out of order: {self.calls}")


async def _serve(peers: Sequence[Peer]) -> None:
    urls = []
    for peer in peers:
        runner = web.AppRunner(peer.app())
        await runner.setup()
        listener = bind("127.0.0.1", 0)
        await web.SockSite(runner, listener).start()
        urls.append(f"http://127.0.0.1:{listener.getsockname()[1]}")
    print(json.dumps(urls), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the test ends


@contextmanager
def running(out: Path, *engines: tuple[int, str]) -> Iterator[list[str]]:
    """(GPUs, fault or "") of each engine → their URLs, while the block runs. What each GPU got: files in `out` that `/state` names."""
    command = [sys.executable, "-m", "tests.support.weight_peer", str(out), json.dumps(engines)]
    process = warm.Popen(
        command, cwd=ROOT, env=variables(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(_serve([Peer(size, Path(sys.argv[1]), fault) for size, fault in json.loads(sys.argv[2])]))
    os._exit(0)
