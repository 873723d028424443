import json
import math
import time

import pytest

from megatron_lwz import metrics
from megatron_lwz.errors import DataError
from megatron_lwz.metrics import MetricsWriter, Timer, read_history, read_metrics, summarize


def test_one_flat_object_per_step_with_null_for_values_that_are_not_finite(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": 0.5, "kl": math.nan})
        writer.write(2, {"loss": 0.25, "kl": math.inf})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.5, "kl": None}, {"step": 2, "loss": 0.25, "kl": None}]
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["kl"])


def test_a_row_is_on_disk_when_write_returns_and_evaluations_lie_beside_the_steps(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write_evaluation(0, {"eval/reward": 0.25})
    writer.write(1, {"loss": 0.5})
    writer.write_evaluation(1, {"eval/reward": 0.75})
    writer.write_evaluation(2, {})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    assert read_history(tmp_path) == [{"step": 0, "eval/reward": 0.25}, {"step": 1, "loss": 0.5, "eval/reward": 0.75}]


def test_a_resumed_run_drops_the_rows_of_steps_it_does_again_and_a_torn_line(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "lo')
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(4, {"loss": 40.0})
    assert [row["loss"] for row in read_metrics(path)] == [1.0, 2.0, 3.0, 40.0]


def test_evaluations_may_come_late_and_only_those_of_redone_steps_go(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step in (1, 2, 3, 4):
            writer.write(step, {"loss": 1.0})
        for step in (0, 4, 2):
            writer.write_evaluation(step, {"eval/reward": float(step)})
    path = tmp_path / "evaluation.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "eval')
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write_evaluation(0, {"eval/reward": 10.0})  # left over from before, done now
        assert [row["step"] for row in read_metrics(path)] == [4, 2, 0]
        writer.write(3, {"loss": 2.0})
        assert [(row["step"], row["eval/reward"]) for row in read_metrics(path)] == [(2, 2.0), (0, 10.0)]
        writer.write_evaluation(3, {"eval/reward": 30.0})
    assert [row["step"] for row in read_history(tmp_path)] == [0, 1, 2, 3]


def test_a_broken_line_inside_the_file_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"step": 2, "loss": "high"}', "not a row of metrics"),
        (b'{"loss": 1.0}', "not a row of metrics"),
        (b'{"step": 2.5}', "not a row of metrics"),
        (b'{"step": Infinity}', "not a row of metrics"),
        (b"[2]", "must be a JSON object, not a list"),
        (b'{"step": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"step": 2, "caf\xe9": 1}', "not UTF-8"),
        ('{"step": 2}'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_line_that_is_not_ours_is_named_and_a_byte_order_mark_is_none(tmp_path, line, said):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"step": 1}\r\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    path.write_bytes(b'\xef\xbb\xbf{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=rf"metrics\.jsonl, line 2: .*{said}"):
        read_metrics(path)
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        read_metrics(tmp_path / "none.jsonl")


def test_summary_holds_means_over_the_first_and_last_three_steps(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write_evaluation(0, {"eval/format_valid": 0.125})
    for step in range(1, 11):
        writer.write(step, {"loss": math.nan if step == 10 else float(step)})
    writer.write_evaluation(10, {"eval/format_valid": 0.875})
    writer.close(12.5)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {
        "steps": 10,
        "first": {"eval/format_valid": 0.125, "loss": 2.0},
        "last": {"eval/format_valid": 0.875, "loss": 8.5},
        "seconds": 12.5,
    }


def test_summary_of_nothing_is_empty():
    assert summarize([]) == {"steps": 0, "first": {}, "last": {}}


def test_tensorboard_reads_back_the_scalars_and_the_resumed_run_replaces_redone_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, scale in ((1, 1.0), (3, 10.0)):
        with MetricsWriter(tmp_path) as writer:
            for step in range(first, 5):
                writer.write(step, {"reward/length": scale * step})
        time.sleep(1.1)  # TensorBoard orders event files by the second in their names
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/length")] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_timer_adds_up_by_name_and_starts_again():
    timer = Timer()
    for _ in range(2):
        with timer("rollout"):
            pass
    with pytest.raises(ZeroDivisionError), timer("train"):
        1 / 0  # noqa: B018
    taken = timer.take()
    assert set(taken) == {"seconds/rollout", "seconds/train"}
    assert all(seconds >= 0 for seconds in taken.values())
    assert timer.take() == {}


def test_timer_counts_the_wait_for_each_item_and_not_what_is_done_with_it(monkeypatch):
    now = 0.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
    timer = Timer()

    def slow():
        nonlocal now
        for item in "ab":
            now += 2.0
            yield item

    taken = []
    for item in timer.each("rollout", slow()):
        taken.append(item)
        now += 50.0
    assert taken == ["a", "b"] and timer.take()["seconds/rollout"] == 4.0
