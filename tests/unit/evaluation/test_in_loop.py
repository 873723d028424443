"""Evaluations beside training: pinned to their weights, gone on with after an end in the middle, never in the way."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from megatron_lwz.errors import DataError, EngineError
from megatron_lwz.evaluation.in_loop import InLoopEvaluation
from megatron_lwz.evaluation.pinned import PinnedEvaluations
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import WeightVersion
from tests.support.rollouts import held_out, pool, prompts
from tests.support.synthetic_engine import Engine, background_loop
from tests.support.waiting import wait_for

LENGTH = 60


@pytest.fixture
def start_engine():
    with background_loop() as start:
        yield start


class Engines:
    """The synthetic engine as one of the evaluations' own; `keeps_weights` false: as training's."""

    def __init__(self, url: str, *, keeps_weights: bool = True) -> None:
        self.url, self.keeps_weights, self.closed = url, keeps_weights, False

    def serve(self, version, weights):
        found = pool(self.url)
        if self.keeps_weights:
            assert (weights / "model.safetensors").read_text() == version.checksum
            found.push_weights(weights, version)
        else:
            found.push_weights(Path("/weights"), version)
        return found

    def close(self) -> None:
        self.closed = True


class Run:
    """One start of a run in `folder`."""

    def __init__(self, folder: Path, url: str, *, keeps_weights: bool = True, most_begun: int = 2) -> None:
        self.folder = folder
        self.journal = Journal(folder / "journal.sqlite")

        async def measure(groups):
            return {"eval/letters": sum(s["letters"].value for g in groups for s in g.scores)}

        self.evaluation = InLoopEvaluation(
            folder,
            held_out(self.journal),
            Engines(url, keeps_weights=keeps_weights),
            measure,
            prompts=prompts(3),
            samples=2,
            most_begun=most_begun,
        )

    def weights(self, step: int, checksum: str = "") -> tuple[WeightVersion, Path]:
        """What the trainer exports; its own retention removes the folder soon."""
        folder = self.folder / "weights" / f"{step}.0"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_text(checksum or f"sum{step}")
        return WeightVersion(step, 0, checksum or f"sum{step}"), folder

    def begin(self, step: int) -> None:
        version, folder = self.weights(step)
        self.evaluation.begin(version, folder)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    def recorded(self) -> dict[int, dict[str, float]]:
        return dict(self.evaluation.finished())

    def close(self) -> None:
        self.evaluation.close()
        self.journal.close()


def versions(folder: Path, step: int) -> set[str]:
    with JournalReader(folder / "journal.sqlite") as reader:
        groups = [group for group in reader.groups("evaluation") if group.admitted == step]
    assert len(groups) == 3
    return {str(segment.version) for g in groups for r in g.rollouts for segment in r.versions}


def test_training_goes_on_while_one_version_writes(tmp_path, start_engine):
    engine = Engine(length=lambda seed: LENGTH, pause=0.02)
    run = Run(tmp_path, start_engine(engine))
    run.begin(0)
    run.begin(2)
    assert run.recorded() == {}, "begun, and training may go on"
    assert sorted(path.stem for path in (tmp_path / "evaluation").glob("*.json")) == ["step_00000000", "step_00000002"]
    run.evaluation.wait()
    found = run.recorded()
    assert [*found] == [0, 2] and found[0]["eval/letters"] == found[2]["eval/letters"] == 3 * 2 * LENGTH
    assert found[0]["eval/seconds"] > 0
    assert list((tmp_path / "evaluation").iterdir()) == [], "recorded: the weights are let go"
    assert run.recorded() == {}
    run.close()
    assert versions(tmp_path, 0) == {"0.0.sum0"} and versions(tmp_path, 2) == {"2.0.sum2"}
    assert len(engine.weights) == 2


def test_training_waits_rather_than_begin_too_many(tmp_path, start_engine):
    run = Run(tmp_path, start_engine(Engine(length=lambda seed: LENGTH, pause=0.02)), most_begun=1)
    run.begin(1)
    run.begin(2)
    assert [*run.recorded()] == [1], "the second one may be unfinished, the first may not"
    run.close()


def test_an_ended_run_goes_on_with_its_evaluations_and_counts_each_once(tmp_path, start_engine):
    engine = Engine(length=lambda seed: LENGTH, pause=0.02)
    url = start_engine(engine)
    run = Run(tmp_path, url)
    run.begin(2)
    run.begin(4)
    wait_for(
        lambda: (progress := run.evaluation._held_out.progress()) is not None and progress.tokens >= 30, pause=0.005
    )
    run.close()
    assert run.evaluation._engines.closed
    requests = len(engine.requests)
    again = Run(tmp_path, url)
    drafts = [draft for group in again.journal.open_groups("evaluation") for draft in group.drafts]
    received = [len(draft.tokens) for draft in drafts if draft.tokens and draft.reason is None]
    assert received
    again.evaluation.take_up(*again.weights(4, "another run's sum"))
    again.evaluation.wait()
    assert [*again.recorded()] == [2, 4]
    again.close()
    assert versions(tmp_path, 2) == {"2.0.sum2"} and versions(tmp_path, 4) == {"4.0.sum4"}
    with JournalReader(tmp_path / "journal.sqlite") as reader:
        written = [len(r.tokens) for g in reader.groups("evaluation") for r in g.rollouts]
    assert written == [LENGTH + 1] * 12
    prefixes = [len(r["prompt"]) - engine.prompt_length(r["prompt"]) for r in engine.requests[requests:]]
    assert sorted(prefix for prefix in prefixes if prefix) == sorted(received), "each goes on where it was"


def test_evaluations_of_steps_that_are_done_again_are_forgotten(tmp_path, start_engine, caplog):
    url = start_engine(Engine(length=lambda seed: LENGTH, pause=0.02))
    run = Run(tmp_path, url)
    run.begin(4)
    run.close()
    again = Run(tmp_path, url)
    again.evaluation.take_up(*again.weights(2))
    again.evaluation.wait()
    assert again.recorded() == {} and list((tmp_path / "evaluation").iterdir()) == [] and not caplog.records
    again.close()


def test_a_kill_before_the_row_was_written_gives_it_from_the_journal(tmp_path, start_engine):
    engine = Engine(length=lambda seed: LENGTH)
    url = start_engine(engine)
    run = Run(tmp_path, url)
    run.begin(2)
    run.evaluation.wait()
    first = next(run.evaluation.finished())  # killed here
    run.close()
    requests = len(engine.requests)
    again = Run(tmp_path, url)
    again.evaluation.take_up(*again.weights(2))
    again.evaluation.wait()
    ((step, metrics),) = again.recorded().items()
    assert (step, metrics["eval/letters"]) == (2, first[1]["eval/letters"]) and len(engine.requests) == requests
    again.close()


def test_engines_that_training_does_not_need_cost_the_evaluation_not_the_run(tmp_path, start_engine, caplog):
    run = Run(tmp_path, "http://127.0.0.1:9")
    run.begin(2)
    run.evaluation.wait()
    assert run.recorded() == {}
    assert [record.levelno for record in caplog.records if "after step 2" in record.message] == [logging.WARNING] * 2
    run.close()
    again = Run(tmp_path, start_engine(Engine(length=lambda seed: LENGTH)))
    again.evaluation.take_up(*again.weights(3))
    again.evaluation.wait()
    assert [*again.recorded()] == [2]
    again.close()


def test_without_weights_of_its_own_training_waits(tmp_path, start_engine):
    engine = Engine(length=lambda seed: LENGTH, pause=0.005)
    url = start_engine(engine)
    run = Run(tmp_path, url, keeps_weights=False)
    seen = []
    version, folder = run.weights(0)
    run.evaluation.begin(version, folder, waiting=seen.append)
    assert [*run.recorded()] == [0] and seen and seen[-1].rollouts == 6
    assert not any("step_" in path for path in engine.weights), "no weights were kept for it"
    run.close()
    broken = Run(tmp_path, "http://127.0.0.1:9", keeps_weights=False)
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9"):
        broken.begin(2)
    broken.close()
    third = Run(tmp_path, url, keeps_weights=False)
    third.evaluation.take_up(*third.weights(2))
    third.evaluation.settle()
    assert [*third.recorded()] == [2], "interrupted at the checkpoint: the same weights are there again"
    third.close()


def test_an_evaluation_whose_weights_are_gone_is_told(tmp_path, start_engine, caplog):
    PinnedEvaluations(tmp_path).begin(WeightVersion(1, 0, "sum1"), None)
    run = Run(tmp_path, start_engine(Engine()))
    run.evaluation.take_up(*run.weights(2))
    assert "the evaluation after step 1 cannot go on" in caplog.text
    run.close()
    assert PinnedEvaluations(tmp_path).begun() == []


def test_a_damaged_note_is_named(tmp_path):
    pinned = PinnedEvaluations(tmp_path)
    pinned.begin(WeightVersion(1), None)
    note = tmp_path / "evaluation" / "step_00000001.json"
    assert json.loads(note.read_text()) == {"version": "1.0."}
    for text in ("{", "[]", '{"version": 1}', '{"version": "one"}', '{"version": ' + "[" * 100_000):
        note.write_text(text)
        with pytest.raises(DataError, match=r"step_00000001\.json: not the note of an evaluation"):
            pinned.begun()
    note.write_text('\ufeff{"version": "1.0."}', encoding="utf-8")
    assert [found.step for found in pinned.begun()] == [1]
