"""A real vLLM as the teacher of a distillation: its log-probs of given texts are those of transformers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_lwz.config import validate
from megatron_lwz.config.sections import TeacherServer
from megatron_lwz.distributed import launch
from megatron_lwz.training.served_teacher import ServedTeacher
from megatron_lwz.types import SequenceBatch
from tests.vllm.conftest import TOKEN, Served

pytestmark = pytest.mark.vllm
SMALL = {
    "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 24,
}  # fmt: skip
"""The policy is not used."""


@pytest.fixture
def groups() -> Iterator[None]:
    launch.initialize(validate({"model": {"architecture": SMALL}}))
    yield
    launch.shutdown()


@pytest.mark.usefixtures("groups")
def test_the_log_probs_of_texts_are_those_of_the_served_model(vllm: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LWZ_TEACHER_TOKEN", TOKEN)
    generator = torch.Generator().manual_seed(4)
    lengths, prompts = [40, 700, 9, 123], [10, 300, 1, 122]
    texts = [torch.randint(300, (length,), generator=generator) for length in lengths]
    tokens = torch.cat(texts)
    batch = SequenceBatch(
        tokens=tokens,
        offsets=torch.tensor([0, *lengths]).cumsum(0),
        prompt_lengths=torch.tensor(prompts),
        behaviour_logprobs=torch.zeros(len(tokens)),
        advantages=torch.zeros(4),
        weights=torch.ones(4),
    )
    found = ServedTeacher(TeacherServer(url=vllm.url, model="policy")).logprobs(batch).split(lengths)
    model = AutoModelForCausalLM.from_pretrained(vllm.first, dtype=torch.float32).eval()
    for text, prompt, values in zip(texts, prompts, found, strict=True):
        with torch.no_grad():
            logprobs = model(text[None]).logits[0, :-1].log_softmax(-1).gather(1, text[1:, None])[:, 0]
        torch.testing.assert_close(values[prompt:], logprobs[prompt - 1 :], rtol=0, atol=1e-3)
        assert not values[:prompt].any()
