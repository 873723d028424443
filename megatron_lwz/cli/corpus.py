"""Prepares a pretraining corpus: texts of several sources → Megatron's indexed datasets and a manifest.

    lwz corpus SPEC.yaml --out DIR [--workers N] [--unit-mib 32]

SPEC names the tokenizer and the sources (JSONL, Parquet, folders of text, a run's journal) with their blend weights;
docs/corpus.md describes it. After a kill the same command resumes. With --verify every file of the corpus in DIR is
compared with the checksums in its manifest, and nothing is prepared. `data.corpus: [DIR/manifest.json]` trains on the
result.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_lwz.cli import common, option_types
from megatron_lwz.data.corpora.distil import best_rollouts
from megatron_lwz.data.corpora.prepare import prepare
from megatron_lwz.data.corpora.report import table
from megatron_lwz.data.corpora.spec import SourceSpec, read_spec
from megatron_lwz.data.manifest import check_parts
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.units import MIB


def main(argv: Sequence[str]) -> None:
    """Parses the command line, prepares the corpus, and prints one line per source."""
    parser = common.Parser(prog="lwz corpus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, metavar="SPEC.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--workers", type=option_types.positive, default=os.cpu_count(), help="processes; default: one per core"
    )
    parser.add_argument(
        "--unit-mib",
        type=option_types.positive_number,
        default=32.0,
        help="text per unit of work; a kill loses at most these",
    )
    parser.add_argument("--verify", action="store_true", help="compare a finished corpus with its checksums")
    arguments = parser.parse_args(argv)
    if arguments.verify:
        common.console().print(
            f"{arguments.out}: {check_parts(arguments.out)} parts are as they were written", markup=False
        )
        return
    common.check_folder(arguments.out, "--out")
    manifest = prepare(
        read_spec(arguments.spec),
        arguments.out,
        workers=arguments.workers,
        unit_bytes=max(1, int(arguments.unit_mib * MIB)),
        distil=distil,
        say=lambda line: common.console(stderr=True).print(line, markup=False),
    )
    common.console().print("\n".join(table(manifest)), markup=False)


def distil(source: SourceSpec, path: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the best-rewarded rollouts of a journal."""
    from megatron_lwz.rollout.journal_reader import (
        JournalReader,  # imports torch, which the workers do not need
    )

    with JournalReader(path) as reader:
        yield from best_rollouts(reader.groups, source.journal, lambda ids: tokenizer.decode(ids, skip_special=False))


if __name__ == "__main__":
    sys.exit(common.run(main))
