"""The engine's thread, over a decoder that counts: deltas, versions, pause, abort, and what a broken step leads to."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest

from megatron_lwz.models.decoding import NotFiniteError, Sampled
from megatron_lwz.models.decoding_cache import CachedSequence
from megatron_lwz.rollout.engine.core import AsleepError, EngineThread
from megatron_lwz.rollout.engine.generation import Delta, EndRules, Generation
from megatron_lwz.rollout.limits import EngineLoad
from megatron_lwz.types import FinishReason
from tests.support.waiting import PATIENCE


class Counting:
    """Writes 0, 1, 2, … for every sequence; a prompt of 99 breaks the step, one of 98 has no finite logits."""

    def __init__(self) -> None:
        self.counts: dict[CachedSequence, int] = {}
        self.memory: list[str] = []

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def writing(self) -> int:
        return len(self.counts)

    @property
    def cache_use(self) -> float:
        return len(self.counts) / 10

    def add(self, sequence: CachedSequence) -> None:
        self.counts[sequence] = -1

    def remove(self, sequence: CachedSequence) -> None:
        self.counts.pop(sequence, None)

    def forget_prefixes(self) -> None:
        pass

    def step(self) -> list[Sampled]:
        if any(sequence.prompt == (99,) for sequence in self.counts):
            raise ArithmeticError("broken")
        if any(sequence.prompt == (98,) for sequence in self.counts):
            raise NotFiniteError("not finite")
        for sequence in self.counts:
            self.counts[sequence] += 1
        return [Sampled(sequence, count, -1.0) for sequence, count in self.counts.items()]

    def reload(self, path: str) -> None:
        if path != "good":
            raise ValueError(path)

    def checksum(self) -> str:
        return "sum"

    def release(self) -> None:
        assert not self.counts
        self.memory.append("cache out")

    def leave(self, *, keep: bool) -> None:
        self.memory.append("weights kept" if keep else "weights dropped")

    def come_back(self) -> None:
        self.memory.append("weights back")


@pytest.fixture
def engine() -> Iterator[EngineThread]:
    counting = Counting()
    thread = EngineThread(counting, counting)  # type: ignore[arg-type]
    thread.start()
    yield thread
    thread.stop()


def submit(engine: EngineThread, *, prompt: int = 1, max_tokens: int = 10**9) -> queue.Queue[Delta]:
    deltas: queue.Queue[Delta] = queue.Queue()
    rules = EndRules(max_tokens, {})
    generation = Generation(
        f"r{prompt}", CachedSequence((prompt,)), rules, decode=lambda ids: "x" * len(ids), deliver=deltas.put
    )
    engine.submit(generation).result(PATIENCE)
    return deltas


def drain(deltas: queue.Queue[Delta]) -> list[Delta]:
    found = [deltas.get(timeout=PATIENCE)]
    while found[-1].reason is None:
        assert len(found) < 10_000, "it does not end"
        found.append(deltas.get(timeout=PATIENCE))
    return found


def test_deltas_join_to_the_whole_in_order(engine: EngineThread) -> None:
    deltas = drain(submit(engine, max_tokens=100))
    assert [token for delta in deltas for token in delta.tokens] == list(range(100))
    assert "".join(delta.text for delta in deltas) == "x" * 100
    assert deltas[-1].reason is FinishReason.LENGTH
    assert len(deltas) <= 8, "one for the first token, then 16 at a time"


def test_a_delta_holds_tokens_of_one_version(engine: EngineThread) -> None:
    deltas = submit(engine)
    deltas.get(timeout=PATIENCE)
    engine.set_version("new").result(PATIENCE)
    engine.abort(["r1"]).result(PATIENCE)
    rest = drain(deltas)
    versions = [delta.version for delta in rest if delta.tokens]
    assert versions == sorted(versions)  # "0.0." comes before "new"
    assert rest[-1].version == "new" and rest[-1].reason is FinishReason.ABORT


def test_a_pause_delivers_what_was_written_and_then_nothing(engine: EngineThread) -> None:
    deltas = submit(engine)
    engine.pause(abort=False).result(PATIENCE)
    for _ in range(deltas.qsize()):
        deltas.get()
    load = engine.load().result(PATIENCE)
    assert (load.running, load.waiting) == (1, 0) and 0 < load.kv_use < 1
    with pytest.raises(queue.Empty):
        deltas.get(timeout=0.2)
    engine.resume().result(PATIENCE)
    assert deltas.get(timeout=PATIENCE).tokens
    engine.pause(abort=True).result(PATIENCE)
    assert drain(deltas)[-1].reason is FinishReason.ABORT
    assert engine.load().result(PATIENCE) == EngineLoad(0.0)


def test_a_failed_command_belongs_to_its_caller(engine: EngineThread) -> None:
    with pytest.raises(ValueError, match="bad"):
        engine.reload("bad").result(PATIENCE)
    engine.reload("good").result(PATIENCE)
    assert engine.checksum().result(PATIENCE) == "sum" and engine.failure is None
    assert drain(submit(engine, max_tokens=3))[-1].reason is FinishReason.LENGTH


def test_a_sleeping_engine_writes_nothing_until_all_its_memory_is_back(engine: EngineThread) -> None:
    memory = engine._decoder.memory  # type: ignore[attr-defined]
    running = submit(engine)
    engine.sleep(keep_weights=False).result(PATIENCE)
    assert drain(running)[-1].reason is FinishReason.ABORT and memory == ["cache out", "weights dropped"]
    for action in (engine.checksum, lambda: engine.reload("good")):
        with pytest.raises(AsleepError, match="wake_up"):
            action().result(PATIENCE)
    deltas = submit(engine, prompt=2, max_tokens=3)
    engine.wake_up(["weights"]).result(PATIENCE)
    engine.reload("good").result(PATIENCE)
    engine.resume().result(PATIENCE)  # as after any push
    assert engine.asleep == {"kv_cache"} and memory[2:] == ["weights back"]
    with pytest.raises(queue.Empty):
        deltas.get(timeout=0.2)
    engine.wake_up(["kv_cache"]).result(PATIENCE)
    assert not engine.asleep and drain(deltas)[-1].reason is FinishReason.LENGTH
    engine.wake_up([]).result(PATIENCE)
    assert memory[3:] == []


def test_sleep_ends_a_pause_and_may_keep_the_weights(engine: EngineThread) -> None:
    engine.pause(abort=False).result(PATIENCE)
    engine.sleep(keep_weights=True).result(PATIENCE)
    engine.sleep(keep_weights=True).result(PATIENCE)
    engine.wake_up([]).result(PATIENCE)
    assert engine._decoder.memory == ["cache out", "weights kept", "cache out", "weights back"]  # type: ignore[attr-defined]
    assert not engine.paused and drain(submit(engine, max_tokens=3))[-1].reason is FinishReason.LENGTH


def test_a_broken_step_ends_the_requests_and_is_told_to_new_ones(engine: EngineThread) -> None:
    assert drain(submit(engine, prompt=99))[-1].reason is FinishReason.ABORT
    assert engine.failure == "ArithmeticError: broken"
    with pytest.raises(RuntimeError, match="broken"):
        submit(engine)
    assert engine.checksum().result(PATIENCE) == "sum"


def test_other_weights_end_a_failure_that_the_weights_caused_and_no_other(engine: EngineThread) -> None:
    engine.pause(abort=False).result(PATIENCE)
    waiting = [submit(engine, prompt=prompt) for prompt in (1, 98)]
    engine.resume().result(PATIENCE)
    assert [drain(deltas)[-1].reason for deltas in waiting] == [FinishReason.ABORT] * 2
    with pytest.raises(RuntimeError, match="not finite"):
        submit(engine)
    with pytest.raises(ValueError, match="bad"):
        engine.reload("bad").result(PATIENCE)
    assert engine.failure == "not finite" and engine.load().result(PATIENCE) == EngineLoad(0.0)
    engine.reload("good").result(PATIENCE)
    assert drain(submit(engine, max_tokens=3))[-1].reason is FinishReason.LENGTH
    drain(submit(engine, prompt=99))
    engine.reload("good").result(PATIENCE)
    assert engine.failure == "ArithmeticError: broken"
