"""The RoPE angles are kept once, whatever lengths the packs have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from megatron_lwz.config import Architecture
from megatron_lwz.config.model import Yarn
from megatron_lwz.distributed import launch
from megatron_lwz.models.frequencies import rotary_frequencies
from megatron_lwz.models.qwen import build_policy
from megatron_lwz.models.rotary import RotaryTable
from tests.support.tiny_step import config_of


@pytest.fixture(scope="module")
def table() -> Iterator[RotaryTable]:
    """That of a policy, as built."""
    config = config_of()
    launch.initialize(config)
    (policy,) = build_policy(config)
    yield policy.rotary_pos_emb
    launch.shutdown()


SIZES = {
    "num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 9,
}  # fmt: skip


@pytest.mark.parametrize(
    "yarn",
    [
        None,
        {"factor": 4.0, "original_max_position_embeddings": 32768},
        {"factor": 1.0, "original_max_position_embeddings": 4096},
        {"factor": 40.0, "original_max_position_embeddings": 64, "beta_fast": 8.0, "beta_slow": 3.0},
        {"factor": 2.5, "original_max_position_embeddings": 1000, "attention_factor": 0.7},
        {"factor": 2.0, "original_max_position_embeddings": 2},
    ],
)
def test_frequencies_are_those_of_transformers_to_the_bit(yarn: dict[str, float] | None) -> None:
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    kind = {"rope_type": "default"} if yarn is None else {"rope_type": "yarn"} | yarn
    theirs = Qwen2RotaryEmbedding(Qwen2Config(**SIZES, rope_parameters={"rope_theta": 1e6} | kind))
    arch = Architecture(**SIZES, rope_scaling=yarn)
    assert torch.equal(rotary_frequencies(arch), theirs.inv_freq)
    exact = rotary_frequencies(arch, torch.float64)
    torch.testing.assert_close(exact, theirs.inv_freq.double(), rtol=3e-6, atol=0)
    assert Yarn(**yarn).scale == pytest.approx(theirs.attention_scaling) if yarn else theirs.attention_scaling == 1


def test_lengths_share_one_table(table: RotaryTable) -> None:
    longest = table(64, packed_seq=True)
    for length in (1, 7, 33, 64):
        angles = table(length, packed_seq=True)
        assert angles.untyped_storage().data_ptr() == longest.untyped_storage().data_ptr()
        assert torch.equal(angles, table.get_emb(length))


def test_the_table_grows_with_the_longest_sequence(table: RotaryTable) -> None:
    for length in range(65, 70):
        assert torch.equal(table(length, packed_seq=True), table.get_emb(length))
    kept = [value for value in vars(table).values() if isinstance(value, Tensor)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept if tensor is not table.inv_freq) == 69 * 8 * 4
    assert torch.equal(table(3, offset=4), table.get_emb(3, offset=4))
