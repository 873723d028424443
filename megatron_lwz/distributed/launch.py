"""Start and end of a rank: process group, model-parallel groups, seeds."""

from __future__ import annotations

import datetime
import gc
import logging
import random
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import count

import numpy
import torch
import torch.distributed as dist

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment, heartbeat, platform
from megatron_lwz.errors import LwzError
from megatron_lwz.kernels import dispatch

QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
_BLACKWELL = (10, 0)
_SEED_STEP_PER_STAGE = 100
_log = logging.getLogger(__name__)
_ends = ExitStack()
_earlier_layouts = count()
"""Counts the layouts of this process."""


def initialize(config: Config) -> None:
    """Joins the ranks of this run and divides them into groups by `config.parallel`.

    Works under torchrun, and without it (one rank, on a free port). Every rank must call it with the same config.
    Raises ConfigError when the layout does not fit the model or the number of ranks, before any group exists.
    """
    config.check_layout(environment.world_size())
    platform.install()
    _order_launches(config)
    dispatch.set_backend(config.kernels)
    timeout = datetime.timedelta(minutes=config.parallel.timeout_minutes)
    _join(timeout)
    heartbeat.start(min(config.parallel.stall_minutes, config.parallel.timeout_minutes / 2))
    _split(config)
    _seed(config.run.seed)


def at_shutdown(end: Callable[[], None]) -> None:
    """Registers what `shutdown` calls last, once: the release of something that this process holds to its end."""
    _ends.callback(end)


def end_run() -> None:
    """Calls what `at_shutdown` registered: another run may begin in this process."""
    _ends.close()


def shutdown() -> None:
    """Destroys the process groups. Safe to call twice, or before `initialize`."""
    from megatron.core import parallel_state

    heartbeat.stop()
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
    end_run()


def _order_launches(config: Config) -> None:
    """Gives the GPU one hardware queue where Megatron-Core relies on it, unless the user set QUEUES.

    With tensor or context parallelism its layers launch a collective before the matrix product that is to hide it. Before
    Blackwell only a single queue keeps that order. The driver must find the setting when it creates this process's CUDA
    context, which `_join` does first.
    """
    split = config.parallel.tensor > 1 or config.parallel.context > 1
    if not split or not platform.has_gpu() or torch.cuda.get_device_capability(environment.local_rank()) >= _BLACKWELL:
        return
    if environment.set_default(QUEUES, "1") and environment.rank() == 0:
        _log.info("%s=1 is set, so that collectives start before the matrix products that hide them", QUEUES)


def _join(timeout: datetime.timedelta) -> None:
    """Creates one process group over all ranks. With a GPU it moves CPU tensors by gloo and CUDA tensors by NCCL."""
    if dist.is_initialized():
        return
    if platform.has_gpu():
        torch.cuda.set_device(environment.local_rank())
    backend = "cpu:gloo,cuda:nccl" if platform.has_gpu() else "gloo"
    if not environment.under_torchrun():
        store: dist.Store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True)
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    elif (restart := environment.restart_on_old_store()) is None:
        dist.init_process_group(backend, timeout=timeout)
    else:
        store = dist.PrefixStore(f"restart/{restart}", _agent_store(timeout))
        rank, ranks = environment.rank(), environment.world_size()
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)


def _agent_store(timeout: datetime.timedelta) -> dist.Store:
    """The store of torchrun, which holds the addresses of the ranks that ended. Raises LwzError on several machines.

    There the machines may count their restarts differently, so that no count tells old keys from new ones.
    """
    if environment.machines() > 1:
        advice = "start torchrun with the variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, so that every restart has its own store"
        raise LwzError(f"torchrun restarts the ranks of several machines on the store of the first start: {advice}")
    host, port = environment.get("MASTER_ADDR", ""), int(environment.get("MASTER_PORT", "0") or 0)
    return dist.TCPStore(host or "", port, environment.world_size(), is_master=False, timeout=timeout)


def _split(config: Config) -> None:
    from megatron.core import parallel_state

    _leave_layout()
    layout = config.parallel
    parallel_state.initialize_model_parallel(
        layout.tensor,
        layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline,
        context_parallel_size=layout.context,
        distributed_timeout_minutes=max(1, round(layout.timeout_minutes)),
        create_gloo_process_groups=False,  # more groups of the same ranks, each with threads, for savers that are not used
    )


def _leave_layout() -> None:
    """Ends the groups of an earlier layout. Megatron only forgets them, and each gloo group has threads that poll.

    Models of that layout hold groups, too. They refer to themselves, so Python keeps them until it happens to collect.
    """
    from megatron.core import parallel_state

    if next(_earlier_layouts):
        gc.collect()
    if not parallel_state.model_parallel_is_initialized():
        return
    dist.barrier()  # no rank may close a connection that another one still reads
    joined = [group for group in parallel_state._global_process_group_list or () if group is not None]
    parallel_state.destroy_model_parallel()
    for group in joined:
        with suppress(ValueError):  # Megatron has destroyed a few of them itself
            dist.destroy_process_group(group)


def _seed(seed: int) -> None:
    """Seeds the random generators, differently per pipeline stage.

    Tensor ranks differ only where Megatron's tracker makes them differ.
    """
    from megatron.core import parallel_state, tensor_parallel

    seed += _SEED_STEP_PER_STAGE * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
