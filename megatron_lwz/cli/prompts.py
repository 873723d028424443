"""Turns conversations with users into prompt rows for GRPO: de-duplicated, language-tagged, each with a length range.

    lwz prompts --input WildChat-1M/ --output prompts.jsonl judge.url=http://host:8000/v1 judge.model=NAME
    lwz prompts --input requests.jsonl --output prompts.jsonl --rules-only

Inputs: WildChat-1M, LMSYS-Chat-1M, LongWriter-Zero-RLData, any JSONL or Parquet file or folder of such files. The judge
is any OpenAI-compatible server. Every reply is kept in a cache beside the output, so a stopped run can be resumed, and
repeating a finished run sends no questions. With --rules-only no judge is needed and only requests with an explicit
length are kept. docs/prompts.md explains the rules.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_lwz.cli import common, evaluate_judge, option_types
from megatron_lwz.cli.evaluate_progress import Bar
from megatron_lwz.config import Config, load_config
from megatron_lwz.config.sections import JudgeSection
from megatron_lwz.data.preparation.ranges import RangeRules, TokenBudget
from megatron_lwz.data.preparation.rows import (
    RULES_VERSION,
    Candidate,
    Filters,
    JudgedLength,
    Settings,
    Tally,
    find_candidates,
    settle,
)
from megatron_lwz.data.preparation.sources import Source, find_files, read_sources
from megatron_lwz.errors import ConfigError, DataError, refusal
from megatron_lwz.evaluation.asking import Shown, ask_all
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.length_judge import VERSIONS, length_question, read_length

CHUNK = 4096
"""Number of questions and whole replies in memory at once."""


def main(argv: Sequence[str]) -> None:
    """Reads the inputs, filters them, asks the judge and writes the rows. Raises LwzError."""
    options = _parser().parse_intermixed_args(list(argv))
    if options.output.is_dir():
        raise common.UsageError(f"--output {options.output}: is a folder, but a file will be written: name a file")
    config = load_config(options.config, options.overrides)
    settings = _settings(options, config)
    tally = Tally()
    files = find_files(options.input)
    common.check_not_inputs(_written(options.output, settings, config), files)
    if not settings.rules_only and not config.judge.url:  # fail before an hour of reading, not after it
        raise ConfigError(
            "judge.url", config.judge.url, "name the judge's server and judge.model, or give --rules-only"
        )
    with Bar("read") as bar:
        sources = itertools.islice(_all_sources(files, options.column, bar), options.limit)
        candidates = list(find_candidates(sources, _filters(options, config), tally))
    judged: list[JudgedLength | None] = [None] * len(candidates)
    judge_summary: dict[str, Any] | None = None
    if not settings.rules_only:
        judged, judge_summary = _judge(candidates, _judge_section(config, options.output))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    rows = [settle(one, said, settings, tally, date=date) for one, said in zip(candidates, judged, strict=True)]
    _write(options.output, [row for row in rows if row is not None])
    summary = {
        "inputs": [str(path) for path in options.input],
        "date": date,
        "rules": RULES_VERSION,
        "settings": dataclasses.asdict(settings) | dataclasses.asdict(_filters(options, config)),
        "judge": judge_summary,
        "counts": dict(tally),
        "first_fault": str(tally.first_fault) if tally.first_fault is not None else None,
    }
    _replace(_summary_file(options.output), json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    _show(tally, options.output)


def _all_sources(files: Sequence[Path], column: str | None, bar: Bar) -> Iterator[Source | DataError]:
    read = 0
    for number, file in enumerate(files):
        for source in read_sources(file, column):
            read += 1
            if read % 1000 == 0:
                bar(number, len(files), f"files, {read} rows, in {file.name}")
            yield source
    bar(len(files), len(files), f"files, {read} rows")


def _judge(candidates: Sequence[Candidate], section: JudgeSection) -> tuple[list[JudgedLength | None], dict[str, Any]]:
    """Returns the verdicts in order and their cost. A verdict is None where none was needed or given."""
    asked = [place for place, candidate in enumerate(candidates) if candidate.needs_judge]
    found: list[JudgedLength | None] = [None] * len(candidates)

    async def ask(judge: Judge, shown: Shown) -> None:
        for start in range(0, len(asked), CHUNK):
            places = asked[start : start + CHUNK]
            questions = [length_question(candidates[place].source.text, candidates[place].language) for place in places]

            def shown_of_all(done: int, _: int, start: int = start) -> None:
                shown(start + done, len(asked))

            verdicts = await ask_all(judge, questions, read_length, shown_of_all)
            for place, verdict in zip(places, verdicts, strict=True):
                if verdict is not None:
                    found[place] = dataclasses.replace(verdict.value, judge=verdict.judge)

    _, summary = evaluate_judge.judged(section, "judged", ask)
    missing = sum(found[place] is None for place in asked)
    if missing:
        text = (
            f"warning: {missing} requests got no verdict and are left out; the same command asks for these alone again"
        )
        common.console(stderr=True).print(text, markup=False)
    return found, summary | {"prompts": VERSIONS}


def _judge_section(config: Config, output: Path) -> JudgeSection:
    if config.judge.cache is not None:
        return config.judge
    return config.judge.model_copy(update={"cache": str(output.with_suffix(".judge.sqlite"))})


def _summary_file(output: Path) -> Path:
    return output.with_suffix(".summary.json")


def _part(path: Path) -> Path:
    """Returns the name of a file until it is whole."""
    return path.with_name(path.name + ".part")


def _written(output: Path, settings: Settings, config: Config) -> list[Path]:
    """Returns all files that a run writes. It adds to the judge's replies and replaces the others."""
    replaced = (output, _summary_file(output))
    cache = None if settings.rules_only else _judge_section(config, output).cache
    return [*replaced, *map(_part, replaced), *([Path(cache)] if cache is not None else [])]


def _filters(options: argparse.Namespace, config: Config) -> Filters:
    return Filters(
        language=options.language,
        keep_flagged=options.keep_flagged,
        shortest_request=options.shortest_request,
        longest_request_tokens=config.data.max_prompt_tokens,
        copy_threshold=options.copy_threshold,
    )


def _settings(options: argparse.Namespace, config: Config) -> Settings:
    largest = min(options.largest, config.reward.length.maximum - 1)
    return Settings(
        RangeRules(step=options.step, largest=largest, widest=options.widest, wide=options.wide),
        TokenBudget(
            config.rollout.max_new_tokens,
            options.thinking_tokens,
            options.tokens_per_word,
            options.tokens_per_character,
        ),
        shortest_answer=options.shortest_answer,
        rules_only=options.rules_only,
    )


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        common.console(stderr=True).print(f"warning: no row was kept, {path} is empty", markup=False)
    _replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _replace(path: Path, text: str) -> None:
    """Writes the whole file, or leaves the old one in place on an error."""
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(path)
    except OSError as error:
        raise DataError(path, f"cannot be written {refusal(error)}") from error


def _show(tally: Tally, output: Path) -> None:
    table = Table(title=str(output))
    table.add_column("rows")
    table.add_column("count", justify="right")
    dropped = [item for item in tally.most_common() if item[0].startswith("dropped")]
    kept = [(name, count) for name, count in tally.items() if name.startswith(("kept", "note"))]
    for name, count in [("read", tally["read"]), *dropped, *sorted(kept)]:
        table.add_row(name, str(count))
    common.console().print(table)
    if tally.first_fault is not None:
        common.console(stderr=True).print(
            f"warning: some rows cannot be read and are left out; the first: {tally.first_fault}", markup=False
        )


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(
        prog="lwz prompts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rules, budget, filters = RangeRules(), TokenBudget(), Filters()
    parser.add_argument(
        "--input", metavar="PATH", type=Path, action="append", required=True, help="file or folder; may be repeated"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="JSONL of prompt rows")
    parser.add_argument("--column", help="holds the request; default: the usual names")
    parser.add_argument("--limit", type=option_types.positive, help="rows read")
    parser.add_argument("--rules-only", action="store_true", help="no judge: only requests that name their length")
    parser.add_argument("--language", choices=("en", "zh", "both"), default=filters.language)
    parser.add_argument("--keep-flagged", action="store_true", help="also requests that the data set flags as harmful")
    parser.add_argument(
        "--shortest-request", type=option_types.not_negative, default=filters.shortest_request, help="characters"
    )
    parser.add_argument(
        "--copy-threshold", type=option_types.fraction, default=filters.copy_threshold, help="similarity of near copies"
    )
    parser.add_argument(
        "--shortest-answer",
        type=option_types.not_negative,
        default=Settings.shortest_answer,
        help="least upper bound kept",
    )
    parser.add_argument(
        "--step", type=option_types.positive, default=rules.step, help="bounds are multiples of it; 1 = exact"
    )
    parser.add_argument("--largest", type=option_types.positive, default=rules.largest, help="no bound is larger")
    parser.add_argument(
        "--widest", type=option_types.positive, default=rules.widest, help="upper − lower that is not warned of"
    )
    parser.add_argument(
        "--wide", choices=("keep", "narrow", "drop"), default=rules.wide, help="what becomes of wider ones"
    )
    parser.add_argument(
        "--thinking-tokens",
        type=option_types.not_negative,
        default=budget.thinking,
        help="kept free for the think segment",
    )
    parser.add_argument(
        "--tokens-per-word", type=option_types.positive_number, default=budget.per_word, help="estimate"
    )
    parser.add_argument(
        "--tokens-per-character",
        type=option_types.positive_number,
        default=budget.per_character,
        help="estimate, Chinese",
    )
    evaluate_judge.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
