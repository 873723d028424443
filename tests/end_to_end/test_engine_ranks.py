"""An engine over two tensor-parallel ranks under torchrun: the same HTTP, the same tokens as one rank, one end for both."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch

from megatron_lwz.distributed import environment, launch
from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.models.decoding_cache import CachedSequence
from megatron_lwz.models.hf import checksum_folder
from megatron_lwz.rollout.engine.policy import ServedPolicy
from tests.support.engine_model import HEAD, NORM, write_changed, write_engine_model
from tests.support.served_engine import TOKEN, Served
from tests.support.waiting import wait_for

PROMPTS = [tuple(range(3, 3 + size)) for size in (5, 140, 33)]
NEW = 60


class Ranks(Served):
    """`Served` by torchrun, with its process."""

    def __init__(self, folder: Path, server: ServerProcess) -> None:
        super().__init__(folder, server.url)
        assert server.pid is not None
        self.root = psutil.Process(server.pid)

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        found = [p for p in self.root.children() if p.environ().get("RANK") == str(number)]
        assert len(found) == 1
        return found[0]


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    for name, seed in (("a", 0), ("b", 1)):
        write_engine_model(tmp_path / name, seed=seed, max_length=4096)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command += [
        "-m",
        "megatron_lwz.cli.serve_engine",
        "--model",
        str(tmp_path / "a"),
        "--port",
        str(port),
        "--slots",
        "4",
    ]
    command += ["--threads", "1", "--weights-dir", str(tmp_path)]
    settings = environment.child_environment(OMP_NUM_THREADS="1", LWZ_ENGINE_TOKEN=TOKEN)
    log = tmp_path / "log"
    server = ServerProcess(command, url=f"http://127.0.0.1:{port}", token=TOKEN, env=settings, log_path=log)
    server.start()
    try:
        server.wait_ready()
        yield Ranks(tmp_path, server)
    finally:
        server.stop()


def of_one_rank(folder: Path) -> tuple[list[list[int]], list[list[float]]]:
    """Tokens and log-probs that one rank writes to PROMPTS, in this process."""
    try:
        decoder = ServedPolicy(folder).decoder(4)
        sequences = [CachedSequence(prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]
        written: dict[CachedSequence, list[Any]] = {sequence: [] for sequence in sequences}
        for sequence in sequences:
            decoder.add(sequence)
        while min(map(len, written.values())) < NEW:
            for sampled in decoder.step():
                written[sampled.sequence].append(sampled)
    finally:
        launch.shutdown()
    return tuple([[getattr(one, part) for one in written[s][:NEW]] for s in sequences] for part in ("token", "logprob"))


def asked(served: Served) -> tuple[list[list[int]], list[list[float]]]:
    """The same over HTTP."""
    settings = {"max_tokens": NEW, "logprobs": 0, "return_token_ids": True, "ignore_eos": True}
    found = [served.complete(list(p), seed=n, **settings).choices[0] for n, p in enumerate(PROMPTS)]
    return [one.token_ids for one in found], [one.logprobs.token_logprobs for one in found]


def test_two_ranks_write_what_one_writes_load_weights_together_and_end_together(ranks: Ranks) -> None:
    write_changed(ranks.folder / "a", ranks.folder / "huge", (NORM, 1e30), (HEAD, 1e30))
    for name in ("a", "b"):
        if name == "b":
            assert ranks.reload("huge")[0] == 200
            with pytest.raises(openai.APIError, match="logits are NaN or infinite"):
                asked(ranks)
            assert ranks.reload("b")[0] == 200
            assert checksum_folder(ranks.folder / "b") in str(
                ranks.call("POST", "/weight_checker", {"action": "checksum"})
            )
        tokens, logprobs = asked(ranks)
        exact_tokens, exact_logprobs = of_one_rank(ranks.folder / name)
        assert tokens == exact_tokens
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(exact_logprobs), rtol=0, atol=2e-5)
    assert ranks.reload("absent")[0] == 400
    assert asked(ranks)[0] == tokens, "a refused folder leaves both ranks as they were"
    both = [ranks.rank(number) for number in (0, 1)]
    ranks.root.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(both, timeout=20)
    assert not alive


@pytest.mark.long
def test_without_one_rank_the_engine_ends(ranks: Ranks) -> None:
    first = ranks.rank(0)
    os.kill(ranks.rank(1).pid, signal.SIGKILL)
    wait_for(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(openai.APIConnectionError):
        asked(ranks)
