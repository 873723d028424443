"""The main job with engines that run one step ahead: real ranks, the embedded engine, weights that change under way."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.rollout.lengths import distribution_gap
from megatron_lwz.types import Alarm
from tests.support.grpo_runs import train, write_example
from tests.support.traces import read_trace


def test_a_run_one_step_ahead_trains_every_group_once_in_order_within_the_bound(tmp_path: Path) -> None:
    config = write_example(
        tmp_path,
        rollout={
            "max_staleness": 1,
            "max_new_tokens": 60,
            "controller": "process",
            "stop": list("abc"),
            "guard": {"mode": "observe", "interval": 16},
        },
        grpo={"truncated": "mask"},
        data={"held_out_prompts": None},
    )
    train(config, "parallel.tensor=2", "--profile", "steps=3-4,ranks=1", ranks=2)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["rollout/staleness/max"] for row in rows] == [0, 1, 1, 1]
    assert all(0 < row["rollout/token_staleness"] <= 1 for row in rows[1:])
    # the first batch is on policy; older weights wrote the others, and each token brings its own log-prob
    assert rows[0]["mismatch/difference/max"] <= 1e-4 < min(row["mismatch/difference/max"] for row in rows[1:])
    # a batch's lengths are compared when its last group is trained; the first one is of two steps
    assert "length/gap" not in rows[0] and [row["length/version"] for row in rows[1:]] == [0, 1, 2]
    assert [row["length/sampled/rollouts"] for row in rows[1:]] == [16, 8, 8]
    for row in rows[1:]:  # what is cut at the limit is masked
        assert row["length/truncated"] == row["length/excluded/truncated"] < 1
        seen = 1 - row["length/excluded/truncated"] - row["length/excluded/zero_variance"]
        assert row["length/trained/rollouts"] == pytest.approx(row["length/sampled/rollouts"] * seen)
    assert any(row["length/sampled/p99"] == 60 > row["length/trained/p99"] for row in rows[1:])
    assert "Lengths sampled, lengths trained on" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    with JournalReader(tmp_path / "run" / "journal.sqlite") as journal:
        assert journal.consumed() == {0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 4}
        groups = list(journal.groups())
        assert journal.trained_order(4) == [6, 7]
        lengths = list(journal.lengths())
    for row in rows[1:]:  # the metric is what the journal's own record says of that batch
        batch = [r for group in lengths if group.admitted == row["length/version"] + 1 for r in group.rollouts]
        sampled, trained = ([r.tokens for r in some] for some in (batch, [r for r in batch if r.excluded is None]))
        assert row["length/gap"] == distribution_gap(sampled, trained)
        assert row["length/gap_mean"] == pytest.approx(mean(trained) - mean(sampled))
    assert [group.id for group in groups] == list(range(8)), "nothing is written that no step trains"
    for group in groups:
        writers = {segment.version.step for rollout in group.rollouts for segment in rollout.versions}
        assert max(writers) <= group.id // 2, "weights of its own step at the newest"
    trace = read_trace(tmp_path / "run" / "profile" / "steps_3-4.json.gz")  # from the rollout process, over its socket
    parts = {name.partition(",")[0].partition(" http")[0] for name in trace.named("process_name").values()}
    assert parts == {"rank 0: trainer", "rank 1: trainer", "rank 1: operators", "engine", "rewards"}
    steps = trace.spans("rank 1: trainer", "steps")
    assert [step["name"] for step in steps] == ["step 3", "step 4"]
    written = {request["name"] for request in trace.spans("engine ")}
    assert (
        {f"rollout {group}-0" for group in (6, 7)}
        <= written
        <= {f"rollout {n}-{i}" for n in (4, 5, 6, 7) for i in range(4)}
    )
    # noise is no response from its first look on; who only observes changes nothing
    assert all(r.alarms == ((Alarm("format", 16),) if len(r.tokens) > 16 else ()) for g in groups for r in g.rollouts)
    assert all(row["rollout/guard/format/observed"] > 0 == row["rollout/guard/format/ended_valid"] for row in rows)
