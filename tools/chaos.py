#!/usr/bin/env python
"""A campaign of faults against a tiny GRPO run: `python tools/chaos.py --faults 250 --page docs/reliability.md`.

A run is undisturbed once for each layout. Others are disturbed (processes killed, cut and refused writes, frozen processes,
broken connections, a reward model that is down, a jumping clock) at moments that are drawn from a seed, started again until
they end, and compared: steps, rollouts, metrics, weights and optimizer state. Exit status 1 if a promise of
docs/reliability.md broke.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.chaos import campaign
from tests.support.chaos.control import preloaded

BEGIN, END = "<!-- tools/chaos.py -->", "<!-- end -->"


def main() -> int:
    """Runs the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, default=100, help="end after so many faults")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="steps of a run")
    parser.add_argument("--short", action="store_true", help="one run, six faults: the form of the test suite")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/lwz_chaos"), help="is emptied first")
    parser.add_argument("--json", type=Path, help="write all events there")
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    given = parser.parse_args()
    preloaded(__file__)
    result = campaign.run(
        given.folder,
        faults=len(campaign.SHORT) if given.short else given.faults,
        seed=given.seed,
        steps=given.steps,
        short=given.short,
        seconds=60 * given.minutes,
    )
    said = campaign.table(result)
    print(said)
    print(f"at the moments were being written: {campaign.places(result)}")
    if given.json is not None:
        campaign.write(result, given.json)
    if given.page is not None:
        _write_page(given.page, _section(result, given.seed))
    print("a promise broke:" if result.broken else "every promise held", *result.wrong.items(), sep="\n  ")
    return int(result.broken)


def _section(result: campaign.Result, seed: int) -> str:
    runs = ", ".join(f"{count} × {layout}" for layout, count in sorted(result.runs.items()))
    return (
        f"    python tools/chaos.py --faults {len(result.events)} --seed {seed}\n\n"
        f"{result.kills} kills and {len(result.events) - result.kills} other faults in {sum(result.runs.values())} runs "
        f"({runs}), whose journals held {result.tokens:,} tokens: **{result.lost} tokens lost**, "
        f"{len(result.wrong)} runs with another outcome than the undisturbed one.\n\n"
        f"{campaign.table(result)}\n\nWhat was being written at the moments: {campaign.places(result)}.\n"
    )


def _write_page(page: Path, section: str) -> None:
    text = page.read_text(encoding="utf-8")
    marked = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not marked.search(text):
        sys.exit(f"{page}: has no marks {BEGIN} and {END}")
    page.write_text(marked.sub(lambda _: f"{BEGIN}\n\n{section}\n{END}", text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
