"""`lwz evaluate <what> …`: evaluations of writing, with and without a judge."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_lwz.cli import common, lifetime

COMMANDS = {
    "generate": ("megatron_lwz.cli.evaluate_generate", "responses to any prompt file, from any engine or a checkpoint"),
    "longbench-write": ("megatron_lwz.cli.evaluate_longbench_write", "length and quality scores, LongWrite-Ruler"),
    "writing-bench": ("megatron_lwz.cli.evaluate_writing_bench", "WritingBench: domains and requirements, both eras"),
    "hello-bench": ("megatron_lwz.cli.evaluate_hello_bench", "HelloBench: checklists of five tasks, weighted"),
    "longgen-bench": (
        "megatron_lwz.cli.evaluate_longgen_bench",
        "LongGenBench: entries written, and what they contain",
    ),
    "constory": (
        "megatron_lwz.cli.evaluate_constory",
        "ConStory-Bench: contradictions in stories, by a judge and rules",
    ),
    "arena-write": ("megatron_lwz.cli.evaluate_arena_write", "pairwise judgements: Elo, win rates, the judge's bias"),
    "preferences": ("megatron_lwz.cli.evaluate_preferences", "reward components against human choices: which agree"),
    "compare": ("megatron_lwz.cli.evaluate_compare", "several runs side by side, with the published figures apart"),
    "curve": ("megatron_lwz.cli.evaluate_curve", "quality, slop, repetition over the position: where a text decays"),
    "text": ("megatron_lwz.cli.evaluate_text", "length, repetition, truncation, format, language: needs no judge"),
}
"""Name → (module with `main(argv)`, what it does)."""


def main(argv: Sequence[str]) -> None:
    """Runs the evaluation `argv[0]` with the other arguments. Raises LwzError."""
    if argv and argv[0] in COMMANDS:
        lifetime.import_command(COMMANDS[argv[0]][0]).main(argv[1:])
        return
    if argv and argv[0] not in ("-h", "--help"):
        raise common.UsageError(f"lwz evaluate has no '{argv[0]}': choose one of {', '.join(COMMANDS)}")
    lines = [f"  {name:<16} {what}" for name, (_, what) in COMMANDS.items()]
    common.console().print("\n".join(["usage: lwz evaluate <what> … [--help]", "", *lines]), markup=False)


if __name__ == "__main__":
    sys.exit(common.run(main))
