"""The policy model: a GPTModel whose output layer returns log-probs instead of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_lwz.config import Architecture
from megatron_lwz.config.sections import LoraSection
from megatron_lwz.distributed import groups
from megatron_lwz.kernels.linear_logprob import TokenLoss, linear_logprob, linear_loss
from megatron_lwz.types import MicroBatch


def packed_params(micro_batch: MicroBatch) -> PackedSeqParams:
    """Returns the packed segments in the form that attention and RoPE need. Every pipeline stage passes it on."""
    starts, longest = micro_batch.cu_seqlens, micro_batch.max_seqlen
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=starts, cu_seqlens_kv=starts, max_seqlen_q=longest, max_seqlen_kv=longest
    )


class PolicyModel(GPTModel):
    """One model chunk of the policy.

    `forward(tokens [1, T], positions [1, T], None, labels=[1, T], packed_seq_params=…)` returns on the last stage fp32
    [3, T]: log-prob, entropy and log-sum-exp at each label (0 where the label is IGNORED_LABEL). They are those of the
    full softmax over the true vocabulary, with logits divided by `temperature`. T is this rank's context-parallel
    share; all tensor-parallel ranks return the same values. Without labels it returns the logits, like GPTModel.
    `token_loss` creates a loss that is differentiated in the forward pass; with it the result is (loss, those [3, T]
    without gradient).
    """

    def __init__(self, config: TransformerConfig, arch: Architecture, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.arch = arch
        self.true_vocab_size = arch.vocab_size
        self.temperature = 1.0
        self.lora: LoraSection | None = None
        """The settings of its adapters; None: it has none, and all of it is trained."""
        self.base: str | None = None
        """Checksum of what is frozen below the adapters, in the type of the parameters, once it is loaded."""
        self._token_loss: Callable[[], TokenLoss] | None = None

    def forward(self, *args: Any, token_loss: Callable[[], TokenLoss] | None = None, **kwargs: Any) -> Any:
        """Runs the chunk; the class docstring describes arguments and result."""
        self._token_loss = token_loss
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._token_loss = None

    def _postprocess(self, hidden_states: Tensor, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Overrides the hook between the decoder and its output; `hidden_states` is [T (/ TP), 1, H]."""
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states, *args, labels=labels, **kwargs)
        weight = self.output_weight()
        inputs = hidden_states.squeeze(1), weight, labels.squeeze(0)
        options: dict[str, Any] = {
            "temperature": self.temperature,
            "vocab_start": groups.tensor_rank() * weight.shape[0],
            "vocab_size": self.true_vocab_size,
            "tp_group": self.pg_collection.tp,
            "sequence_parallel": self.config.sequence_parallel,
        }
        if self._token_loss is None:
            return torch.stack(linear_logprob(*inputs, **options))
        loss, *statistics = linear_loss(*inputs, self._token_loss(), **options)
        return loss, torch.stack(statistics)

    def output_weight(self) -> Tensor:
        """Returns this rank's rows of the output layer, or of the embedding if tied: [padded vocabulary / TP, H]."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight
