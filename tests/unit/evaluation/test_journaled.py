import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.journaled import read_run
from megatron_lwz.evaluation.measure import measure
from megatron_lwz.evaluation.pinned import PinnedEvaluations
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.types import FinishReason, LengthRange, Prompt, TokenDelta, WeightVersion
from tests.support.synthetic_run import write_run


def add_evaluation(root, identity: int, step: int, prompt: str, text: str, reason=FinishReason.STOP) -> None:
    journal = Journal(root / "journal.sqlite")
    draft = Draft(identity, 0)
    draft.reason, draft.text = reason, text
    asked = Prompt(prompt, "Write.", LengthRange(1, 9), template="direct")
    journal.admit(GroupDraft(identity, "evaluation", asked, (1,), step, [draft]))
    journal.extend(draft, 0, TokenDelta((3,), (-0.5,), WeightVersion(step)))
    journal.finish(draft)
    journal.score(identity, [{}])
    journal.close()


def test_a_run_without_held_out_prompts_is_measured_on_its_last_step(tmp_path):
    responses, source = read_run(write_run(tmp_path, steps=10))
    assert source == "training step 10" and len(responses) == 24
    assert len({(r.id, r.sample) for r in responses}) == 24 and responses[0].fault is None
    assert measure(responses).metrics["format_valid"].value == 1
    assert read_run(tmp_path, 2)[1] == "training step 2"
    with pytest.raises(DataError, match="no step 5: there are training steps at 1, 2, 3, 8, 9, 10"):
        read_run(tmp_path, 5)


def test_held_out_prompts_come_first_and_a_redone_step_counts_once(tmp_path):
    write_run(tmp_path, steps=10)
    add_evaluation(tmp_path, -1, 0, "a", "<answer>before</answer>")
    add_evaluation(tmp_path, -2, 10, "a", "<answer>first attempt</answer>")
    add_evaluation(tmp_path, -3, 10, "b", "<answer>cut off", FinishReason.LENGTH)
    add_evaluation(tmp_path, -4, 10, "a", "<answer>again</answer>")
    responses, source = read_run(tmp_path)
    assert source == "held-out prompts after step 10"
    assert {r.id: (r.text, r.finish_reason, r.fault) for r in responses} == {
        "a": ("again", "stop", None), "b": ("cut off", "length", "answer not closed"),
    }  # fmt: skip
    assert [r.text for r in read_run(tmp_path, 0)[0]] == ["before"]
    PinnedEvaluations(tmp_path).begin(WeightVersion(10), None)
    assert read_run(tmp_path)[1] == "held-out prompts after step 0", "the newest that is complete"
    assert read_run(tmp_path, 10)[1] == "held-out prompts after step 10, as far as they are written"


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(DataError, match="no journal there"):
        read_run(tmp_path)
    Journal(tmp_path / "journal.sqlite").close()
    with pytest.raises(DataError, match="no rollouts were finished yet"):
        read_run(tmp_path)
