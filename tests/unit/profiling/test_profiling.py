"""Spans, the trace that is made of them, the totals of operators, and the figures for the report."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.profiling.files import Head, combine, write_part
from megatron_lwz.profiling.lanes import covered, gaps, joined, spread
from megatron_lwz.profiling.operators import MARK, Operators, clock_offset, read_torch_trace, shifted, since, totals
from megatron_lwz.profiling.spans import ENGINE, PHASES, REWARD, STEPS, SYNC, Recorder, Span
from megatron_lwz.profiling.summary import REST, summarize, summary_from
from megatron_lwz.profiling.trace import rank_process, trainer_events
from megatron_lwz.report.profile import panel, read_profile
from megatron_lwz.run_paths import RunPaths

MS = 10**6


def span(track: str, name: str, begin: int, end: int, **facts: float) -> Span:
    return Span(track, name, begin * MS, end * MS, facts)


TRAINER = [
    span(STEPS, "step 3", 100, 200, step=3),
    span(PHASES, "rollout", 100, 160),
    span(PHASES, "update", 160, 180),
    span(PHASES, "weight_sync", 180, 190),
    span(SYNC, "prepare", 180, 182),
    span(SYNC, "push", 182, 190),
]
SERVICES = [
    span(f"{ENGINE}http://e", "rollout 0-0", 100, 130, tokens=7),
    span(f"{ENGINE}http://e", "rollout 0-1", 110, 130, tokens=3),
    span(f"{REWARD}length", "rollout 0-0", 130, 136),
]


def torch_events() -> list[dict]:
    """As torch writes them, in µs of its own clock; MARK began at 1,000."""
    ops = [("aten::mm", 2000.0, 100.0), ("aten::add", 2010.0, 30.0), ("aten::mm", 2200.0, 50.0)]
    found = [{"ph": "X", "cat": "user_annotation", "name": MARK, "pid": 7, "tid": 7, "ts": 1000.0, "dur": 1.0}]
    found += [{"ph": "X", "cat": "cpu_op", "name": n, "pid": 7, "tid": 7, "ts": t, "dur": d, "args": {"Ev Idx": 1}} for n, t, d in ops]  # fmt: skip
    kernels = [("gemm", 2100.0, 40.0), ("gemm", 2120.0, 40.0)]
    found += [{"ph": "X", "cat": "kernel", "name": n, "pid": 0, "tid": 20, "ts": t, "dur": d} for n, t, d in kernels]
    found += [{"ph": "s", "id": 5, "pid": 7, "tid": 7, "ts": 2005.0, "cat": "ac2g", "name": "ac2g"}]
    found += [{"ph": "M", "name": "process_labels", "pid": 7, "ts": 9.0, "args": {"labels": "CPU"}}]
    found += [{"ph": "M", "name": "thread_name", "pid": 7, "tid": 7, "ts": 9.0, "args": {"name": "thread 7"}}]
    return [*found, {"ph": "X", "cat": "cpu_op", "name": "before", "pid": 7, "tid": 7, "ts": 1100.0, "dur": 5.0}]


def test_a_recorder_collects_while_it_is_on_and_what_is_under_way_at_both_ends() -> None:
    spans = Recorder()
    with spans.span(PHASES, "unseen"):
        pass
    with spans.span(PHASES, "begun before"):
        assert spans.record(True) == []
    with spans.span(PHASES, "open", tokens=1) as facts:
        facts["tokens"] = 2
        found = spans.record(False)
    assert [(each.name, each.facts) for each in found] == [
        ("begun before", {}),
        ("open", {"tokens": 2, "unfinished": 1}),
    ]
    assert all(each.begin <= each.end for each in found) and spans.record(False) == []


def test_spans_that_overlap_get_lanes_and_a_lane_is_used_again() -> None:
    made = [
        span(ENGINE, str(number), begin, end) for number, (begin, end) in enumerate([(0, 5), (1, 3), (3, 9), (5, 6)])
    ]
    assert [(lane, each.name) for lane, each in spread(made)] == [(0, "0"), (1, "1"), (1, "2"), (0, "3")]


def test_intervals() -> None:
    parts = joined([(5, 7), (0, 2), (1, 3), (7, 8), (9, 9)])
    assert parts == [(0, 3), (5, 8)]
    assert covered((2, 6), parts) == 2
    assert gaps((0, 10), parts) == [(3, 5), (8, 10)] and gaps((0, 3), parts) == []


def test_torch_events_are_moved_to_the_clock_of_the_spans_and_numbered_by_rank() -> None:
    events = torch_events()
    offset = clock_offset(events, 50 * MS, Path("trace"))
    assert offset == 49 * MS
    later = since(events, offset=offset, zero=51 * MS)
    moved = list(shifted(later, 3, offset=offset, zero=51 * MS))
    calls = [event for event in moved if event["ph"] == "X"]
    assert [event["name"] for event in calls] == ["aten::mm", "aten::add", "aten::mm", "gemm", "gemm"]
    assert calls[0]["ts"] == 0.0 and calls[0]["args"] == {}
    assert {event["pid"] for event in moved} == {rank_process(3, 1), rank_process(3, 2)}
    named = {event["args"]["name"] for event in moved if event["ph"] == "M" and "name" in event["args"]}
    assert named == {"rank 3: operators, CPU", "rank 3: operators, torch", "thread 7"}
    assert not [event for event in moved if event["ph"] == "M" and "ts" in event]
    assert [event["id"] for event in moved if "id" in event] == ["3.5"]
    with pytest.raises(DataError, match="recorded no annotation"):
        clock_offset(events[1:], 0, Path("trace"))


def test_totals_leave_out_what_an_operator_called_and_join_kernels_that_overlap() -> None:
    found = totals(torch_events(), offset=0)
    assert [(row.name, row.calls, round(row.seconds * 1e6)) for row in found.host] == [
        ("aten::mm", 2, 120), ("aten::add", 1, 30), ("before", 1, 5),
    ]  # fmt: skip
    assert [(row.name, row.calls, round(row.seconds * 1e6)) for row in found.gpu] == [("gemm", 2, 80)]
    assert found.gpu_busy == pytest.approx(60e-6)
    assert totals([], offset=0).gpu_busy is None


def test_the_figures_say_where_the_time_goes_and_for_what_the_trainer_waits() -> None:
    found = summarize({0: TRAINER}, SERVICES, {0: Operators()})
    assert found.steps == [3] and found.seconds == pytest.approx(0.1)
    assert found.phases["0"] == pytest.approx({"rollout": 0.06, "update": 0.02, "weight_sync": 0.01, REST: 0.01})
    assert [(wait.phase, round(wait.seconds, 3)) for wait in found.waits] == [
        ("rollout", 0.06), ("weight_sync", 0.01), (REST, 0.01),
    ]  # fmt: skip
    assert (found.waits[0].engines, found.waits[0].rewards) == (0.5, 0.1)
    assert [(each.name, each.calls, each.tokens) for each in found.services] == [
        ("engine http://e", 2, 10), ("reward length", 1, 0),
    ]  # fmt: skip
    assert summary_from(json.loads(json.dumps(found.as_json()))).as_json() == found.as_json()


def test_parts_become_one_trace_and_a_summary_that_the_report_shows(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    run.profile.mkdir()
    assert panel(run) == ""
    found = torch_events()
    events = [*trainer_events(0, TRAINER, zero=100 * MS), *shifted(found, 0, offset=100 * MS, zero=100 * MS)]
    write_part(run.profile_part(0), Head(0, TRAINER, totals(found, offset=0)), events)
    combine(run, [0], SERVICES, zero=100 * MS, steps="3-3")
    written = json.loads(gzip.decompress(run.profile_trace("3-3").read_bytes()))["traceEvents"]
    assert len(written) > len(events) and {event["ph"] for event in written} == {"X", "M", "C", "s"}
    assert [event["args"]["requests"] for event in written if event["ph"] == "C"] == [1, 2, 0]
    page = panel(run)
    for text in (
        "profile/steps_3-3.json.gz: open it in ui.perfetto.dev",
        "rollout",
        "60.0 % (0.06)",
        "aten::mm",
        "gemm",
    ):
        assert text in page
    run.profile_summary("3-3").write_text('{"steps": 3}')
    with pytest.raises(DataError, match=r"steps_3-3\.summary\.json: no summary of a profile"):
        read_profile(run.profile_summary("3-3"))
    run.profile_part(0).write_text("nonsense\n")
    with pytest.raises(DataError, match="do all ranks see the run folder"):
        combine(run, [0], [], zero=0, steps="3-3")
    with pytest.raises(DataError, match="no trace"):
        read_torch_trace(run.profile_part(0))
