"""A disk that lags behind holds the engines back, and costs nothing but time."""

from __future__ import annotations

import threading
import time

from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.journal_reader import JournalReader
from tests.support.rollouts import wait_for_tokens
from tests.support.synthetic_engine import Engine
from tests.support.waiting import PATIENCE, wait_for

BACKLOG, STREAMS, LENGTH = 600, 3, 20_000
ONE_READ = 8000
"""Tokens that one read of a stream can hold: at most 256 KiB, and the synthetic engine takes over 32 bytes per token."""


def test_streams_are_read_no_further_than_the_disk_allows(make_controller, start_engine, tmp_path, monkeypatch):
    disk, commit = threading.Event(), Journal.commit
    controller = make_controller(
        start_engine(Engine(length=lambda seed: LENGTH, delta=20)),
        group_size=STREAMS,
        journal_backlog=BACKLOG,
        max_new_tokens=2 * LENGTH,
    )
    monkeypatch.setattr(Journal, "commit", lambda self: disk.wait() and commit(self))
    controller.begin(1)
    try:
        wait_for_tokens(controller, BACKLOG)
        time.sleep(0.5)
        held = controller.metrics()["rollout/total_tokens"]
    finally:
        disk.set()
    assert BACKLOG <= held <= BACKLOG + STREAMS * ONE_READ, "each stream may have one read in hand"
    (group,) = controller.collect(1)
    assert [len(rollout.tokens) for rollout in group.rollouts] == [LENGTH + 1] * STREAMS
    metrics = controller.metrics()
    assert metrics["rollout/total_held_back"] > 0 and metrics["rollout/total_retried"] == 0
    controller.close()
    with JournalReader(tmp_path / "journal.sqlite") as reader:
        assert [rollout.tokens for rollout in next(reader.groups()).rollouts] == [r.tokens for r in group.rollouts]


def test_a_trainer_that_stalls_stops_admission_not_memory(make_controller, start_engine):
    controller = make_controller(start_engine(Engine()), group_size=2, max_staleness=2)
    controller.begin(1)
    wait_for(lambda: controller.metrics()["rollout/total_finished"] >= 6)
    time.sleep(0.3)  # nobody takes a step: the groups of three steps are all that is ever written
    assert controller.metrics()["rollout/total_finished"] == 6
    assert controller.metrics()["rollout/total_tokens"] == 6 * 41


def test_training_goes_on_while_the_disk_hangs_until_it_has_to_be_durable(make_controller, start_engine, monkeypatch):
    disk, commit = threading.Event(), Journal.commit
    controller = make_controller(start_engine(Engine()), group_size=2)
    groups = controller.collect(1)
    monkeypatch.setattr(Journal, "commit", lambda self: disk.wait() and commit(self))

    def go_on() -> None:
        controller.mark_consumed(groups, 1)
        controller.checkpoint(1)

    training = threading.Thread(target=go_on, daemon=True)
    training.start()
    training.join(PATIENCE)
    assert not training.is_alive(), "it waits for the disk"
    settled = threading.Thread(target=controller.settle, daemon=True)
    settled.start()
    settled.join(0.5)
    assert settled.is_alive(), "nothing is durable yet"
    disk.set()
    settled.join(PATIENCE)
    assert not settled.is_alive()
