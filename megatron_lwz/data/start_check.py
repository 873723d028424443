"""Checks that model, tokenizer, context length and data fit each other.

Every stage and server calls this first, before it loads weights or writes a file. Without these checks a run on several
ranks would train on ids that do not exist, and beyond the context a model computes positions that it never learnt.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_lwz.config import Architecture, Config, read_hf_architecture
from megatron_lwz.data.manifest import is_manifest, read_manifest
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError, DataError, LwzError


def check_rollouts(config: Config) -> None:
    """Checks a GRPO run: its policy, the longest rollout, and the models of rewards that it serves. Raises LwzError."""
    _check_policy(config)
    check_longest_rollout(config)
    for served in (config.reward.writing, config.reward.continuation):
        if served.hf is not None and served.url is None:
            check_folder(Path(served.hf))


def check_texts(config: Config) -> None:
    """Checks a run of SFT or a reward model: its policy, and the longest text. Raises LwzError."""
    _check_policy(config)
    check_longest_text(config)


def check_corpus(config: Config) -> None:
    """Checks a run of pretraining: as `check_texts`, and a prepared corpus. Raises LwzError."""
    check_texts(config)
    size = config.architecture().vocab_size
    for path in filter(is_manifest, config.data.corpus):
        made_for = read_manifest(Path(path)).tokenizer
        largest = max(made_for.vocabulary - 1, made_for.eos)
        if largest >= size:
            advice = f"its tokens have ids up to {largest}, but {_source(config)} has vocab_size {size}"
            raise DataError(path, f"{advice}: prepare it with the model's tokenizer")


def check_rows(config: Config, source: Path, lengths: Iterable[tuple[str, int]]) -> None:
    """Checks (id, number of tokens) of the rows of `source` that are to be scored. Raises DataError."""
    for identity, length in lengths:
        if fault := beyond_context(config.architecture(), length, _source(config)):
            raise DataError(source, f"row {identity!r}: {fault}")


def check_longest_rollout(config: Config) -> None:
    """Raises ConfigError if prompt and response may be longer than the policy's context."""
    section, prompt = config.rollout, config.data.max_prompt_tokens
    fault = beyond_context(config.architecture(), prompt + section.max_new_tokens, _source(config))
    if fault:
        advice = f"with data.max_prompt_tokens = {prompt}, {fault}"
        raise ConfigError("rollout.max_new_tokens", section.max_new_tokens, advice)


def check_longest_text(config: Config) -> None:
    """Raises ConfigError if texts may be longer than the policy's context."""
    length = config.training.sequence_length
    if fault := beyond_context(config.architecture(), length, _source(config)):
        raise ConfigError("training.sequence_length", length, fault)


def served_length(arch: Architecture, tokenizer: Tokenizer, asked: int | None) -> int:
    """Returns how many tokens a server of the model in the tokenizer's folder takes at most.

    `asked` is its --max-length; None: the model's own limit. Raises LwzError if model, tokenizer and limit do not fit.
    """
    source = str(tokenizer.folder / "config.json")
    check_vocabulary(arch, tokenizer, source)
    if asked is not None and (fault := beyond_context(arch, asked, source)):
        raise LwzError(f"--max-length {asked}: {fault}")
    return asked or arch.context_length


def check_folder(folder: Path) -> None:
    """Checks that a Hugging Face folder's model has every token of its tokenizer. Raises LwzError."""
    check_vocabulary(read_hf_architecture(folder), Tokenizer(folder), str(folder / "config.json"))


def check_vocabulary(arch: Architecture, tokenizer: Tokenizer, source: str) -> None:
    """Raises DataError if the tokenizer has ids for which the model has no embedding.

    `source` names where the model's sizes stand. A smaller tokenizer is fine: Qwen models have spare embeddings.
    """
    if tokenizer.vocab_size > arch.vocab_size:
        advice = f"has ids up to {tokenizer.vocab_size - 1}, but {source} has vocab_size {arch.vocab_size}"
        raise DataError(tokenizer.folder / "tokenizer.json", f"{advice}: use the tokenizer that belongs to the model")


def beyond_context(arch: Architecture, tokens: int, source: str) -> str | None:
    """Returns why texts of so many tokens do not fit the model and what to do; None if they do."""
    limit = arch.context_length
    if tokens <= limit:
        return None
    return (
        f"{tokens} tokens are more than the {limit} of max_position_embeddings in {source}: lower it, "
        "give the model YaRN there (rope_scaling), or raise max_position_embeddings if it is meant to extrapolate"
    )


def _check_policy(config: Config) -> None:
    check_vocabulary(config.architecture(), Tokenizer(config.tokenizer_dir()), _source(config))


def _source(config: Config) -> str:
    """Returns where the sizes of the config's model stand."""
    if config.model.hf is not None:
        return str(Path(config.model.hf) / "config.json")
    return f"model.preset {config.model.preset}" if config.model.preset is not None else "model.architecture"
