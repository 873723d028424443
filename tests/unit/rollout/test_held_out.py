"""Held-out rollouts: written once per weights, gone on with after a kill, never training data."""

from __future__ import annotations

import asyncio

import pytest

from megatron_lwz.errors import DataError, EngineError
from megatron_lwz.rollout.held_out import HeldOut
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import WeightVersion
from tests.support.rollouts import held_out, pool, prompts
from tests.support.synthetic_engine import Engine

VERSION = WeightVersion(3, 0, "aa")


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def evaluate(writer: HeldOut, url: str, count: int = 2, version: WeightVersion = VERSION):
    groups, _ = writer.take_up(prompts(count), 2, version)
    return asyncio.run(writer.write(groups, pool(url)))


def tokens(groups) -> list:
    return [[rollout.tokens for rollout in group.rollouts] for group in groups]


def test_evaluations_repeat_their_seeds_and_are_not_training_data(journal, start_engine):
    engine = Engine()
    url, writer = start_engine(engine), held_out(journal)
    engine.version = str(VERSION)
    first = evaluate(writer, url)
    later = WeightVersion(4, 0, "bb")
    engine.version = str(later)
    second = evaluate(writer, url, version=later)
    assert tokens(first) == tokens(second), "the same seeds"
    assert [group.admitted for group in first] == [3, 3] and [group.id for group in second] == [-3, -4]
    assert all("letters" in scores for group in first for scores in group.scores)
    assert journal.open_groups() == [] and writer.progress().finished == 4


def test_finished_evaluations_are_not_written_again(journal, start_engine):
    engine = Engine(version=str(VERSION))
    url = start_engine(engine)
    before = evaluate(held_out(journal), url)
    requests = len(engine.requests)
    groups, named = held_out(journal).take_up(prompts(2), 2, WeightVersion(3, 5, "aa"))
    assert named == VERSION, "the weights keep the name that they had: one evaluation, one version"
    assert asyncio.run(held_out(journal).write(groups, pool(url))) == before
    assert len(engine.requests) == requests


def test_what_was_written_is_gone_on_with(journal, start_engine):
    engine = Engine(length=lambda seed: 60, version=str(VERSION), broken=lambda number: 20 if number < 8 else None)
    url = start_engine(engine)
    with pytest.raises(EngineError):
        evaluate(held_out(journal), "http://127.0.0.1:9")
    writer = held_out(journal)
    groups = evaluate(writer, url)
    assert all(len(rollout.tokens) == 61 for group in groups for rollout in group.rollouts)
    prefixes = [len(request["prompt"]) - engine.prompt_length(request["prompt"]) for request in engine.requests]
    assert sum(prefix > 0 for prefix in prefixes) >= 4, "a stream that breaks goes on from what was received"
    assert {segment.version for g in groups for r in g.rollouts for segment in r.versions} == {VERSION}


def test_other_weights_begin_anew_and_the_reader_sees_each_prompt_once(journal, start_engine, tmp_path):
    engine = Engine(version=str(VERSION))
    url = start_engine(engine)
    evaluate(held_out(journal), url, 3)
    redone = WeightVersion(3, 1, "cc")
    engine.version = str(redone)
    groups = evaluate(held_out(journal), url, 2, redone)
    assert {segment.version for g in groups for r in g.rollouts for segment in r.versions} == {redone}
    journal.commit()
    with JournalReader(tmp_path / "journal.sqlite") as reader:
        assert [group.prompt.id for group in reader.groups("evaluation")] == ["p1", "p0"]


def test_other_prompts_and_other_samples_begin_anew(journal, start_engine, caplog):
    engine = Engine(version=str(VERSION))
    url, writer = start_engine(engine), held_out(journal)
    evaluate(writer, url, 3)
    groups, _ = writer.take_up(prompts(2), 2, VERSION)
    assert [group.id for group in groups] == [-1, -2]
    groups, _ = writer.take_up(prompts(2), 4, VERSION)
    assert [group.id for group in groups] == [-4, -5] and all(len(group.drafts) == 4 for group in groups)
    said = "evaluation after 3 updates: {}"
    assert caplog.messages == [
        said.format("1 groups begin anew: prompts changed"),
        said.format("2 groups begin anew: group size changed"),
    ]


def test_a_disk_that_refuses_ends_the_evaluation(journal, start_engine):
    url, writer = start_engine(Engine(pause=0.05)), held_out(journal)
    groups, _ = writer.take_up(prompts(1), 2, VERSION)

    def refuse() -> None:
        raise DataError(journal.path, "disk full")

    journal.commit = refuse
    with pytest.raises(DataError, match="disk full"):
        asyncio.run(writer.write(groups, pool(url)))
    del journal.commit
