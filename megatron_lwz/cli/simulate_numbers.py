"""Where the numbers of `lwz simulate` come from: a run (--run), the plan, or options, which win over both."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

from megatron_lwz.cli import common
from megatron_lwz.config import Config
from megatron_lwz.errors import ConfigError, LwzError
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.simulation.engine import Decoding
from megatron_lwz.planner.simulation.lengths import Drawn, Lengths, quantile_of
from megatron_lwz.planner.simulation.measure import measure
from megatron_lwz.planner.simulation.numbers import Numbers, load_share, share_said, weight_sync
from megatron_lwz.planner.simulation.pool import Engines, Failures
from megatron_lwz.planner.simulation.setting import Trainer

GIVEN = {"decode_rate": "--decode-rate", "train_seconds": "--train-seconds", "sync_seconds": "--sync-seconds"}
"""Options that together make a plan needless."""


def all_numbers(config: Config, options: argparse.Namespace) -> Iterator[tuple[int | None, Numbers]]:
    """Yields the numbers for each of --engine-gpus. Raises LwzError."""
    splits = options.engine_gpus or [None]
    _check(config, options, splits)
    if options.run is not None:
        yield from _measured(config, options, splits)
    elif _complete(options):
        for split in splits:
            yield split, _with_options(config, options, _nothing(config, options, split))
    else:
        yield from _planned(config, options, splits)


def _check(config: Config, options: argparse.Namespace, splits: list[int | None]) -> None:
    """Raises UsageError for options that contradict each other, or that nothing would read."""
    measured = options.run is not None
    if measured and options.lengths is None and (options.prompt_tokens or options.barren):
        raise common.UsageError("--prompt-tokens, --barren: the run says it; they belong to --lengths")
    if options.train_seconds is not None and len(splits) > 1:
        raise common.UsageError("--train-seconds is the time on one number of GPUs: give one --engine-gpus with it")
    if options.engine_gpus is None:
        if (measured or _complete(options)) and (options.gpus or options.engine_tensor):
            raise common.UsageError("--gpus, --engine-tensor: name the split of the GPUs too, --engine-gpus N")
        return
    rollout = config.rollout
    if rollout.colocated or (rollout.engine == "embedded" and not rollout.elsewhere):
        advice = "its engines have no GPUs of their own (rollout.colocated, or the embedded engine)"
        raise common.UsageError(f"--engine-gpus: leave it out, {advice}")
    if options.gpus is None:
        raise common.UsageError("--engine-gpus needs --gpus N: how many GPUs has the run, engines included?")
    for given in options.engine_gpus:
        if not 0 < given < options.gpus:
            advice = f"must leave GPUs of the {options.gpus} for engines and trainer"
            raise common.UsageError(f"--engine-gpus {given}: {advice}")


def _complete(options: argparse.Namespace) -> bool:
    """Returns whether options give all that a plan would."""
    return all(getattr(options, name) is not None for name in GIVEN)


def _measured(
    config: Config, options: argparse.Namespace, splits: list[int | None]
) -> Iterator[tuple[int | None, Numbers]]:
    """Yields the numbers of a run, scaled where it had another split of its GPUs."""
    known, numbers = measure(options.run, share=options.load_share, decoding=options.decode_rate is None)
    if known.grpo.group_size != config.grpo.group_size and options.lengths is None:
        advice = f"the groups of {options.run} have {known.grpo.group_size} rollouts: use that, or give --lengths"
        raise ConfigError("grpo.group_size", config.grpo.group_size, advice)
    for split in splits:
        found = numbers if split is None else _split_anew(numbers, options, split)
        yield split, _with_options(config, options, found)


def _split_anew(numbers: Numbers, options: argparse.Namespace, split: int) -> Numbers:
    """Returns a run's numbers with other engines: each as fast as before, and passes of training by GPUs that train."""
    size = options.engine_tensor or 1
    before = options.gpus - numbers.engines.count * size
    if before < 1:
        used = f"{numbers.engines.count} engines of {size} GPUs (--engine-tensor)"
        raise common.UsageError(f"--gpus {options.gpus}: {options.run} had {used}, which leaves none that trains")
    now = options.gpus - split
    said = f"{numbers.sources['training']}, passes scaled from {before} to {now} GPUs"
    return replace(
        numbers,
        engines=replace(numbers.engines, count=_count(split, size)),
        trainer=replace(numbers.trainer, per_token=numbers.trainer.per_token * before / now),
        sources={**numbers.sources, "training": said if now != before else numbers.sources["training"]},
    )


def _planned(
    config: Config, options: argparse.Namespace, splits: list[int | None]
) -> Iterator[tuple[int | None, Numbers]]:
    if options.gpus is None:
        names = ", ".join(GIVEN.values())
        raise common.UsageError(f"--run RUN_DIR, --gpus N or all of {names}: where should the numbers come from?")
    # Plans need Megatron-Core, which takes seconds to import and which a run's numbers do without.
    from megatron_lwz.cli.plan_setting import setting_of, watch
    from megatron_lwz.planner.rehearsals import Rehearsals
    from megatron_lwz.planner.simulation.planned import planned

    drawn, said = _drawn(config, options)
    found = 0
    with Rehearsals(watch) as rehearsals:
        for split in splits:
            asked = {**vars(options), "engine_gpus": split, "stage": "grpo", "mean_tokens": drawn.mean}
            try:
                trainers, setting = setting_of(config, argparse.Namespace(**asked))
                numbers = planned(config, trainers, setting, drawn, rehearsals)
            except LwzError as error:
                if split == splits[-1] and not found:
                    raise
                common.console(stderr=True).print(f"--engine-gpus {split} is left out: {error}", markup=False)
                continue
            found += 1
            yield split, _with_options(config, options, replace(numbers, sources={"lengths": said, **numbers.sources}))


def _nothing(config: Config, options: argparse.Namespace, split: int | None) -> Numbers:
    """Returns numbers all of which options replace, but for the engines and what they hold."""
    lengths, said = _drawn(config, options)
    count = max(1, len(config.rollout.urls)) if split is None else _count(split, options.engine_tensor or 1)
    engines = Engines(count, config.rollout.concurrency, Decoding(0.0))
    sources = {"lengths": said, "rewards": "assumed, no time"}
    return Numbers(lengths, engines, Trainer(0.0), weight_sync(0.0, 0.0), 0.0, sources)


def _count(gpus: int, size: int) -> int:
    if gpus % size:
        raise common.UsageError(f"--engine-gpus {gpus}: is no multiple of --engine-tensor {size}")
    return gpus // size


def _with_options(config: Config, options: argparse.Namespace, numbers: Numbers) -> Numbers:
    """Returns the numbers with those that options give in their place."""
    engines, sources = numbers.engines, dict(numbers.sources)
    lengths: Lengths = numbers.lengths
    if options.run is not None and options.lengths is not None:
        lengths, sources["lengths"] = _drawn(config, options)
    found = replace(numbers, lengths=lengths)
    if options.decode_rate is not None:
        alone, full = options.decode_rate[0], options.decode_rate[-1]
        per_stream = (1 / full - 1 / alone) / max(1, engines.slots - 1)
        engines = replace(engines, decoding=Decoding(1 / alone - per_stream, per_stream))
        sources["decoding"] = "given"
    if options.prefill_rate is not None:
        engines, sources["prefixes"] = replace(engines, prefill=options.prefill_rate), "given"
    elif engines.prefill is None:
        sources["prefixes"] = "assumed, no time beside decoding"
    if options.failures is not None:
        engines = replace(engines, failures=Failures(options.failures * 3600, options.repair))
    if options.train_seconds is not None:
        tokens = config.training.prompts_per_step * config.grpo.group_size * lengths.trained
        if not tokens:
            raise common.UsageError(
                "--train-seconds: nothing is trained, because every rollout is masked: see --lengths"
            )
        found, sources["training"] = replace(found, trainer=Trainer(options.train_seconds / tokens)), "given"
    if options.sync_seconds is not None or options.load_share is not None:
        given, share = options.sync_seconds is not None, options.load_share
        said = "given" if given else sources["weight sync"].partition(",")[0]
        sources["weight sync"] = f"{said}, engines on hold in {share_said(config, share)}"
        seconds = options.sync_seconds if given else found.sync.seconds
        found = replace(found, sync=weight_sync(seconds, load_share(config, share)))
    if options.reward_seconds is not None:
        found, sources["rewards"] = replace(found, rewards=options.reward_seconds), "given"
    return replace(found, engines=engines, sources=sources)


def _drawn(config: Config, options: argparse.Namespace) -> tuple[Drawn, str]:
    """Returns the law of --lengths, or the one that plans assume, and where it comes from."""
    mean = ASSUMED.mean_share.value * config.rollout.max_new_tokens
    law = options.lengths or f"uniform:{mean:g}"
    prompt = options.prompt_tokens or int(ASSUMED.prompt_tokens.value)
    found = Drawn(
        quantile_of(law),
        most=config.rollout.max_new_tokens,
        prompt=prompt,
        size=config.grpo.group_size,
        barren=options.barren,
        masks=config.grpo.truncated == "mask",
        seed=options.seed,
    )
    given = "given" if options.lengths else "assumed"
    prompts = "given" if options.prompt_tokens else "assumed"
    return found, f"{given}, {law} cut at {found.most}, prompts of {prompt} {prompts}"
