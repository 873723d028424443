"""Controller and journal against the real embedded engine: whichever of them is killed, nothing is lost and nothing changes."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_lwz.config import Config, validate
from megatron_lwz.orchestrator.engines import EmbeddedEngine
from megatron_lwz.types import Group, WeightVersion
from tests.end_to_end.embedded_trainer import SECTION, started
from tests.support import warm
from tests.support.engine_model import write_engine_model
from tests.support.journal_checks import assert_every_token_once, durable_tokens, trained, writers
from tests.support.rollouts import wait_for_tokens
from tests.support.stages import ROOT, forked, variables
from tests.support.waiting import wait_for

VERSION = WeightVersion(3, 0, "abc")
TRAINER = [sys.executable, "-m", "tests.end_to_end.embedded_trainer"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    write_engine_model(folder, max_length=1024)
    return folder


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[EmbeddedEngine]:
    """As the main job starts it, without a first version of the weights."""
    config: Config = validate(
        {"rollout": SECTION.model_dump(), "training": {"precision": "fp32"}, "model": {"hf": str(model)}}
    )
    config = config.model_copy(update={"data": config.data.model_copy(update={"max_prompt_tokens": 100})})
    made = EmbeddedEngine(config, model, threads=1, log_path=model.parent / "engine.log")
    with forked():
        made.server.start()
        try:
            made.server.wait_ready()
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="module")
def undisturbed(engine: EmbeddedEngine, model: Path) -> list[Group]:
    journal = model.parent / "undisturbed.sqlite"
    pool = engine.pool()
    pool.push_weights(model, VERSION)
    controller = started(pool, model, journal)
    groups = controller.collect(1)
    controller.mark_consumed(groups, 1)
    controller.close()
    return groups


def assert_unchanged(journal: Path, undisturbed: list[Group]) -> None:
    """A prefix that was read again may move the last bits of later log-probs, and nothing else."""
    expected = [(group, rollout) for group in undisturbed for rollout in group.rollouts]
    found = trained(journal)
    assert [row[:5] for row in found] == [(g.id, g.prompt, 1, r.tokens, r.text) for g, r in expected]
    for row, (_, rollout) in zip(found, expected, strict=True):
        assert row[5] == pytest.approx(rollout.logprobs, abs=1e-4)
    assert_every_token_once(journal)
    assert writers(journal) == {str(VERSION)}


def test_a_trainer_killed_twice_goes_on_with_its_rollouts(
    engine: EmbeddedEngine, undisturbed: list[Group], model: Path, tmp_path: Path
) -> None:
    total = sum(len(rollout.tokens) for group in undisturbed for rollout in group.rollouts)
    journal, draw = tmp_path / "journal.sqlite", random.Random(5)
    arguments = [str(model), str(journal), engine.server.url, str(engine.server.token)]
    for share in (0.1, 0.5):
        trainer = warm.Popen([*TRAINER, *arguments], cwd=ROOT, env=variables())
        moment = (share + draw.uniform(0, 0.2)) * total
        wait_for(lambda m=moment: durable_tokens(journal) >= m, seconds=240, process=trainer, pause=0.02)
        trainer.kill()
        trainer.wait()
        assert durable_tokens(journal) < total
    assert warm.run([*TRAINER, *arguments], cwd=ROOT, env=variables()).returncode == 0
    assert_unchanged(journal, undisturbed)


def test_a_killed_engine_is_started_again_with_the_weights_and_changes_no_token(
    engine: EmbeddedEngine, undisturbed: list[Group], model: Path, tmp_path: Path
) -> None:
    total = sum(len(rollout.tokens) for group in undisturbed for rollout in group.rollouts)
    pool = engine.pool()
    pool.push_weights(model, VERSION)
    controller = started(pool, model, tmp_path / "journal.sqlite")
    controller.begin(1)
    wait_for_tokens(controller, total // 4)
    killed = engine.server.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    controller.mark_consumed(controller.collect(1), 1)
    metrics = controller.metrics()
    controller.close()
    assert metrics["rollout/total_engine_restarts"] == metrics["rollout/total_engines_lost"] == 1
    assert metrics["rollout/engines_up"] == 1 and metrics["rollout/total_retried"] > 0
    assert engine.server.pid != killed and 0 <= metrics["rollout/kv_use"] <= 1
    assert_unchanged(tmp_path / "journal.sqlite", undisturbed)
