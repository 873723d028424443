"""Verifies that a checkpoint and a Hugging Face folder are the same model: equal weights, and the same function.

Equal weights alone do not show that both sides compute the same: a number of config.json may be read differently. Equal
log-probs alone do not show that the weights are equal: one wrong value changes too little. The function is measured
against an fp64 reference, because in fp32 transformers' own log-probs are off by more than ours.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_lwz.config import Architecture, Config
from megatron_lwz.data.preferences.batches import text_batch
from megatron_lwz.data.text.sample import TEXTS
from megatron_lwz.data.tokenizer import open_tokenizer, read_pad_id
from megatron_lwz.distributed import exchange, groups
from megatron_lwz.errors import CheckpointError, DataError, LwzError
from megatron_lwz.models.hf.exact import ExactModel
from megatron_lwz.models.hf.folder import HfFolder
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.training.reward_model import score_sequences
from megatron_lwz.training.token_logprobs import TokenRow, compute_logprobs

log = logging.getLogger(__name__)

FAR = 0.01
"""Largest error of transformers' fp32 outputs that rounding explains: the largest seen is 6e-4, for a model of 0.5B
parameters. Above it transformers computes another function than the one that was read from config.json."""

Samples = Mapping[str, Sequence[Tensor]]
"""What the texts are → token ids of each, [n] int64."""


@dataclass(frozen=True)
class Errors:
    """Largest and mean distance of outputs from their exact values."""

    largest: float
    mean: float


@dataclass(frozen=True)
class Comparison:
    """Outputs over the texts of one kind: their number, and the errors of both sides."""

    what: str
    count: int
    ours: Errors
    theirs: Errors


def check_same_architecture(config: Config, arch: Architecture, hf: Path, checkpoint: Path) -> None:
    """Raises CheckpointError that names the first number in which the checkpoint and the folder differ."""
    own = config.architecture()
    found = own.difference(arch) or ("head", own.head, arch.head)
    if found[1] != found[2]:
        name, ours, theirs = found
        values = f"{name} is {ours} in its config.yaml, {theirs} in config.json"
        raise CheckpointError(checkpoint, f"is not the model in {hf}: {values}: name the folder that it was made from")


def sample_texts(hf: Path, arch: Architecture, *, sequences: int, length: int, seed: int) -> Samples:
    """Returns random token ids, and text of two languages if the folder has a tokenizer. Raises DataError."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {
        "random tokens": list(torch.randint(arch.vocab_size, (sequences, length), generator=generator))
    }
    if (hf / "tokenizer.json").is_file():
        tokenizer = open_tokenizer(hf)
        texts = [torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids[:length]) for text in TEXTS]
        largest = max((int(text.max()) for text in texts if len(text)), default=0)
        if largest >= arch.vocab_size:
            advice = f"gives token id {largest}, but config.json has vocab_size {arch.vocab_size}"
            raise DataError(hf / "tokenizer.json", f"{advice}: it belongs to another model")
        if texts := [text for text in texts if len(text) > 1]:
            found["tokens of text"] = texts
    else:
        log.info("no tokenizer.json in %s: compared on random tokens only", hf)
    if arch.head == "scalar":  # transformers looks for the last token that is not padding
        other = 1 if (pad := read_pad_id(hf)) == 0 else 0
        for text in (text for texts in found.values() for text in texts):
            text[-1] = other if int(text[-1]) == pad else text[-1]
    return found


def compare_function(
    policies: list[PolicyModel], hf: Path, arch: Architecture, samples: Samples, config: Config
) -> list[Comparison]:
    """Measures the errors of the checkpoint's and of transformers' outputs in fp32. Collective; all ranks get them.

    Outputs are log-probs, or scores of a reward model. Empties `policies`: one model is in memory at a time. Raises
    LwzError, on every rank alike.
    """
    texts = [text for kind in samples.values() for text in kind]
    scalar = arch.head == "scalar"
    ours = (_scores if scalar else _logprobs)(policies, texts, config)
    policies.clear()
    gc.collect()
    told: dict[str, Any] = {}
    if groups.is_rank_zero():
        try:
            theirs = _of_transformers(hf, texts, arch)
            exact = ExactModel(HfFolder(hf), arch)
            truth = list(exact.scores(texts)[:, None]) if scalar else exact.logprobs(texts)
            told = {"found": [asdict(found) for found in _comparisons(samples, ours, theirs, truth)]}
        except LwzError as error:
            told = {"error": str(error)}
    told = exchange.broadcast_json(told)
    if "error" in told:
        raise LwzError(told["error"])
    return [
        Comparison(row["what"], row["count"], Errors(**row["ours"]), Errors(**row["theirs"])) for row in told["found"]
    ]


def check_function(found: Sequence[Comparison], hf: Path, checkpoint: Path, *, output: str, tolerance: float) -> None:
    """Raises CheckpointError unless the checkpoint computes the folder's function.

    Its error may be as large as `tolerance`, or as transformers' own. `output` names what was compared.
    """
    for kind in found:
        theirs = f"transformers' own by {kind.theirs.largest:.3g}"
        if not kind.theirs.largest <= max(FAR, tolerance):  # a NaN fails too
            raise CheckpointError(
                hf,
                f"transformers computes another function than the one that was read from its config.json: its {output}s "
                f"of {kind.what} are off by {kind.theirs.largest:.3g} from the exact ones",
            )
        if not kind.ours.largest <= max(tolerance, kind.theirs.largest):
            raise CheckpointError(
                checkpoint,
                f"is not the model in {hf}: {output}s of {kind.what} are off by {kind.ours.largest:.3g} from the exact "
                f"ones, {theirs}, tolerance {tolerance:g}",
            )


def _comparisons(
    samples: Samples, ours: Sequence[Tensor], theirs: Sequence[Tensor], exact: Sequence[Tensor]
) -> list[Comparison]:
    found, start = [], 0
    for what, texts in samples.items():
        part = slice(start, start + len(texts))
        start = part.stop
        truth = torch.cat(list(exact[part]))
        errors = [(torch.cat(list(side[part])).double() - truth).abs() for side in (ours, theirs)]
        found.append(Comparison(what, len(truth), *(Errors(float(e.max()), float(e.mean())) for e in errors)))
    return found


def _logprobs(policies: list[PolicyModel], texts: Sequence[Tensor], config: Config) -> list[Tensor]:
    rows = [TokenRow(str(index), tuple(text.tolist()), 1) for index, text in enumerate(texts)]
    return [logprobs for logprobs, _ in compute_logprobs(policies, rows, config)]


def _scores(policies: list[PolicyModel], texts: Sequence[Tensor], config: Config) -> list[Tensor]:
    return list(score_sequences(policies, text_batch(list(texts)), config)[:, None])


def _of_transformers(hf: Path, texts: Sequence[Tensor], arch: Architecture) -> list[Tensor]:
    """Returns the same outputs of transformers' model in fp32. Raises CheckpointError if it cannot load the folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    scalar = arch.head == "scalar"
    kind = getattr(transformers, arch.family.scalar if scalar else arch.family.language)
    try:
        model = kind.from_pretrained(hf, dtype=torch.float32, use_safetensors=True).eval()
    except Exception as error:  # it has no common base of its errors
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(hf, f"transformers cannot load it ({type(error).__name__}: {reason})") from error
    output: Callable[[Tensor], Tensor] = lambda text: model(text[None]).logits[0]  # noqa: E731
    with torch.no_grad():
        if scalar:
            return [output(text) for text in texts]
        return [output(text)[:-1].log_softmax(-1).gather(-1, text[1:, None])[:, 0] for text in texts]
