"""Which way a loss goes: a function of the user's own never through the fused kernel, and by its parameters in the forward pass or after."""

import pytest
import torch

from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.kernels.linear_logprob import AutogradTokenLoss
from megatron_lwz.training import grpo_objective
from megatron_lwz.training.grpo_objective import GrpoObjective
from megatron_lwz.types import MicroBatch

TOKENS = 12


def micro_batch() -> MicroBatch:
    ids = torch.tensor([0, 1, -1]).repeat_interleave(4)
    values = torch.rand(TOKENS, generator=torch.Generator().manual_seed(0))
    return MicroBatch(
        tokens=ids, labels=ids, positions=ids, cu_seqlens=ids, max_seqlen=4, sequence_ids=ids, source=ids,
        behaviour_logprobs=-values, advantages=values - 0.5, weights=(ids >= 0).float(),
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["cpp", "triton", "cuda"])
@pytest.mark.parametrize(("name", "token_level"), [("clip", True), ("gspo", False)])
def test_a_function_of_the_users_own_has_no_fused_twin(backend, name, token_level, monkeypatch):
    monkeypatch.setattr(grpo_objective, "settings", lambda: type("Settings", (), {"backend": backend}))
    monkeypatch.setattr(grpo_objective.groups, "context_size", lambda: 1)
    section = GrpoSection(loss_function=f"tests.support.user_losses:{name}")
    micro = micro_batch()
    statistics = (-torch.rand(3, TOKENS)).requires_grad_()
    objective = GrpoObjective(section, 2, old=[micro.behaviour_logprobs])
    loss, metrics = objective.loss(statistics, micro, 0)
    assert torch.autograd.grad(loss, statistics)[0][0, :8].any() and metrics["tokens"] == 8
    if not token_level:
        assert objective.token_loss is None
    else:
        assert isinstance(objective.token_loss(micro, 0), AutogradTokenLoss)
    assert GrpoObjective(section.model_copy(update={"mismatch": "sequence"}), 2).token_loss is None
