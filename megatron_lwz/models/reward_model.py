"""The reward model: the policy's trunk with one number per token instead of a vocabulary.

The score of a text is the number at its last token, as in transformers' sequence classifiers.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_lwz.config import Architecture
from megatron_lwz.types import MicroBatch


class ScalarHead(torch.nn.Module):
    """score = w · h in fp32, the whole weight [1, H] on every tensor-parallel rank.

    With sequence parallelism each rank sees different tokens. The weight is flagged, so its gradient is summed over the
    ranks.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        weight = torch.empty(1, config.hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        self.weight = torch.nn.Parameter(weight)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, H] → [T] fp32."""
        return hidden.float() @ self.weight.float()[0]


class RewardModel(GPTModel):
    """One model chunk of a reward model.

    `forward(tokens [1, T], positions [1, T], None, labels=…, packed_seq_params=…)` returns on the last stage fp32 [T]:
    for every token the score of the text if it ended there. T is this rank's context-parallel share; all
    tensor-parallel ranks return the same values. `labels` are not read: they only tell the caller which tokens are
    last.
    """

    post_process: bool
    lora = None  # without adapters

    def __init__(self, config: TransformerConfig, arch: Architecture, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.arch = arch
        if self.post_process:
            del self.output_layer
            self.score = ScalarHead(config)

    def _postprocess(self, hidden_states: Tensor, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Overrides the hook between the decoder and its output; `hidden_states` is [T (/ TP), 1, H]."""
        if not self.post_process:
            return super()._postprocess(hidden_states, *args, labels=labels, **kwargs)
        scores = self.score(hidden_states.squeeze(1))
        if self.config.sequence_parallel:
            # Every rank continues with the same scores, so each needs its own share of their gradient, not a sum.
            scores = gather_from_sequence_parallel_region(scores, tensor_parallel_output_grad=False)
        return scores

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Overrides the upstream method, which expects an output layer on the last stage."""
        last, self.post_process = self.post_process, False
        try:
            return super().sharded_state_dict(*args, **kwargs)
        finally:
            self.post_process = last


def last_token_scores(scores: Tensor, micro_batch: MicroBatch, count: int) -> Tensor:
    """Returns [2, count]: the score of each sequence, and 1 for sequences that this rank scored, else 0.

    A sequence's score is the entry of `scores` [T] at its last token. Only a text's last token has a label, whose value
    is never read.
    """
    at_end = (micro_batch.source >= 0).to(scores.device)
    place = micro_batch.sequence_ids.to(scores.device)[at_end]
    values = torch.stack([scores[at_end], torch.ones_like(scores[at_end])])
    return scores.new_zeros(2, count).index_add(1, place, values)
