"""Log-probs and entropies of given texts under the policy, in any layout, packed and balanced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_lwz import reading
from megatron_lwz.config import Config
from megatron_lwz.data.packing import unpack
from megatron_lwz.data.start_check import check_rows
from megatron_lwz.distributed import groups, launch, platform
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.training.batching import make_micro_batches
from megatron_lwz.training.checkpoint import latest
from megatron_lwz.training.initial import initial_policy
from megatron_lwz.training.step import forward_chunks
from megatron_lwz.types import SequenceBatch
from megatron_lwz.writing import replacing

_PASSES = 8
"""Micro-batches per data rank that are held at a time. Bounds memory and keeps the load balanced."""


@dataclass(frozen=True)
class TokenRow:
    """One input row: `tokens` are prompt then response; the first `prompt_length` get no log-prob."""

    id: str
    tokens: tuple[int, ...]
    prompt_length: int


def write_logprobs(config: Config, source: Path, target: Path, *, temperature: float = 1.0) -> int:
    """Writes the log-probs of the rows of `source` to `target` (JSONL, input order). Returns their number. Collective.

    A row of `target` is {"id", "logprobs", "entropies"}: natural log-probs of the full softmax at `temperature` and
    entropies in nats, one per response token. `target` is written atomically. Raises DataError with the line.
    """
    launch.initialize(config)
    rows = read_rows(source, config)
    check_rows(config, source, ((row.id, len(row.tokens)) for row in rows))
    policies = initial_policy(config)
    for policy in policies:
        policy.temperature = temperature
    with replacing(target) if groups.is_rank_zero() else nullcontext() as stream:
        for window in _windows(rows, _PASSES * groups.data_size() * config.training.tokens_per_micro_batch):
            values = compute_logprobs(policies, window, config)
            if stream:
                for row, (logprobs, entropies) in zip(window, values, strict=True):
                    record = {"id": row.id, "logprobs": logprobs.tolist(), "entropies": entropies.tolist()}
                    stream.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    dist.barrier()
    return len(rows)


def policy_of(config: Config, folder: Path) -> Config:
    """Returns `config`, with the newest checkpoint's weights if it was read from a run folder."""
    newest = latest(folder)
    if newest is None:
        return config
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"load": str(newest)})})


def compute_logprobs(
    policies: Sequence[PolicyModel], rows: Sequence[TokenRow], config: Config
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns (log-probs, entropies) of each row's response tokens, fp32 on the CPU, on every rank. Collective."""
    batch = _batch(rows)
    micro_batches = make_micro_batches(batch, config, torch.ones(len(batch.tokens)))
    statistics = forward_chunks(policies, micro_batches)
    values = torch.zeros(2, len(batch.tokens), device=platform.device())  # log-prob and entropy of each token
    if statistics is not None:
        for micro_batch, found in zip(micro_batches, statistics, strict=True):
            unpack(found[0], micro_batch, values[0])
            unpack(found[1], micro_batch, values[1])
        dist.all_reduce(values, group=groups.data_context_group())  # each token's values come from one rank
    dist.broadcast(values, src=groups.last_stage_rank(), group=groups.pipeline_group())
    values = values.cpu()
    spans = zip(batch.offsets.tolist(), rows, strict=False)
    return [
        (
            values[0, start + row.prompt_length : start + len(row.tokens)],
            values[1, start + row.prompt_length : start + len(row.tokens)],
        )
        for start, row in spans
    ]


def read_rows(path: Path, config: Config) -> list[TokenRow]:
    """Reads rows {"id", "tokens", "prompt_length"}. Raises DataError that names the line."""
    vocabulary = config.architecture().vocab_size
    longest = config.training.tokens_per_micro_batch
    return [_token_row(row, vocabulary=vocabulary, longest=longest) for row in reading.read_rows(path)]


def _token_row(given: reading.Row, *, vocabulary: int, longest: int) -> TokenRow:
    value = given.plain
    try:
        row = TokenRow(value["id"], tuple(value["tokens"]), value["prompt_length"])
    except (TypeError, KeyError) as error:
        raise given.error(f'needs {{"id", "tokens", "prompt_length"}} ({error!r})') from error
    for token in row.tokens:
        if type(token) is not int or not 0 <= token < vocabulary:
            raise given.error(f"token {token!r:.80} must be an integer from 0 to {vocabulary - 1}")
    if type(row.prompt_length) is not int or not 1 <= row.prompt_length <= len(row.tokens):
        advice = f"must be from 1 to the {len(row.tokens)} tokens: the first token has no log-prob"
        raise given.error(f"prompt_length {row.prompt_length!r:.80} {advice}")
    if len(row.tokens) > longest:
        raise given.error(f"{len(row.tokens)} tokens do not fit training.tokens_per_micro_batch = {longest}: raise it")
    return row


def _windows(rows: Sequence[TokenRow], tokens: int) -> Iterator[list[TokenRow]]:
    """Yields consecutive rows in lists of about `tokens` tokens."""
    window: list[TokenRow] = []
    held = 0
    for row in rows:
        window.append(row)
        held += len(row.tokens)
        if held >= tokens:
            yield window
            window, held = [], 0
    if window:
        yield window


def _batch(rows: Sequence[TokenRow]) -> SequenceBatch:
    lengths = torch.tensor([len(row.tokens) for row in rows])
    total = int(lengths.sum())
    return SequenceBatch(
        tokens=torch.tensor([token for row in rows for token in row.tokens]),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=torch.tensor([row.prompt_length for row in rows]),
        behaviour_logprobs=torch.zeros(total),
        advantages=torch.zeros(len(rows)),
        weights=torch.ones(len(rows)),
    )
