"""A curriculum's state: draws are a function of the seed and of what the run has seen, gates, prompts that rest, kills."""

from __future__ import annotations

import shutil
from functools import partial

import pytest

from megatron_lwz.config.curriculum import CurriculumSection
from megatron_lwz.data.curriculum import make_pools
from megatron_lwz.errors import ConfigError
from megatron_lwz.rollout.curriculum import Begun, Curriculum, History, Outcome
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import ComponentScore, FinishReason, Group, LengthRange, Prompt, Rollout
from tests.support.synthetic_engine import Engine
from tests.support.waiting import wait_for

PROMPTS = [Prompt(f"p{n}", f"prompt {n}", LengthRange(1, 10 * (n + 1))) for n in range(8)]
GATE = {"metric": "letters", "at_least": 0.5, "window": 2, "min_steps": 2}
SHORT = {"name": "short", "asked_to": 50, "max_new_tokens": 12, "gate": GATE}
STAGES = [SHORT, {"name": "long"}]


def make(seed: int = 3, stages=STAGES, **settings) -> Curriculum:
    settings = {"success": "letters", "success_at_least": 0.5} | settings
    section = CurriculumSection(stages=stages, **settings)
    section.check(100, ["letters", "length"])
    return Curriculum(section, make_pools(section, PROMPTS, 100), seed=seed, shuffle=True)


def group(number: int, prompt: str, values, *, truncated=(), valid=True, details=None) -> Group:
    """A group whose component `letters` has these values."""
    rollouts = tuple(
        Rollout(f"{number}-{index}", prompt, index, (), (), (), (), FinishReason.LENGTH if index in truncated else FinishReason.STOP, "")
        for index in range(len(values))
    )  # fmt: skip
    scores = tuple({"letters": ComponentScore(value, valid, details or {})} for value in values)
    return Group(number, PROMPTS[int(prompt[1:])], rollouts, scores, 1)


class Run:
    """Draws and trains like a controller with a batch of two; a prompt's rollouts score what `value` says."""

    def __init__(self, curriculum: Curriculum, value=lambda step, prompt: 0.0, lag: int = 0) -> None:
        self.curriculum, self.value, self.lag = curriculum, value, lag
        self.drawn: list[str] = []
        self.begun: list[Begun] = []
        self.rows: list[Outcome] = []
        self.draws = []

    def step(self, step: int) -> None:
        self.begun.append(self.curriculum.begin(step))
        while len(self.drawn) < 2 * (step + self.lag):
            prompt, draw = self.curriculum.draw(len(self.drawn))
            self.drawn.append(prompt.id)
            self.draws.append(draw)
        for number in (2 * step - 2, 2 * step - 1):
            prompt = self.drawn[number]
            outcome = self.curriculum.outcome(group(number, prompt, [self.value(step, prompt)] * 2), step)
            assert outcome is not None
            self.rows.append(outcome)

    def history(self, step: int) -> History:
        """What a journal knows, killed after the draws so far, of which the steps up to `step` are kept."""
        return History(
            list(self.draws), [row for row in self.rows if row.step <= step], [b for b in self.begun if b.step <= step]
        )


def play(steps: int, *, value, lag: int = 0, **settings) -> Run:
    run = Run(make(**settings), value, lag)
    for step in range(1, steps + 1):
        run.step(step)
    return run


def by_prompt(step: int, prompt: str) -> float:
    return (step * 7 + int(prompt[1:]) * 3) % 5 / 4


def test_an_epoch_draws_every_prompt_of_the_pool_once_in_an_order_of_the_seed() -> None:
    run = play(10, value=lambda step, prompt: 0.0)
    epochs = [run.drawn[start : start + 5] for start in range(0, 20, 5)]
    assert [sorted(epoch) for epoch in epochs] == [["p0", "p1", "p2", "p3", "p4"]] * 4
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert play(10, value=lambda step, prompt: 0.0).drawn == run.drawn
    assert play(10, value=lambda step, prompt: 0.0, seed=4).drawn != run.drawn
    assert [(draw.stage, draw.epoch, draw.most_tokens) for draw in run.draws] == [
        ("short", n // 5, 12) for n in range(20)
    ]


def test_the_order_depends_on_what_was_seen_and_on_nothing_else() -> None:
    easy = {"easy": 1.0, "rest_epochs": 1}
    first = play(12, value=by_prompt, **easy)
    assert play(12, value=by_prompt, **easy).drawn == first.drawn
    other = play(12, value=lambda step, prompt: float(prompt == "p1"), **easy)
    assert other.drawn != first.drawn
    still = play(12, value=lambda step, prompt: 0.0, **easy)
    assert other.drawn[:5] == still.drawn[:5], "the first epoch has seen nothing yet"


def test_a_gate_opens_on_the_stages_own_groups_after_its_least_steps() -> None:
    run = play(6, value=lambda step, prompt: 1.0 if step >= 2 else 0.0)
    assert [begun.stage for begun in run.begun] == ["short", "short", "long", "long", "long", "long"]
    assert [begun.value for begun in run.begun] == [None, 0.0, 0.5, None, None, None]
    assert {draw.most_tokens for draw in run.draws[4:]} == {100} and set(run.drawn[4:]) >= {"p5", "p6", "p7"}
    late = play(6, value=lambda step, prompt: 1.0, stages=[SHORT | {"gate": GATE | {"min_steps": 4}}, {"name": "long"}])
    assert [begun.stage for begun in late.begun] == ["short"] * 4 + ["long"] * 2


def test_the_last_steps_alone_count_and_the_most_steps_open_a_gate_in_any_case() -> None:
    early = play(
        6,
        value=lambda step, prompt: 1.0 if step == 1 else 0.0,
        stages=[SHORT | {"gate": GATE | {"min_steps": 3}}, {"name": "long"}],
    )
    assert {begun.stage for begun in early.begun} == {"short"}
    schedule = {"metric": "success", "min_steps": 1, "max_steps": 3}
    run = play(5, value=lambda step, prompt: 0.0, stages=[SHORT | {"gate": schedule}, {"name": "long"}])
    assert [begun.stage for begun in run.begun] == ["short"] * 3 + ["long"] * 2


def test_groups_of_an_earlier_stage_do_not_open_the_next_gate() -> None:
    """The engines are one step ahead: the first step of a stage trains on groups of the one before."""
    stages = [SHORT, {"name": "middle", "gate": GATE | {"min_steps": 1}}, {"name": "long"}]
    run = play(6, value=lambda step, prompt: 1.0, lag=1, stages=stages)
    assert [begun.stage for begun in run.begun] == ["short", "short", "middle", "middle", "long", "long"]
    assert [draw.stage for draw in run.draws[::2]] == ["short"] * 3 + ["middle"] * 2 + ["long"] * 2
    assert [begun.value for begun in run.begun] == [None, 1.0, 1.0, None, 1.0, None]


def test_prompts_rest_for_whole_epochs_and_come_back() -> None:
    run = play(12, value=lambda step, prompt: 1.0 if prompt in ("p1", "p3") and step < 4 else 0.25, easy=1.0, rest_epochs=2,
               stages=[SHORT | {"gate": {"at_least": 1.0, "min_steps": 99}}, {"name": "long"}])  # fmt: skip
    epochs = {n: [d.prompt for d in run.draws if d.epoch == n] for n in range(5)}
    assert sorted(epochs[0]) == ["p0", "p1", "p2", "p3", "p4"]
    assert sorted(epochs[1]) == sorted(epochs[2]) == ["p0", "p2", "p4"]
    assert sorted(epochs[3]) == ["p0", "p1", "p2", "p3", "p4"]
    hard = play(6, value=lambda step, prompt: float(prompt != "p2"), hard=0.0, rest_epochs=None,
                stages=[SHORT | {"gate": {"at_least": 1.0, "min_steps": 99}}, {"name": "long"}])  # fmt: skip
    assert hard.drawn.count("p2") == 1 and hard.drawn.count("p0") > 1


def test_a_pool_whose_prompts_all_rest_is_drawn_from_all_the_same() -> None:
    stages = [{"name": "all"}]
    run = play(20, value=lambda step, prompt: 1.0, easy=0.5, rest_epochs=None, stages=stages)
    assert sorted(run.drawn[:8]) == [prompt.id for prompt in PROMPTS] and len(set(run.drawn[8:])) > 2
    metrics = run.curriculum.metrics([])
    assert metrics["curriculum/skipped"] == metrics["curriculum/pool_size"] == 8


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("kept", [0, 2, 3, 5, 9])
def test_a_run_that_was_killed_draws_and_decides_as_if_nothing_had_happened(lag: int, kept: int) -> None:
    settings = {"easy": 1.0, "hard": 0.0, "rest_epochs": 2, "stages": [SHORT, {"name": "middle", "asked_from": 20, "gate": GATE}, {"name": "long"}]}  # fmt: skip
    whole = play(20, value=by_prompt, lag=lag, **settings)
    assert len({begun.stage for begun in whole.begun}) == 3
    for died in range(kept + 1, 15):
        before = play(died, value=by_prompt, lag=lag, **settings)
        after = Run(make(**settings), by_prompt, lag)
        after.curriculum.restore(before.history(kept), kept)
        after.drawn, after.draws = list(before.drawn), list(before.draws)
        for step in range(kept + 1, 21):
            after.step(step)
            number = step - 1
            assert after.begun[-1] == whole.begun[number]
        assert after.draws == whole.draws
        assert after.curriculum.metrics([]) == whole.curriculum.metrics([])


def test_outcomes_count_in_one_order_whenever_they_come() -> None:
    def ended(order) -> str:
        curriculum = make(easy=1.0, stages=[{"name": "all"}])
        curriculum.begin(1)
        draws = [curriculum.draw(number)[1] for number in range(10)]  # two groups of the same prompts
        for number in order:
            curriculum.outcome(group(number, draws[number].prompt, [float(number < 8)]), 1)
        curriculum.begin(2)
        return repr(curriculum._rests)

    assert ended(range(10)) == ended(reversed(range(10)))


def test_a_truncated_rollout_does_not_succeed_and_one_without_a_score_does_not_count() -> None:
    curriculum = make(stages=[SHORT | {"gate": {"metric": "letters.tone", "at_least": 3.0}}, {"name": "long"}])
    curriculum.begin(1)
    prompts = [curriculum.draw(number)[1].prompt for number in range(3)]
    tone = {"tone": 4.0}
    found = curriculum.outcome(group(0, prompts[0], [1.0, 1.0, 0.5, 0.4], truncated=(1,), details=tone), 1)
    assert found == Outcome(0, 1, 0.5, 4.0)
    assert curriculum.outcome(group(1, prompts[1], [1.0], valid=False), 1) == Outcome(1, 1, None, None)
    assert curriculum.outcome(group(7, "p0", [1.0]), 1) is None, "not drawn here"
    metrics = curriculum.metrics([group(2, prompts[2], [1.0, 0.0], details={"tone": 2.0})])
    assert metrics["curriculum/success"] == 0.5 and metrics["curriculum/gate"] == 2.0
    assert (metrics["curriculum/stage"], metrics["curriculum/pool_size"], metrics["curriculum/max_new_tokens"]) == (
        1,
        5,
        12,
    )


def test_a_gate_without_any_value_says_so_once(caplog) -> None:
    play(4, value=by_prompt, stages=[SHORT | {"gate": {"metric": "letters.tone", "at_least": 3.0}}, {"name": "long"}])
    assert caplog.text.count("no group of stage 'short' has a score letters.tone") == 1


def test_a_stage_that_lost_its_name_is_refused_and_an_unknown_one_is_said(caplog) -> None:
    with pytest.raises(ConfigError, match=r"data\.curriculum\.stages.*in stage 'middle', which is not among"):
        make().restore(History(stages=[Begun(1, "short", None), Begun(2, "middle", 0.5)]), 2)
    curriculum = make()
    curriculum.restore(History(), 5)
    assert "knows no stage of step 5: it begins with 'short'" in caplog.text
    assert [curriculum.begin(step).stage for step in (6, 7, 8)] == ["short"] * 3


def train(make, curriculum: Curriculum, name: str, start: int, *, steps: int, snapshots=None, **settings):
    """Yields step, groups and metrics of a controller that goes on from `start`; it leaves what a kill in a step leaves."""
    controller = make(
        batch=2, step=start, name=name, curriculum=curriculum, commit_interval=0.01, **settings,
    )  # fmt: skip
    for step in range(start + 1, steps + 1):
        groups = controller.collect(step)
        found = (groups, controller.curriculum_metrics(groups))
        if snapshots is not None:
            controller._journal.commit()
            controller._journal.snapshot(snapshots / f"killed-{step}")
        controller.mark_consumed(groups, step)
        controller.settle()
        yield step, found
    controller.close()


def test_a_controller_goes_on_bit_for_bit_across_a_change_of_stage(make_controller, start_engine, tmp_path):
    """The engine writes the same token at the same place of a seed, so everything can be compared, token by token."""
    gate = {"metric": "letters.letters", "at_least": 1.0, "window": 2, "min_steps": 3}
    stages = [SHORT | {"gate": gate}, {"name": "long"}]
    url = start_engine(Engine(length=lambda seed: 5 + seed % 20))

    def run(name: str, start: int, snapshots=None) -> dict:
        curriculum = make(success_at_least=9.0, easy=0.6, rest_epochs=1, stages=stages)
        settings = {"barren": lambda group: group.prompt.id == "p2", "max_new_tokens": 100}
        settings |= {"admission": {"last_step": 7, "refills": 3}}
        make_one = partial(make_controller, url)
        return dict(train(make_one, curriculum, name, start, steps=7, snapshots=snapshots, **settings))

    whole = run("whole", 0, tmp_path)
    cut = [len(r.tokens) for groups, _ in whole.values() for g in groups for r in g.rollouts if r.truncated]
    assert cut and set(cut) == {12}, "only the first stage has a limit that is reached"
    assert [metrics["curriculum/stage"] for _, metrics in whole.values()] == [1, 1, 1, 2, 2, 2, 2]
    assert any(metrics["curriculum/skipped"] for _, metrics in whole.values())
    for killed, kept in ((1, 0), (4, 1), (4, 3), (7, 5)):
        name = shutil.copy(tmp_path / f"killed-{killed}", tmp_path / f"again-{killed}-{kept}").name
        assert run(name, kept) == {step: found for step, found in whole.items() if step > kept}, (killed, kept)


def test_a_run_ahead_draws_by_the_steps_that_are_surely_done(make_controller, start_engine, tmp_path):
    gate = {"metric": "letters.letters", "at_least": 1.0, "window": 2, "min_steps": 2}
    url = start_engine(Engine(length=lambda seed: 5 + seed % 20))

    def run(name: str, start: int, snapshots=None) -> dict:
        curriculum = make(success_at_least=9.0, easy=0.6, stages=[SHORT | {"gate": gate}, {"name": "long"}])
        settings = {"max_staleness": 1, "admission": {"last_step": 6}}
        return dict(
            train(partial(make_controller, url), curriculum, name, start, steps=6, snapshots=snapshots, **settings)
        )

    whole = run("whole", 0, tmp_path)
    with JournalReader(tmp_path / "whole") as journal:
        stages = dict(journal._db.execute("SELECT group_id, stage FROM draws"))
    assert [stages[groups[0].id] for groups, _ in whole.values()] == ["short"] * 3 + ["long"] * 3, "drawn a step before"
    assert [metrics["curriculum/stage"] for _, metrics in whole.values()] == [1, 1, 2, 2, 2, 2]
    assert run(shutil.copy(tmp_path / "killed-4", tmp_path / "again").name, 2) == {s: whole[s] for s in (3, 4, 5, 6)}


def test_a_rollout_half_written_keeps_the_limit_of_its_stage(make_controller, start_engine):
    engine = Engine(length=lambda seed: 60, pause=0.02, delta=1)
    url = start_engine(engine)
    controller = make_controller(url, batch=2, curriculum=make())
    controller.begin(1)
    wait_for(lambda: engine.sent >= 12)
    controller.close()
    before = len(engine.requests)
    groups = make_controller(url, batch=2, curriculum=make()).collect(1)
    assert {len(rollout.tokens) for group in groups for rollout in group.rollouts} == {12}
    continued = [r for r in engine.requests[before:] if len(r["prompt"]) > engine.prompt_length(r["prompt"])]
    assert continued and all(r["max_tokens"] < 12 for r in continued)


def test_a_group_that_is_replaced_says_that_its_prompt_may_rest_and_still_does_after_a_kill(
    make_controller, start_engine, tmp_path
):
    """All rollouts succeed, so every prompt rests once its group was trained on, or replaced, as those of p2 are."""
    url = start_engine(Engine(length=lambda seed: 5))

    def run(name: str, start: int, snapshots=None) -> list[str]:
        curriculum = make(success_at_least=0.0, easy=1.0, rest_epochs=1, stages=[{"name": "all", "asked_to": 30}])
        settings = {"barren": lambda group: group.prompt.id == "p2", "admission": {"last_step": 4, "refills": 3}}
        for _ in train(
            partial(make_controller, url), curriculum, name, start, steps=4, snapshots=snapshots, **settings
        ):
            pass
        with JournalReader(tmp_path / name) as journal:
            return [row[0] for row in journal._db.execute("SELECT group_id FROM draws WHERE epoch = 0")]

    assert len(run("whole", 0, tmp_path)) == 3
    with JournalReader(tmp_path / "whole") as journal:
        query = "SELECT group_id, outcomes.step, success FROM outcomes JOIN dropped USING (group_id)"
        first, *_ = replaced = journal._db.execute(query).fetchall()
        draws = journal._db.execute("SELECT * FROM draws").fetchall()
    assert first[2] == 1.0 and replaced
    run(shutil.copy(tmp_path / "killed-2", tmp_path / "again").name, 0)
    with JournalReader(tmp_path / "again") as journal:
        assert journal._db.execute(query).fetchall() == replaced
        assert journal._db.execute("SELECT * FROM draws").fetchall() == draws
