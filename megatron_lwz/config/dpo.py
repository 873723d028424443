"""Direct preference optimisation of the policy on preference pairs."""

from __future__ import annotations

from pydantic import Field

from megatron_lwz.config.base import Paths, Section


class DpoSection(Section):
    """Direct preference optimisation on preference pairs (train_dpo; DPO, 2305.18290)."""

    pairs: Paths = Field(
        (), description="JSONL or Parquet files of pairs, from `lwz pairs --from-run` or human annotation"
    )
    held_out: Paths = Field((), description="pairs used for evaluation only, in the same formats")
    epochs: float | None = Field(None, gt=0, description="passes over the pairs; replaces training.steps")
    beta: float = Field(
        0.1,
        gt=0,
        description="weight of the log-ratio to the initial policy in a reply's implicit reward; DPO: 0.1; with length_normalized about 5 (Tulu 3, 2411.15124)",
    )
    length_normalized: bool = Field(
        False,
        description="divide a reply's log-ratio by its tokens, so that long replies do not weigh more (Tulu 3's length-normalised DPO, 2411.15124)",
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the chosen reply's mean negative log-likelihood per token, in nats, beside the loss of a pair (Iterative RPO, 2404.19733: 1)",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="assumed share of pairs whose labels are wrong (conservative DPO, note to 2305.18290)",
    )
    wrap_answer: bool = Field(
        False,
        description="bring replies into the form that fine-tuning gives them, <answer> tags included; for pairs of people. False: as they stand, for a run's own rollouts",
    )
    separator: str = Field(
        " ", description="text between the assistant's marker and a reply that does not begin with white space itself"
    )
