"""Groups as a controller writes them into a journal."""

from __future__ import annotations

from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.types import ComponentScore, FinishReason, LengthRange, Prompt, TokenDelta, WeightVersion

PROMPT = Prompt("a", "写作", LengthRange(3, 9), "zh", "direct", {"source": "ours"})
V0, V1 = WeightVersion(0), WeightVersion(1, 2, "ff")


def group(number: int = 0, size: int = 2, admitted: int = 1) -> GroupDraft:
    return GroupDraft(number, "training", PROMPT, (5, 6), admitted, [Draft(number, index) for index in range(size)])


def write(journal: Journal, draft: Draft, tokens: tuple[int, ...], version: WeightVersion = V0) -> None:
    delta = TokenDelta(tokens, tuple(-0.5 for _ in tokens), version)
    journal.extend(draft, len(draft.tokens), delta)
    draft.extend(delta)


def end(journal: Journal, draft: Draft) -> None:
    draft.reason, draft.text, draft.stop = FinishReason.STOP, "text", "</answer>"
    journal.finish(draft)


def complete(journal: Journal, written: GroupDraft) -> None:
    journal.admit(written)
    for draft in written.drafts:
        write(journal, draft, (1, 2))
        end(journal, draft)
    written.scores = [{"length": ComponentScore(0.25, True, {"words": 2.0}, "v9")} for _ in written.drafts]
    journal.score(written.id, written.scores)
