"""The decoder on Megatron's model against transformers: same tokens, same log-probs, whatever runs beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_lwz.distributed import launch
from megatron_lwz.models import decoding_forward
from megatron_lwz.models.decoding import Decoder
from megatron_lwz.models.decoding_cache import CachedSequence
from megatron_lwz.orchestrator.experience import sameness_metrics
from megatron_lwz.rollout.engine.policy import ServedPolicy
from megatron_lwz.types import FinishReason, Group, Prompt, Rollout
from tests.support.engine_model import VOCAB, write_engine_model
from tests.support.recorded_operators import record
from tests.support.tiny_qwen2 import QWEN3


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServedPolicy, Any, Path]]:
    folder = tmp_path_factory.mktemp("engine")
    reference = write_engine_model(folder / "a")
    write_engine_model(folder / "b", seed=1)
    yield ServedPolicy(folder / "a"), reference, folder
    launch.shutdown()


def prompts(lengths: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(0, VOCAB, (n,), generator=generator).tolist()) for n in lengths]


def write(decoder: Decoder, asked: dict[CachedSequence, int]) -> dict[CachedSequence, tuple[list[int], list[float]]]:
    """Runs the sequences to their token counts."""
    written: dict[CachedSequence, tuple[list[int], list[float]]] = {sequence: ([], []) for sequence in asked}
    for sequence in asked:
        decoder.add(sequence)
    steps = 0
    while len(decoder):
        assert (steps := steps + 1) <= 10_000, "it does not end"
        for sampled in decoder.step():
            tokens, logprobs = written[sampled.sequence]
            tokens.append(sampled.token)
            logprobs.append(sampled.logprob)
            if len(tokens) == asked[sampled.sequence]:
                decoder.remove(sampled.sequence)
    return written


@torch.no_grad()
def reference_logprobs(model: Any, prompt: Sequence[int], tokens: Sequence[int], temperature: float) -> torch.Tensor:
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def assert_logprobs(model: Any, sequence: CachedSequence, tokens: list[int], logprobs: list[float]) -> None:
    wanted = reference_logprobs(model, sequence.prompt, tokens, sequence.temperature or 1.0)
    assert torch.allclose(torch.tensor(logprobs), wanted, atol=1e-4, rtol=0)


def test_greedy_tokens_equal_transformers_under_continuous_batching(served: tuple[ServedPolicy, Any, Path]) -> None:
    policy, model, _ = served
    asked = {
        CachedSequence(prompt, temperature=0.0): 10 + 7 * place % 40
        for place, prompt in enumerate(prompts([32, 5, 17, 1, 9, 23, 90, 2, 12, 28]))
    }
    written = write(policy.decoder(4), asked)
    largest = 0.0
    for sequence, count in asked.items():
        inputs = torch.tensor([sequence.prompt])
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=count,
            min_new_tokens=0,
            do_sample=False,
            eos_token_id=None,
        )
        assert output[0, len(sequence.prompt) :].tolist() == written[sequence][0]
        assert_logprobs(model, sequence, *written[sequence])
        largest = max(largest, float(model(inputs).logits.detach().max()))
    assert largest >= 8, "small logits would hide errors"


def test_samples_do_not_depend_on_what_runs_beside(served: tuple[ServedPolicy, Any, Path]) -> None:
    policy, model, _ = served
    group = prompts([20])[0]

    def fresh() -> list[CachedSequence]:
        """Six samples of one prompt and two strangers."""
        same = [CachedSequence(group, temperature=0.9, seed=seed) for seed in range(6)]
        return [*same, *(CachedSequence(p, temperature=1.3, top_p=0.8, seed=3) for p in prompts([7, 40], seed=5))]

    together, alone = fresh(), fresh()
    batch = write(policy.decoder(8), dict.fromkeys(together, 60))
    for one, other in zip(together, alone, strict=True):
        assert batch[one][0] == write(policy.decoder(1), {other: 60})[other][0]
        assert_logprobs(model, one, *batch[one])
    assert len({tuple(batch[sequence][0]) for sequence in together[:6]}) == 6


def test_sameness_parts_a_collapsed_policy_from_one_that_explores(served: tuple[ServedPolicy, Any, Path]) -> None:
    policy, _, _ = served
    groups: dict[float, list[Group]] = {0.02: [], 1.0: []}
    for temperature, found in groups.items():
        for number, prompt in enumerate(prompts([20, 9])):
            written = write(
                policy.decoder(8), {CachedSequence(prompt, temperature=temperature, seed=s): 60 for s in range(4)}
            )
            rollouts = [
                Rollout(
                    f"{number}-{place}",
                    "p",
                    place,
                    prompt,
                    tuple(ids),
                    tuple(logprobs),
                    (),
                    FinishReason.STOP,
                    shown(ids),
                )
                for place, (ids, logprobs) in enumerate(written.values())
            ]
            found.append(Group(number, Prompt("p", "?"), tuple(rollouts), ({},) * 4, admitted=1))
    collapsed, healthy = (sameness_metrics(found)["rollout/sameness"] for found in groups.values())
    assert collapsed > 0.6 and healthy < 0.05


def shown(tokens: Sequence[int]) -> str:
    """The byte tokenizer's texts are no words: its ids stand for words here."""
    return f"<think>t</think><answer>{' '.join(map(str, tokens))}</answer>"


def test_a_continued_rollout_equals_an_undisturbed_one(served: tuple[ServedPolicy, Any, Path]) -> None:
    policy, _, _ = served
    whole = CachedSequence(prompts([15])[0], temperature=1.0, seed=42)
    tokens, logprobs = write(policy.decoder(1), {whole: 80})[whole]
    decoder = policy.decoder(2)
    rest = CachedSequence((*whole.prompt, *tokens[:37]), temperature=1.0, seed=42)
    again, again_logprobs = write(decoder, {rest: 43})[rest]
    assert again == tokens[37:]
    assert again_logprobs == pytest.approx(logprobs[37:], abs=1e-4)


def test_a_shared_prompt_is_computed_once(served: tuple[ServedPolicy, Any, Path], monkeypatch: Any) -> None:
    policy, _, _ = served
    decoder = policy.decoder(8)
    computed = []
    forward = decoder._forward
    original = type(forward).__call__

    def count(self: Any, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(rest) == 2:  # a prefill pass names the last tokens
            computed.append(len(tokens))
        return original(self, tokens, *rest)

    monkeypatch.setattr(type(forward), "__call__", count)
    group = prompts([50])[0]
    write(decoder, {CachedSequence(group, seed=seed): 3 for seed in range(12)})
    assert sum(computed) == 50
    write(decoder, {CachedSequence((*group[:40], 1, 2)): 3})
    assert sum(computed) == 52, "40 tokens were shared with the group's prompt"
    decoder.forget_prefixes()
    write(decoder, {CachedSequence(group): 3})
    assert sum(computed) == 102


def test_long_rollouts_of_mixed_lengths_move_through_the_buckets(served: tuple[ServedPolicy, Any, Path]) -> None:
    policy, model, _ = served
    lengths = {30: 2050, 600: 500, 3: 300, 2030: 40}
    asked = {CachedSequence(p, seed=n): n for p, n in zip(prompts(list(lengths)), lengths.values(), strict=True)}
    written = write(policy.decoder(4), asked)
    for sequence in asked:
        assert_logprobs(model, sequence, *written[sequence])


def test_the_decoder_s_products_are_those_of_megatron_s_modules_bit_for_bit(
    served: tuple[ServedPolicy, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_lwz.models.decoding_forward.thin_product.serves", lambda *_: False)
    model: Any = served[0]._chunks[0]
    layer = model.decoder.layers[0]
    hidden = torch.randn(5, 1, model.config.hidden_size)
    with torch.inference_mode():
        for module in (layer.self_attention.linear_qkv, layer.self_attention.linear_proj, layer.mlp.linear_fc1):
            assert torch.equal(decoding_forward._project(module, hidden), module(hidden)[0])
        assert torch.equal(decoding_forward._mlp(layer.mlp, hidden), layer.mlp(hidden)[0])


def test_torch_s_attention_gives_the_same_tokens(
    served: tuple[ServedPolicy, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, model, _ = served
    lengths = {30: 600, 600: 40, 3: 60}
    found = []
    for kernel in (True, False):
        if not kernel:
            monkeypatch.setattr("megatron_lwz.models.decoding.decode_attention.serves", lambda *_: False)
        asked = {CachedSequence(p, seed=n): n for p, n in zip(prompts(list(lengths)), lengths.values(), strict=True)}
        written = write(policy.decoder(4), asked)
        for sequence in asked:
            assert_logprobs(model, sequence, *written[sequence])
        found.append([tokens for tokens, _ in written.values()])
    assert found[0] == found[1]


def test_recorded_steps_depend_on_nothing_that_the_host_computed(
    served: tuple[ServedPolicy, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph repeats the operators of a step on the same tensors. Here they are repeated one by one."""
    for kernel in (
        "decode_attention.serves",
        "thin_product.serves",
        "layers.cpp._serves",
    ):  # only torch's operators are seen
        monkeypatch.setattr(f"megatron_lwz.kernels.{kernel}", lambda *_: False)
    monkeypatch.setattr("megatron_lwz.models.decoding_graph._record", record)
    policy, _, _ = served
    lengths = {30: 580, 500: 40, 3: 60, 100: 9}
    found = []
    for graphs in (False, True):
        decoder = policy.decoder(3, graphs=graphs)
        asked = {CachedSequence(p, seed=n): n for p, n in zip(prompts(list(lengths)), lengths.values(), strict=True)}
        found.append(write(decoder, asked))
    assert decoder._recorder is not None and decoder._recorder.replays > 500
    assert list(found[0].values()) == list(found[1].values())


@pytest.mark.parametrize("kernel", [True, False])
def test_a_qwen3_with_yarn_gives_the_log_probs_of_transformers(
    tmp_path: Path, served: tuple[ServedPolicy, Any, Path], monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    """In prompts and in decoding, by our attention and by torch's."""
    model = write_engine_model(tmp_path, **QWEN3)
    if not kernel:
        monkeypatch.setattr("megatron_lwz.models.decoding.decode_attention.serves", lambda *_: False)
    lengths = {30: 200, 300: 20, 3: 60}
    asked = {CachedSequence(p, seed=n): n for p, n in zip(prompts(list(lengths)), lengths.values(), strict=True)}
    written = write(ServedPolicy(tmp_path).decoder(4), asked)
    for sequence in asked:
        assert_logprobs(model, sequence, *written[sequence])


def test_removed_sequences_free_their_slots(served: tuple[ServedPolicy, Any, Path]) -> None:
    policy, _, _ = served
    decoder = policy.decoder(2)
    writing, other, waiting = (CachedSequence(p) for p in prompts([5, 6, 7]))
    for sequence in (writing, other, waiting):
        decoder.add(sequence)
    decoder.step()
    assert (decoder.writing, len(decoder)) == (2, 3)
    decoder.remove(writing)
    decoder.remove(writing)
    assert {sampled.sequence for sampled in decoder.step()} == {other, waiting}
    decoder.remove(other)
    decoder.remove(waiting)
    assert len(decoder) == 0 and decoder.step() == []


def test_new_weights_go_on_from_the_old_keys(served: tuple[ServedPolicy, Any, Path]) -> None:
    policy, _, folder = served
    before = policy.checksum()
    prompt = prompts([12])[0]

    def greedy(decoder: Decoder) -> list[int]:
        sequence = CachedSequence(prompt, temperature=0.0)
        return write(decoder, {sequence: 30})[sequence][0]

    old = greedy(policy.decoder(1))
    decoder, sequence = policy.decoder(1), CachedSequence(prompt, temperature=0.0)
    decoder.add(sequence)
    tokens = [decoder.step()[0].token for _ in range(10)]
    try:
        policy.reload(str(folder / "b"))
        decoder.forget_prefixes()
        assert policy.checksum() != before
        tokens += [decoder.step()[0].token for _ in range(20)]
        assert tokens[:10] == old[:10] and tokens[10:] != old[10:]
        decoder.remove(sequence)
        new = greedy(decoder)
        assert new == greedy(policy.decoder(1)), "the prompt's keys are computed again"
        assert new != old
    finally:
        policy.reload(str(folder / "a"))
    assert policy.checksum() == before
    assert greedy(policy.decoder(1)) == old
