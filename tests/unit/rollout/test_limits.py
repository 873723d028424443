from __future__ import annotations

import random

from megatron_lwz.config.pool import PoolSection
from megatron_lwz.rollout.limits import ConcurrencyLimit, EngineLoad, read_load, write_load

SECTION = PoolSection(least_concurrency=4)

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a {b} 7"} 12.0
vllm:num_requests_running{engine="1",model_name="a {b} 7"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a {b} 7"} 2.0 1700000000
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="a {b} 7"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a {b} 7"} 0.5
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="a {b} 7"} 7.0
process_open_fds 31.0
"""


def test_the_load_is_read_from_what_vllm_says():
    assert read_load(VLLM) == EngineLoad(0.5, running=15, waiting=2, preemptions=7)
    assert read_load("vllm:gpu_cache_usage_perc 1.5\n") == EngineLoad(1.0)


def test_what_is_no_load_gives_none():
    for text in ("", "ok", "vllm:kv_cache_usage_perc", "vllm:kv_cache_usage_perc NaN", "vllm:num_requests_running 3"):
        assert read_load(text) is None


def test_what_the_embedded_engine_says_is_read_back():
    load = EngineLoad(0.125, 3, 1, 0)
    text = write_load(load, model='a "policy"\n{of} ours')
    assert read_load(text) == load
    assert '# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine="0",model_name="a \\"policy' in text


def test_a_full_cache_shrinks_the_limit_once_until_the_surplus_has_ended():
    limit = ConcurrencyLimit(64, SECTION)
    limit.observe(EngineLoad(0.97), in_use=64)
    assert limit.value == 48
    limit.observe(EngineLoad(0.99), in_use=60)
    assert limit.value == 48, "the rollouts that are too many still write"
    limit.observe(EngineLoad(0.96), in_use=48)
    assert limit.value == 36
    for _ in range(20):
        limit.observe(EngineLoad(1.0), in_use=limit.value)
    assert limit.value == SECTION.least_concurrency


def test_preemption_shrinks_it_and_a_restarted_counter_does_not():
    limit = ConcurrencyLimit(64, SECTION)
    limit.observe(EngineLoad(0.5, preemptions=100), in_use=64)
    assert limit.value == 64, "what was before is not known"
    limit.observe(EngineLoad(0.5, preemptions=101), in_use=64)
    assert limit.value == 48
    limit.observe(EngineLoad(0.9, preemptions=0), in_use=48)
    assert limit.value == 48


def test_a_queue_counts_when_two_probes_meet_it():
    limit = ConcurrencyLimit(64, SECTION)
    for waiting, value in ((9, 64), (0, 64), (9, 64), (9, 48)):
        limit.observe(EngineLoad(0.9, waiting=waiting), in_use=64)
        assert limit.value == value


def round_of(limit: ConcurrencyLimit, *uses: float, in_use: int | None = None) -> int:
    """As many rollouts end as the limit allows, while the cache is used so much."""
    in_use = limit.value if in_use is None else in_use
    for use in uses:
        limit.observe(EngineLoad(use), in_use)
    for _ in range(limit.value):
        limit.ended()
    limit.observe(EngineLoad(uses[-1]), in_use)
    return limit.value


def test_it_grows_after_a_round_that_reached_it_while_the_cache_had_room():
    limit = ConcurrencyLimit(64, SECTION)
    limit.observe(EngineLoad(1.0), in_use=64)
    for _ in range(10):
        limit.observe(EngineLoad(0.1), in_use=48)
    assert limit.value == 48, "texts that have just begun prove nothing"
    assert round_of(limit, 0.5) == 52
    assert round_of(limit, 0.5, in_use=51) == 52, "it held nothing back"
    assert round_of(limit, 0.5, 0.85, 0.5) == 52, "the cache was nearly full in between"
    assert [round_of(limit, 0.5) for _ in range(4)] == [56, 60, 64, 64], "rollout.concurrency is the most"


def test_off_means_fixed():
    limit = ConcurrencyLimit(64, PoolSection(adaptive=False))
    for _ in range(5):
        limit.observe(EngineLoad(1.0, waiting=5), in_use=64)
    assert limit.value == 64


def test_it_settles_where_the_cache_has_proved_to_hold():
    """A cache that holds 40 rollouts at half their length, all begun at once: from 128 the limit falls, then stays near 40."""
    draw, limit, lengths = random.Random(3), ConcurrencyLimit(128, SECTION), []
    seen, preemptions = [], 0
    for _ in range(3000):
        written = [length + 0.02 for length in lengths]
        lengths = [length for length in written if length < draw.uniform(0.8, 1.2)]
        for _ in range(len(written) - len(lengths)):
            limit.ended()
        lengths += [0.0] * (limit.value - len(lengths))
        in_use = len(lengths)
        while sum(lengths) > 20:  # full: the newest is preempted
            lengths.pop()
            preemptions += 1
        limit.observe(EngineLoad(sum(lengths) / 20, len(lengths), 0, preemptions), in_use)
        seen.append(limit.value)
    assert min(seen) >= 16 and max(seen[300:]) <= 64
