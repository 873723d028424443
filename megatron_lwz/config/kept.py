"""What stays the same from one start of a run to the next, unless `run.allow_change` names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Stage = Literal["pretrain", "sft", "reward_model", "dpo", "grpo"]
ALL: tuple[Stage, ...] = ("pretrain", "sft", "reward_model", "dpo", "grpo")


@dataclass(frozen=True)
class Kept:
    """A key that is kept, or a section whose keys all are. Only runs of `stages` keep it."""

    why: str
    stages: tuple[Stage, ...] = ALL
    path: bool = False
    """The value names a file or folder: another spelling of the same path is no change."""


_ROWS = "which rows there are, and in which order: the run's position in them would mean another row"
_TEXT = "how rows become tokens"

KEPT: Mapping[str, Kept] = {
    "run.seed": Kept("initial weights, the order of the data and the seeds of rollouts"),
    "model.hf": Kept("the model, and the weights that the KL term compares with", path=True),
    "model.architecture": Kept("the model"),
    "model.preset": Kept("the model"),
    "model.head": Kept("the model"),
    "model.vocab_padding": Kept("the shape of the embeddings in the checkpoints"),
    "model.tokenizer": Kept("what token ids mean. Its content counts: the same tokenizer.json elsewhere is no change"),
    "lora": Kept("the adapter in the checkpoints, and what it computes", ("pretrain", "sft", "dpo", "grpo")),
    "checkpoint.load": Kept("the weights that the run began with, with which the KL term compares", path=True),
    "data.template": Kept(_TEXT, ("sft", "dpo", "grpo")),
    "data.prompt_template": Kept("the prompts of the journal's rollouts", ("grpo",)),
    "data.shuffle": Kept(_ROWS),
    "data.curriculum": Kept("which prompts come next, and how long their rollouts may be", ("grpo",)),
    "data.corpus": Kept(_ROWS, ("pretrain",), path=True),
    "data.instructions": Kept(_ROWS, ("sft",), path=True),
    "training.sequence_length": Kept(
        "where texts are cut, and which rows are left out", ("pretrain", "sft", "reward_model", "dpo")
    ),
    "sft.turns": Kept(_TEXT, ("sft",)),
    "sft.long_rows": Kept(_ROWS, ("sft",)),
    "sft.wrap_answer": Kept(_TEXT, ("sft",)),
    "sft.separator": Kept(_TEXT, ("sft",)),
    "reward_model.pairs": Kept(_ROWS, ("reward_model",), path=True),
    "reward_model.template": Kept(_TEXT, ("reward_model",)),
    "reward_model.thinking": Kept(_TEXT, ("reward_model",)),
    "dpo.pairs": Kept(_ROWS, ("dpo",), path=True),
    "dpo.wrap_answer": Kept(_TEXT, ("dpo",)),
    "dpo.separator": Kept(_TEXT, ("dpo",)),
    "rollout.temperature": Kept("the log-probs in the journal", ("grpo",)),
    "rollout.top_p": Kept("the log-probs in the journal", ("grpo",)),
    "reward.length.unit": Kept("the lengths that prompts ask for, and the scores in the journal", ("grpo",)),
    "reward.length.count_thinking": Kept("the scores in the journal", ("grpo",)),
}
"""Key → why it is kept."""


def kept_key(key: str) -> str | None:
    """Returns the entry of KEPT that a key of the config belongs to, None for a key that may change."""
    return next((name for name in KEPT if covers(name, key)), None)


def covers(name: str, key: str) -> bool:
    """Whether `name` is the key or a section that holds it."""
    return key == name or key.startswith(name + ".")


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError for a name of `run.allow_change` that covers no kept key: it would allow nothing."""
    for name in names:
        if kept_key(name) is None and not any(covers(name, key) for key in KEPT):
            raise ValueError(f"'{name}' is no key that a run keeps: these are {', '.join(KEPT)}")
