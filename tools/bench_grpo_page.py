"""Writes the page and the JSON of bench_grpo.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_lwz.units import MIB

HEAD = """\
# A whole GRPO step beside TRL

    {command}

{date}, {device}, torch {torch}; TRL {trl} with torch {peer_torch} and transformers {transformers}, in an environment of
its own. A random Qwen2 of {shape}, groups of {group}, one step on policy, one thread per process. CPU seconds and memory
are those of all processes, ours / TRL; the median of the counted steps. The same figures as JSON: [{json}]({json}).

| new tokens | vocabulary | rollouts | CPU s | ratio | rollouts alone | the rest | s | ratio | MiB | ratio |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def write_page(page: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Writes the page, and beside it the figures as JSON."""
    figures = page.with_suffix(".json")
    figures.write_text(json.dumps(about | {"cases": rows}, indent=1) + "\n")
    head = HEAD.format(
        **{name: about[name] for name in ("command", "date", "device", "torch", "shape")},
        trl=about["peer"]["trl"], peer_torch=about["peer"]["torch"], transformers=about["peer"]["transformers"],
        group=8, json=figures.name,
    )  # fmt: skip
    page.write_text(head + "".join(map(line_of, rows)))


def line_of(row: dict[str, Any]) -> str:
    """Returns the row of a case in the table."""
    ours, peer = row["ours"], row["trl"]
    cells = [f"{row['length']:,}", f"{row['vocabulary']:,}", f"{row['batch']}"]
    cells += _pair(ours["cpu"], peer["cpu"])
    cells += _pair(ours["rollout_cpu"], peer["rollout_cpu"])[:1]
    cells += _pair(*(side["cpu"] - side["rollout_cpu"] for side in (ours, peer)))[:1]
    cells += _pair(ours["seconds"], peer["seconds"])
    cells += _pair(ours["memory"] / MIB, peer["memory"] / MIB, digits=0)
    return f"| {' | '.join(cells)} |\n"


def _pair(ours: float, peer: float, digits: int = 1) -> list[str]:
    """Returns both figures in one cell, and their ratio."""
    return [f"{ours:,.{digits}f} / {peer:,.{digits}f}", f"{ours / peer:.2f}"]
