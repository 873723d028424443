"""`python -m tests.fuzz [NAME …] [--seconds S | --inputs N] [--seed K]`, or `--replay FILE`: fuzzes parsers one after the other.

An input that breaks a parser is saved in build/fuzz/NAME-….bin, with the command that repeats it.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import time
from pathlib import Path

from tests.fuzz.run import Failure, bound_this_process, check, fuzz
from tests.fuzz.targets import TARGETS, as_text, find

KEPT = Path("build/fuzz")


def main() -> int:
    """Returns the exit status: 0, or 1 if a parser failed."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(names)}; default: all")
    parser.add_argument("--seconds", type=float, help="CPU seconds per parser; default 60")
    parser.add_argument("--inputs", type=int, help="inputs per parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path, help="parse this saved input once, with its traceback")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no parser {sorted(unknown)[0]!r}: use one of {', '.join(names)}")
    logging.disable(logging.CRITICAL)
    bound_this_process()
    if options.replay is not None:
        target = find(options.names[0] if options.names else options.replay.name.rsplit("-", 1)[0])
        print(f"{target.name}: {'accepted' if check(target, options.replay.read_bytes()) else 'refused'}")
        return 0
    seconds = 60.0 if options.seconds is None and options.inputs is None else options.seconds
    return max([_run(name, options.seed, options.inputs, seconds) for name in options.names or names])


def _run(name: str, seed: int, inputs: int | None, seconds: float | None) -> int:
    begin = time.process_time()

    def show(count: int, accepted: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{name:18} {count:>10,} inputs, {accepted:,} accepted", end="", file=sys.stderr, flush=True)

    try:
        count, accepted = fuzz(find(name), seed=seed, inputs=inputs, seconds=seconds, shown=show)
    except Failure as failure:
        KEPT.mkdir(parents=True, exist_ok=True)
        path = KEPT / f"{name}-{hashlib.sha256(failure.data).hexdigest()[:12]}.bin"
        path.write_bytes(failure.data)
        print(
            f"{name}: FAILED: {failure}\n  input: {as_text(failure.data)}\n  repeat: python -m tests.fuzz --replay {path}",
            flush=True,
        )
        return 1
    print(
        f"{name:18} {count:>10,} inputs, {accepted:>9,} accepted, {time.process_time() - begin:6.0f} CPU s", flush=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
