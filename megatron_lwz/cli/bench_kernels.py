"""`lwz bench-kernels`: times our log-prob op beside plain torch, bare matrix products and other libraries; measures memory and error.

    lwz bench-kernels [--shapes 2048x896x151936,…] [--ways in\\ forward,plain] [--peers] [--json out.json] [--markdown out.md]

A shape is tokens × hidden × vocabulary; `--shapes gpu` are those of a 32B policy at TP 8, a 7B and a 0.5B policy. Every
way computes log-probs and, ours, entropy and log-sum-exp. `extra` is the peak memory beyond the inputs (resident memory
on a CPU, allocated memory on a GPU) during forward + backward; `workspace` is `extra` minus the two gradients, which
every way must hold. `of ceiling` compares 6·T·H·V FLOP, which the products need without recomputation, with the rate of
the bare products in the same run. `error` is the largest difference of a log-prob from fp64, `dX error` the gradient's
relative one, both on 16 rows. Seconds are wall time on a GPU. On a CPU they are CPU time over all threads, which other
work disturbs least. The ways take turns inside one process. The fastest repeat counts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.table import Table

from megatron_lwz.cli import common, option_types
from megatron_lwz.config.model import OLD_BACKEND_NAMES
from megatron_lwz.kernels import settings
from megatron_lwz.kernels.bench.measure import Figure, make_inputs, measure
from megatron_lwz.kernels.bench.ways import Way, peers, standard
from megatron_lwz.units import MIB

GPU_SHAPES = "16384x5120x19008,16384x3584x152064,32768x896x151936"
CPU_SHAPES = "512x896x32768,512x128x151936"

COLUMNS = (
    "way",
    "fwd only s",
    "fwd+bwd s",
    "ratio",
    "of ceiling",
    "extra MiB",
    "ratio",
    "workspace MiB",
    "error",
    "dX error",
)


def rows_of(figures: list[Figure]) -> list[tuple[str, ...]]:
    """Returns the cells of one shape's table; time and memory also as a ratio to `plain`."""
    plain = next((figure for figure in figures if figure.way == "plain"), None)
    return [
        (
            *(f.way, number(f.forward_seconds, ".4g"), f"{f.total_seconds:.4g}"),
            *(number(f.total_seconds / plain.total_seconds if plain else None, ".2f"), number(f.of_ceiling, ".2f")),
            *(f"{f.extra_mib:.0f}", number(f.extra_mib / max(plain.extra_mib, 1e-9) if plain else None, ".2f")),
            *(f"{f.workspace_mib:.0f}", number(f.error, ".1e"), number(f.hidden_gradient_error, ".1e")),
        )
        for f in figures
    ]


def by_shape(figures: list[Figure]) -> dict[str, list[Figure]]:
    """Returns title → the figures of one shape."""
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(f"T x H x V = {figure.shape}, {figure.dtype}", []).append(figure)
    return found


def show(figures: list[Figure]) -> None:
    """Prints one table per shape, on a narrow terminal or in a file at full width too."""
    console = common.console()
    console.width = max(console.width, 150)
    for title, of_shape in by_shape(figures).items():
        table = Table(*COLUMNS, title=title)
        for row in rows_of(of_shape):
            table.add_row(*row)
        console.print(table)


def write_markdown(figures: list[Figure], made: dict[str, object], path: Path) -> None:
    """Writes the same tables as a page, with the machine that they were measured on."""
    lines = ["# The log-prob op, measured", "", ", ".join(f"{key}: {value}" for key, value in made.items()), ""]
    for title, of_shape in by_shape(figures).items():
        lines += [f"## {title}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows_of(of_shape)] + [""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def number(value: float | None, form: str) -> str:
    """Formats a figure, or a dash where there is none."""
    return "–" if value is None or value != value else format(value, form)


def main(argv: Sequence[str]) -> None:
    """Measures, prints the tables and writes the files. Raises LwzError."""
    options = _parser().parse_args(list(argv))
    for path, option in ((options.json, "--json"), (options.markdown, "--markdown")):
        if path is not None and path.is_dir():
            raise common.UsageError(f"{option} {path}: is a folder, but a file will be written: name a file")
    if options.threads:
        torch.set_num_threads(options.threads)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    workspace = options.workspace_mib or (1024 if gpu else 256)
    settings.put(settings.Settings("torch", workspace * MIB, options.cache_mib * MIB))
    dtype = getattr(torch, options.dtype or ("bfloat16" if gpu else "float32"))
    ways = _ways(options)
    figures = []
    for shape in options.shapes or _shapes(GPU_SHAPES if gpu else CPU_SHAPES):
        figures += measure(shape, ways, make_inputs(shape, dtype, device), options.repeats)
    show(figures)
    made = {
        "date": datetime.date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "workspace_mib": workspace,
        "cache_mib": options.cache_mib,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**made, "figures": [asdict(f) for f in figures]}, indent=1) + "\n"
        options.json.write_text(text, encoding="utf-8")
        common.console().print(f"figures: {options.json}", markup=False)
    if options.markdown:
        write_markdown(figures, made, options.markdown)
        common.console().print(f"page: {options.markdown}", markup=False)


def _ways(options: argparse.Namespace) -> list[Way]:
    """Returns the ways that the options ask for. Raises UsageError if their names match none."""
    ways = [*standard(), *(peers() if options.peers else ())]
    if not options.ways:
        return ways
    parts = options.ways.split(",")
    parts += [f"ours, {OLD_BACKEND_NAMES[part]}" for part in parts if part in OLD_BACKEND_NAMES]
    chosen = [way for way in ways if any(part in way.name for part in parts)]
    if not chosen:
        raise common.UsageError(f"--ways {options.ways}: matches none of: {'; '.join(way.name for way in ways)}")
    return chosen


def _shapes(text: str) -> list[str]:
    """Parses TxHxV,… or `gpu`."""
    shapes = (GPU_SHAPES if text == "gpu" else text).split(",")
    for shape in shapes:
        if not re.fullmatch(r"([1-9]\d*x){2}[1-9]\d*", shape):
            raise argparse.ArgumentTypeError(
                f"{shape!r:.40} is no shape: give gpu, or tokens x hidden x vocabulary as in 512x896x32768"
            )
    return shapes


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(
        prog="lwz bench-kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=_shapes, help="TxHxV,… or gpu; default: gpu on a GPU, else two small ones")
    parser.add_argument("--ways", default="", help="only ways whose name contains one of these, comma-separated")
    parser.add_argument("--peers", action="store_true", help="other libraries too, where they are installed")
    parser.add_argument("--threads", type=option_types.not_negative, default=0, help="0: torch's own choice")
    parser.add_argument("--repeats", type=option_types.positive, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--workspace-mib", type=option_types.positive, help="default: 1024 on a GPU, else 256")
    parser.add_argument("--cache-mib", type=option_types.not_negative, default=0)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here too")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables here too")
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
