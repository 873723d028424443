"""Makes preference pairs without human labels, for a writing reward model or for DPO, and reads human-labelled pairs.

    lwz pairs --documents texts.jsonl --out DIR
    lwz pairs --pairs human.parquet --out DIR
    lwz pairs --from-run RUN --out DIR

--documents: requests with good replies (prompt + response, messages …). Each reply is damaged in controlled ways: a
requirement left out, shuffled, repeated, truncated, off-topic, contradicted. --pairs: human-labelled pairs (chosen +
rejected as texts or messages, Anthropic HH, UltraFeedback, HelpSteer, Nectar, SHP, two replies with a winner).
--from-run: the best against the worst sibling of each prompt group in a GRPO run's journal. All may be given, each
several times. Writes DIR/train.jsonl, DIR/held_out.jsonl and DIR/report.json. Documents that share a request or a text go
to the same side. docs/reward_model.md explains the kinds, docs/dpo.md the siblings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from megatron_lwz.cli import common, lifetime, option_types
from megatron_lwz.cli.evaluate_progress import Bar
from megatron_lwz.data.preferences.corruptions import CORRUPTIONS
from megatron_lwz.data.preferences.documents import Document, read_documents
from megatron_lwz.data.preferences.formats import read_pairs
from megatron_lwz.data.preferences.make import (
    MakeRules,
    describe,
    document_keys,
    leaks,
    make_pairs,
    pair_keys,
    split_documents,
    without_shared,
)
from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preparation.sources import find_files
from megatron_lwz.errors import DataError, refusal

T = TypeVar("T")


def main(argv: Sequence[str]) -> None:
    """Reads the inputs, splits them, makes the pairs and writes them. Raises LwzError."""
    options = _parser().parse_args(list(argv))
    if not (options.documents or options.pairs or options.from_run):
        raise common.UsageError("give --documents, --pairs or --from-run, or several of them")
    for option, given in (("--steps", options.steps), ("--component", options.component), ("--gap", options.gap)):
        if given and not options.from_run:
            raise common.UsageError(f"{option}: needs --from-run")
    rules = MakeRules(
        kinds=tuple(options.kinds or CORRUPTIONS),
        tolerance=None if options.any_length else options.tolerance,
        per_document=options.per_document,
        seed=options.seed,
    )
    documents, pairs = (find_files(paths) for paths in (options.documents, options.pairs))
    written = {name: options.out / name for name in ("train.jsonl", "held_out.jsonl", "report.json")}
    common.check_not_inputs((file for path in written.values() for file in (path, _part(path))), (*documents, *pairs))
    counts: Counter[str] = Counter()
    siblings = _siblings(options, counts)
    sides = _sides(
        list(_read(documents, read_documents, "documents", counts)),
        [*_read(pairs, read_pairs, "pairs", counts), *siblings],
        rules,
        options.held_out,
        counts,
    )
    if not sides[0]:
        shown = "; ".join(f"{name}: {count}" for name, count in sorted(counts.items()) if count)
        inputs = ", ".join(map(str, (*options.documents, *options.pairs, *options.from_run)))
        raise DataError(
            inputs,
            f"no pair could be made ({shown}): give more, longer or other documents or pairs"
            if shown
            else "holds no row: give a file with rows",
        )
    options.out.mkdir(parents=True, exist_ok=True)
    for name, side in zip(("train.jsonl", "held_out.jsonl"), sides, strict=True):
        _replace(written[name], "".join(json.dumps(pair.row(), ensure_ascii=False) + "\n" for pair in side))
    report: dict[str, Any] = {
        "inputs": [str(path) for path in (*options.documents, *options.pairs, *options.from_run)],
        "rules": dataclasses.asdict(rules) | {"held_out": options.held_out} | _sibling_rules(options),
        "counts": dict(sorted(counts.items())),
        "train": describe(sides[0]),
        "held_out": describe(sides[1]),
        "on_both_sides": leaks(*sides),
    }
    _replace(written["report.json"], json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    _show(report, options.out)


def _siblings(options: argparse.Namespace, counts: Counter[str]) -> list[PreferencePair]:
    if not options.from_run:
        return []
    with lifetime.importing():  # torch with it, which no other input needs
        from megatron_lwz.cli.pairs_from_run import read_siblings
    return read_siblings(options.from_run, counts, **_sibling_rules(options))


def _sibling_rules(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("steps", "component", "gap")} if options.from_run else {}


def _sides(
    documents: Sequence[Document],
    human: Sequence[PreferencePair],
    rules: MakeRules,
    held_out: float,
    counts: Counter[str],
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Returns (training, held-out) pairs: generated ones first, then those that were labelled."""
    sides: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    parted = split_documents(documents, document_keys, held_out=held_out, seed=rules.seed)
    for side, part in zip(sides, parted, strict=True):
        made, missed = make_pairs(part, rules)
        side += made
        counts.update({f"not possible: {kind}": count for kind, count in missed.items()})
    for side, pairs in zip(sides, split_documents(human, pair_keys, held_out=held_out, seed=rules.seed), strict=True):
        side += pairs
    kept = without_shared(*sides)
    counts["held-out pairs left out: a text is on the training side"] = len(sides[1]) - len(kept)
    return sides[0], kept


def _read(
    files: Sequence[Path], reader: Callable[[Path], Iterator[T | str]], what: str, counts: Counter[str]
) -> Iterator[T]:
    with Bar("read") as bar:
        for number, file in enumerate(files):
            for item in reader(file):
                counts[f"{what} read"] += 1
                if isinstance(item, str):
                    counts[f"{what} left out: {item}"] += 1
                else:
                    yield item
                if counts[f"{what} read"] % 1000 == 0:
                    bar(number, len(files), f"files, {counts[f'{what} read']} rows")
        bar(len(files), len(files), f"files, {counts[f'{what} read']} rows")


def _part(path: Path) -> Path:
    """Returns the name of a file until it is whole."""
    return path.with_name(path.name + ".part")


def _replace(path: Path, text: str) -> None:
    """Writes the whole file, or leaves the old one in place on an error."""
    part = _part(path)
    try:
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(path)
    except OSError as error:
        raise DataError(path, f"cannot be written {refusal(error)}") from error


def _show(report: dict[str, Any], out: Path) -> None:
    table = Table(title=str(out), title_justify="left")
    for column in ("", "train", "held out"):
        table.add_column(column, justify="right" if column else "left")
    train, held_out = report["train"], report["held_out"]
    for name in ("pairs", "documents", "length_only_accuracy"):
        table.add_row(name.replace("_", " "), str(train[name]), str(held_out[name]))
    for group in ("kinds", "languages"):
        for name in train[group] | held_out[group]:
            table.add_row(name, str(train[group].get(name, 0)), str(held_out[group].get(name, 0)))
    common.console().print(table)
    for name, count in report["counts"].items():
        common.console().print(f"{name}: {count}", markup=False)


def _parser() -> argparse.ArgumentParser:
    rules = MakeRules()
    parser = common.Parser(prog="lwz pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", metavar="PATH", type=Path, action="append", default=[], help="file or folder")
    parser.add_argument("--pairs", metavar="PATH", type=Path, action="append", default=[], help="file or folder")
    parser.add_argument(
        "--from-run", metavar="RUN", type=Path, action="append", default=[], help="folder of a GRPO run"
    )
    parser.add_argument(
        "--steps", metavar="A-B", type=option_types.steps, help="with --from-run: groups that these steps consumed"
    )
    parser.add_argument(
        "--component", metavar="NAME", help="with --from-run: rank by this score; default: by the run's advantages"
    )
    parser.add_argument(
        "--gap",
        type=option_types.not_negative_number,
        default=0.0,
        help="with --from-run: least difference between best and worst, in the unit of the ranking; default 0",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True)
    parser.add_argument("--held-out", type=option_types.share, default=0.1, help="share of the documents; default 0.1")
    parser.add_argument("--kinds", nargs="+", choices=list(CORRUPTIONS), help="default: all")
    parser.add_argument(
        "--per-document", type=option_types.positive, default=rules.per_document, help="pairs of a document"
    )
    parser.add_argument(
        "--tolerance", type=option_types.share, default=rules.tolerance, help="how much lengths may differ; default 0.1"
    )
    parser.add_argument("--any-length", action="store_true", help="do not match lengths")
    parser.add_argument("--seed", type=option_types.not_negative, default=rules.seed)
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
