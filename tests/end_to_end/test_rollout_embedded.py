"""Controller and journal against the real embedded engine: an engine killed in the middle loses and changes nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import environment
from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.rollout.admission import Admission, Intake
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.journal import Journal, JournalReader
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import Prompt
from tests.engine_model import write_engine_model
from tests.unit.rollout.conftest import LengthOfText

TOKEN = "secret"
PROMPTS = [Prompt(f"p{i}", f"write {i}") for i in range(4)]


def controller(folder: Path, url: str, journal: Path) -> RolloutController:
    section = RolloutSection(max_new_tokens=400, temperature=1.0, retries=30, commit_interval=0.1, stop=("</answer>",))
    made = RolloutController(
        EnginePool([EngineClient(url, TOKEN)], concurrency=section.concurrency),
        Journal(journal),
        [LengthOfText()],
        intake=Intake(lambda place: PROMPTS[place], 4, 3, Admission(len(PROMPTS), 0)),
        tokenizer=Tokenizer(folder),
        render=lambda prompt: prompt.text,
        section=section,
    )
    made.recover(0)
    made.start()
    return made


def test_a_killed_engine_changes_no_token(tmp_path):
    folder, port = tmp_path / "model", free_port()
    write_engine_model(folder, max_length=1024)
    command = [sys.executable, "-m", "megatron_lwz.cli.serve_engine"]
    command += ["--model", str(folder), "--port", str(port), "--threads", "1"]
    url = f"http://127.0.0.1:{port}"
    env = environment.child_environment(LWZ_ENGINE_TOKEN=TOKEN)
    engine = ServerProcess(command, url=url, token=TOKEN, env=env, log_path=tmp_path / "engine.log")
    engine.start()
    try:
        engine.wait_ready()
        undisturbed = controller(folder, url, tmp_path / "undisturbed")
        expected = undisturbed.collect(1)
        total = undisturbed.metrics()["rollout/total_tokens"]
        undisturbed.close()

        disturbed = controller(folder, url, tmp_path / "disturbed")
        disturbed.begin(1)
        while disturbed.metrics()["rollout/total_tokens"] < total / 4:
            time.sleep(0.005)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        while engine.alive():
            time.sleep(0.01)
        assert disturbed.metrics()["rollout/total_tokens"] < total
        engine.start()
        engine.wait_ready()
        groups = disturbed.collect(1)
        assert disturbed.metrics()["rollout/total_retried"] > 0
        disturbed.close()
    finally:
        engine.stop()
    with JournalReader(tmp_path / "disturbed") as reader:
        assert list(reader.groups()) == groups
    for group, same in zip(groups, expected, strict=True):
        for rollout, undamaged in zip(group.rollouts, same.rollouts, strict=True):
            assert rollout.tokens == undamaged.tokens and rollout.text == undamaged.text
            assert rollout.logprobs == pytest.approx(undamaged.logprobs, abs=1e-4)
