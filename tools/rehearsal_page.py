"""The page docs/benchmarks/rehearsal.md: tables of what a rehearsal counted, one part of the page per part of the tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_lwz.rehearsal.case import Report
from megatron_lwz.units import MIB

CARD = 80 * 10**9
"""Bytes: what a rank may allocate. A card of "80 GB" has 81,559 MiB; the rest is for the CUDA context and NCCL."""
MOST_WAITS = 12
"""Waits for the GPU per step, besides those of its packs."""
MOST_ADDED = 1.3
"""Saving and loading may add so many times the rank's shard to device and host."""
PER_PACK = ("forward+backward", "log-probs", "forward")
OTHERS = "other ranks"
"""Phase of what the rehearsal does in the place of other ranks: no wait of this one."""
BESIDES = ("step", "export", "load", "save", "save without a copy")


@dataclass(frozen=True)
class Part:
    """A part of the page."""

    heading: str
    body: Callable[[Sequence[Report]], str]


def result(report: Report) -> str:
    """Returns `passed`, or in one line why not."""
    if report.error is not None:
        return report.error
    if report.peak > CARD:
        return f"does not fit: {report.peak / MIB:,.0f} of {CARD / MIB:,.0f} MiB"
    if (besides := report.waits_in("step")) > MOST_WAITS:
        return f"{besides} waits in a step besides those of its packs, at most {MOST_WAITS}"
    if report.notes.get("added") and (times := _added(report)) > MOST_ADDED:
        return f"saving or loading adds {times:.2f} times the rank's shard, at most {MOST_ADDED}"
    return "passed"


def _added(report: Report) -> float:
    """Returns the most that a load or save added to device or host, in shards of the rank."""
    return max(size for pair in report.notes["added"].values() for size in pair) / report.notes["shard"]


def merge(page: str, parts: dict[str, str], order: Sequence[str], title: str, end: str) -> str:
    """Returns the page with new bodies for some headings of `order`; the others keep what the page says of them."""
    kept = {heading: body.strip() for heading, _, body in (p.partition("\n") for p in page.split("\n## ")[1:])}
    bodies = {heading: parts.get(heading, kept.get(heading)) for heading in order}
    found = [f"## {heading}\n\n{body.strip()}\n" for heading, body in bodies.items() if body is not None]
    missing = [f"- {heading}" for heading, body in bodies.items() if body is None]
    if missing:
        end = "\n".join([end, "Not rehearsed yet:\n", *missing, ""])
    return "\n".join([title, *found, end])


def layouts(reports: Sequence[Report]) -> str:
    """Returns the table of the small models and the places that wait."""
    return "\n".join([_SMALL, _table(reports), "\n### Where the host waits\n", _places(reports)])


def examples(reports: Sequence[Report]) -> str:
    """Returns the tables of the examples at their true sizes, and of their checkpoints."""
    steps = [report for report in reports if "shard" not in report.notes]
    saved = [report for report in reports if "shard" in report.notes]
    return "\n".join([_FULL, _table(steps), _phases(steps), "\n### Checkpoints\n", _CHECKPOINTS, _checkpoints(saved)])


def engine(reports: Sequence[Report]) -> str:
    """Returns the table of the small models with Transformer Engine, and the calls of its extension."""
    names = sorted({name for report in reports for name in report.launches if name.startswith("transformer_engine.")})
    called = ", ".join(f"`{name.partition('.')[2]}`" for name in names)
    return "\n".join(
        [_ENGINE.format(called=called), _table(reports), "\n### Where the host waits then\n", _places(reports)]
    )


def _marked(report: Report) -> str:
    said = result(report)
    return said if said == "passed" else f"**{said}**"


def _table(reports: Sequence[Report]) -> str:
    lines = [
        "| case | parameters | packs | launches | waits per pack | waits besides | peak MiB | of 80 GB | host MiB "
        "| process MiB | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        packs = report.micro_batches
        lines.append(
            f"| {report.name} | {report.parameters:,} | {packs or '–'} | {sum(report.launches.values()):,} "
            f"| {f'{report.waits_in(*PER_PACK) / packs:g}' if packs else '–'} | {report.waits_in(*BESIDES)} "
            f"| {report.peak / MIB:,.1f} | {report.peak / CARD:.0%} | {report.host_peak / MIB:,.1f} "
            f"| {report.grown / MIB:,.0f} | {_marked(report)} |"
        )
    return "\n".join(lines)


def _checkpoints(reports: Sequence[Report]) -> str:
    lines = [
        "| case | shard MiB | written MiB | load: device, host | save: device, host | without a copy: device, host "
        "| largest ÷ shard | waits | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        shard, added = report.notes["shard"], report.notes["added"]
        cells = [", ".join(f"{size / MIB:,.1f}" for size in added[phase]) for phase in BESIDES[2:]]
        lines.append(
            f"| {report.name} | {shard / MIB:,.1f} | {report.notes['written'] / MIB:,.1f} | {' | '.join(cells)} "
            f"| {_added(report):.2f} | {', '.join(str(report.waits_in(phase)) for phase in BESIDES[2:])} "
            f"| {_marked(report)} |"
        )
    return "\n".join(lines)


def _places(reports: Sequence[Report]) -> str:
    """Returns the places that wait, by phase, with the largest count in any case."""
    found: Counter[tuple[str, str, str]] = Counter()
    for report in reports:
        here: Counter[tuple[str, str, str]] = Counter()
        for row in (row for row in report.waits if row.phase != OTHERS):
            here[row.phase, row.place, row.what] += row.count
        for key, count in here.items():
            found[key] = max(found[key], count)
    lines = ["| phase | place | what | at most |", "|---|---|---|---|"]
    rows = [(*key, count) for key, count in sorted(found.items())]
    return "\n".join([*lines, *(f"| {phase} | `{place}` | {what} | {count} |" for phase, place, what, count in rows)])


def _phases(reports: Sequence[Report]) -> str:
    names = list(dict.fromkeys(name for report in reports for name in report.peaks if name != "start"))
    lines = ["", f"| peak MiB in the phase | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for report in reports:
        values = (f"{report.peaks[name] / MIB:,.0f}" if name in report.peaks else "–" for name in names)
        lines.append(f"| {report.name} | {' | '.join(values)} |")
    return "\n".join(lines)


TITLE = """# A rehearsal of the GPU code, without a GPU

    python tools/rehearse.py --full --page {page}

**Nothing here ran on a GPU.** The product's own code ran as one rank of each layout on fake CUDA tensors, which have
shapes, dtypes and a device but no content, over a process group without other ranks. Every launch of a Triton kernel
was checked (tensors on the device, dtypes, sizes, strides, constants, grid) and not run. `--part` makes one part of the
page again; each part says of which commit it is. The same figures as JSON: [{json}]({json}).

*Waits per pack* are in the forward and backward passes: each stops the host until the GPU has caught up. *Waits
besides* are once per step, export, load or save. *Peak* is the highest allocated device memory of the rank, beside 80 GB
(76,294 MiB); *host* is that of copies in host memory that a run would make. *Process* is how much memory the rehearsal's
own process took for the case, where it was counted: it must not grow with the model.
"""
STAMP = (
    "{day}, commit {commit}, Python {python}, torch {torch}, megatron-core {megatron}{besides}, `--part {part}`.\n\n"
)
_SMALL = "Models of 2 layers (VPP: 4), hidden size 256, bf16; two packs of 512 tokens per step.\n"
_FULL = """Every config of `examples/` that trains: its own number of layers, sizes, vocabulary, layout and number of ranks, precision,
recomputation, overlap and cap of tokens per pack; sequences as long as the config allows. A step has one pack per
stage of the pipeline and data-parallel rank, the least that fills the pipeline; further packs need no further memory.
One rank per kind, the first, middle and last stage of the pipeline; no example has more than one stage, so there is one
kind. Configs that a rank cannot tell apart are rehearsed once. A step that waits for the GPU more than 12 times besides its
packs is red, and so is a rank over 80 GB. The configs for CPUs are rehearsed as if there was a GPU, and so are
not proof that they fit one.
"""
_CHECKPOINTS = f"""What saving and loading add to a rank's memory, beside the state that it holds (the shard: weights, fp32 masters and both
moments of Adam). The files are written and read by the product's own code, but keep shapes only. *Save* is the copy in
host memory of `checkpoint.asynchronous: true`, of the part that this rank writes; *without a copy* is `false`; a load is
in the same layout. Neither may add more than {MOST_ADDED} shards. Waits are one per block, of at most 32 MiB.
"""
_ENGINE = """The layouts of the first part, with Transformer Engine's layers, attention and Adam: its own Python and Megatron's wrappers,
over a stand-in for its compiled extension. The stand-in checks that tensors are on the device, and their dtypes, shapes
and strides, and returns tensors of the right shapes. Its workspace for products (32 MiB on such a GPU) comes on top of the
peak. Functions that were called: {called}.
"""
LIMITS = """## What this does not show

Time, values, and what several ranks do to each other. Memory: NCCL's buffers, the CUDA context, libraries' workspaces
and fragmentation come on top of the peak. Parking (`rollout.colocated`), the embedded engine's decoder, flash-attn and the
CUDA epilogue do not run on fake tensors and are not rehearsed. [What only a GPU can show](../gpu_check.md#what-only-a-gpu-can-show) is
listed with the commands that show it.
"""
PARTS = {
    "layouts": Part("Layouts and stages", layouts),
    "examples": Part("The examples at their true sizes", examples),
    "engine": Part("With Transformer Engine", engine),
}
