from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.rollout.admission import Admission, Intake
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from tests.support.rollouts import LengthOfText, prompts
from tests.support.synthetic_engine import TOKEN, CharTokenizer, Engine, background_loop


@pytest.fixture
def start_engine() -> Iterator[Callable[[Engine], str]]:
    """Starts engines on real sockets; gives their URLs."""
    with background_loop() as start:
        yield start


@pytest.fixture
def make_controller(tmp_path: Path) -> Iterator[Callable[..., RolloutController]]:
    """A started, recovered controller over the journal of the test's folder; closed at the end."""
    made: list[RolloutController] = []

    def make(
        urls, *, step=0, rewards=None, group_size=3, name="journal.sqlite", timeout=30.0, batch=1, source=None, barren=None,
        admission=None, guards=None, tokenizer=None, curriculum=None, **settings,
    ):  # fmt: skip
        standard = {"max_new_tokens": 200, "commit_interval": 0.05, "concurrency": 16, "pool": {"probe_interval": 0.1}}
        section = RolloutSection(**standard | settings)
        urls = [urls] if isinstance(urls, str) else urls
        clients = [EngineClient(url, TOKEN, timeout=timeout) for url in urls]
        pool = EnginePool(clients, concurrency=section.concurrency, section=section.pool)
        controller = RolloutController(
            pool,
            Journal(tmp_path / name),
            [LengthOfText()] if rewards is None else rewards,
            intake=Intake(
                source or (lambda place: prompts(place + 1)[place]),
                group_size,
                7,
                Admission(batch, section.max_staleness, carried=section.over_sampling, **admission or {}),
                barren or (lambda group: False),
                curriculum,
            ),
            tokenizer=tokenizer or CharTokenizer(),
            render=lambda prompt: prompt.text + "|",
            section=section,
            guard=guards,
        )
        made.append(controller)
        controller.recover(step)
        controller.start()
        return controller

    yield make
    for controller in made:
        controller.close()
