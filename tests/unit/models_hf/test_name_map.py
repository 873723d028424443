"""The table against transformers' own model: names and shapes, and views that cover every parameter once."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from megatron_lwz.config import Architecture
from megatron_lwz.models.hf.name_map import placements, tensor_shapes

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 77,
}


def architecture(**changes: object) -> Architecture:
    return Architecture.model_validate(SIZES | changes)


@pytest.mark.parametrize("tied", [True, False])
def test_table_lists_exactly_the_tensors_of_transformers(tied: bool) -> None:
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=tied))
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert tensor_shapes(architecture(tie_word_embeddings=tied)) == theirs


def test_table_lists_exactly_the_tensors_of_qwen3() -> None:
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=24))
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert tensor_shapes(architecture(model_type="qwen3", head_dim=24)) == theirs


class FakeChunk(torch.nn.Module):
    """Parameters with the names and shapes of one Megatron chunk: layers 2 and 3 of three, tensor parallel 2."""

    def __init__(self, names: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for layer in (0, 1):
            for name, shape in names.items():
                self._put(f"decoder.layers.{layer}.{name}", shape)
            self.get_submodule(f"decoder.layers.{layer}").layer_number = layer + 2
        self._put("decoder.final_layernorm.weight", (32,))
        self._put("output_layer.weight", (40, 32))

    def _put(self, name: str, shape: tuple[int, ...]) -> None:
        *path, leaf = name.split(".")
        module: torch.nn.Module = self
        for step in path:
            if not hasattr(module, step):
                module.add_module(step, torch.nn.ModuleList() if step == "layers" else torch.nn.Module())
            module = getattr(module, step)
        module.register_parameter(leaf, torch.nn.Parameter(torch.zeros(shape)))


LOCAL = {
    "self_attention.linear_qkv.weight": (32, 32),
    "self_attention.linear_qkv.bias": (32,),
    "self_attention.linear_proj.weight": (32, 16),
    "mlp.linear_fc1.weight": (48, 32),
    "mlp.linear_fc2.weight": (32, 24),
}
OWN_NORMS = {"input_layernorm.weight": (32,), "pre_mlp_layernorm.weight": (32,)}
FUSED_NORMS = {"self_attention.linear_qkv.layer_norm_weight": (32,), "mlp.linear_fc1.layer_norm_weight": (32,)}


@pytest.mark.parametrize("norms", [OWN_NORMS, FUSED_NORMS], ids=["own norms", "fused norms"])
@pytest.mark.parametrize("tied", [True, False])
def test_views_cover_every_element_of_every_parameter_once(norms: dict[str, tuple[int, ...]], tied: bool) -> None:
    chunk = FakeChunk(LOCAL | norms)
    found = placements(chunk, architecture(tie_word_embeddings=tied))
    for placement in found:
        placement.view.add_(1)
    assert all(bool((parameter == 1).all()) for parameter in chunk.parameters())
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert {p.name for p in found} == {
        name for name in tensor_shapes(architecture()) if ".layers.1." in name or ".layers.2." in name
    } | {"model.norm.weight", head}


def test_local_shapes_and_bounds_are_those_of_the_rank() -> None:
    found = {p.name: p for p in placements(FakeChunk(LOCAL | OWN_NORMS), architecture())}
    query = found["model.layers.1.self_attn.q_proj.weight"]
    assert query.local_shape == (16, 32) and query.bounds(1) == (16, 32)
    down = found["model.layers.2.mlp.down_proj.weight"]
    assert down.local_shape == (32, 24) and down.bounds(0) == (0, 24)
    head = found["lm_head.weight"]
    assert head.local_shape == (40, 32) and head.bounds(1) == (40, 77)  # rows 77 to 79 are padding


def test_unknown_parameter_is_an_internal_error() -> None:
    chunk = FakeChunk(LOCAL | OWN_NORMS | {"self_attention.q_layernorm.weight": (4,)})
    with pytest.raises(AssertionError, match="q_layernorm"):
        placements(chunk, architecture())
