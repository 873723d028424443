"""RoPE angles by position, kept once.

Megatron-Core keeps a table for each of the last 32 lengths that it was asked for. Packs differ in their longest segment,
so in training these are 32 tables: at 32k tokens and a head of 128 each has 16 MiB, on every GPU.
"""

from __future__ import annotations

from typing import cast

import torch.distributed as dist
from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from megatron_lwz.config import Architecture
from megatron_lwz.distributed import platform
from megatron_lwz.models.frequencies import rotary_frequencies


class RotaryTable(RotaryEmbedding):
    """Megatron's rotary embedding with one table, as long as the longest sequence so far. Shorter ones get a view.

    YaRN's factor on rotated queries and keys is not in it: it stands in the softmax scale (`Architecture.attention_scale`).
    """

    def __init__(self, arch: Architecture, context_group: dist.ProcessGroup) -> None:
        super().__init__(arch.head_size, 1.0, rotary_base=arch.rope_theta, cp_group=context_group)
        self.inv_freq: Tensor = rotary_frequencies(arch).to(platform.device())
        self._table: Tensor | None = None

    def forward(
        self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, cp_group: dist.ProcessGroup | None = None
    ) -> Tensor:
        """Returns the angles [max_seq_len, 1, 1, D] fp32 in two equal halves; this rank's part of them if not packed."""
        if self._table is None or len(self._table) < offset + max_seq_len:
            self._table = cast(Tensor, self.get_emb(offset + max_seq_len))
        angles = self._table[offset : offset + max_seq_len]
        group = cp_group or self.cp_group
        if group is None or group.size() == 1 or packed_seq:
            return angles
        return cast(Tensor, get_pos_emb_on_this_cp_rank(angles, 0, group))
