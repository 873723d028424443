from __future__ import annotations

from megatron_lwz.config.pool import PoolSection
from megatron_lwz.http.retry import Failure
from megatron_lwz.rollout.health import LONGEST_REST, Health, Standing

SECTION = PoolSection(missed_probes=3, failed_requests=2)


def test_one_that_refuses_connections_is_out_at_once_and_comes_back():
    health = Health(SECTION)
    assert health.probe_failed(Failure.CONNECTION) and health.standing is Standing.OUT
    assert not health.probe_failed(Failure.CONNECTION), "lost only once"
    assert health.probe_answered() and health.standing is Standing.OUT, "it has no weights yet"
    assert health.back() and health.standing is Standing.UP


def test_a_slow_one_is_doubted_before_it_is_out():
    health = Health(SECTION)
    assert not health.probe_failed(Failure.TIMEOUT) and health.standing is Standing.DOUBTED
    assert not health.probe_failed(Failure.TIMEOUT)
    assert health.probe_answered() and not health.back() and health.standing is Standing.UP
    assert [health.probe_failed(Failure.TIMEOUT) for _ in range(3)] == [False, False, True], "in a row"


def test_one_that_stays_silent_is_stuck_only_some_probes_after_it_is_out():
    health = Health(SECTION)
    found = []
    for _ in range(6):
        health.probe_failed(Failure.TIMEOUT)
        found.append((health.standing is Standing.OUT, health.stuck))
    assert found == [(False, False), (False, False), (True, False), (True, False), (True, False), (True, True)]
    assert not health.probe_answered() or not health.stuck, "an answer ends it"


def test_a_failed_request_asks_for_a_probe_and_a_refused_one_does_not():
    health = Health(SECTION)
    health.request_failed(Failure.REFUSED)
    assert health.standing is Standing.UP and health.failures == 0
    health.request_failed(Failure.SERVER)
    assert health.standing is Standing.DOUBTED and health.failures == 1
    assert health.probe_answered() and not health.back() and health.failures == 1
    health.request_done()
    assert health.failures == 0


def test_one_that_answers_probes_but_fails_all_requests_rests_longer_each_time():
    health, rests = Health(SECTION), []
    for _ in range(6):
        for _ in range(SECTION.failed_requests):
            health.request_failed(Failure.SERVER)
        rests.append(0)
        while not health.probe_answered():
            assert health.standing is Standing.OUT
            rests[-1] += 1
            assert rests[-1] <= LONGEST_REST
        health.back()
    assert rests == [0, 1, 3, 7, LONGEST_REST, LONGEST_REST]
    health.request_done()
    health.take_out()
    assert health.probe_answered(), "a finished rollout clears its name"


def test_a_new_one_is_out_and_one_without_weights_pays_nothing():
    health = Health(SECTION, up=False)
    assert health.standing is Standing.OUT and health.probe_answered() and health.back()
    health.lack_weights()
    assert health.standing is Standing.OUT and health.probe_answered() and health.back()
