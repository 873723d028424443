"""`python tools/plan_page.py`: makes docs/benchmarks/plans.md, or the parts of it that are named, from plans on fake GPUs.

Nothing runs on a GPU. CPU time and memory are those of all processes of a part, as the kernel counts them: they do not
depend on what else the machine does, as wall time would.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import megatron.core
import torch
from rehearsal_examples import EXAMPLES, Example, what_it_does

from megatron_lwz.cli.plan import MOST
from megatron_lwz.cli.plan_setting import setting_of, watch
from megatron_lwz.cli.plan_table import rows
from megatron_lwz.config import Config, load_config, validate
from megatron_lwz.config.presets import PRESETS
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.dry_run import longest_sequence
from megatron_lwz.planner.hardware import gpu
from megatron_lwz.planner.plan import Plan, Setting, make_plan
from megatron_lwz.planner.rehearsals import Rehearsals
from megatron_lwz.planner.search import Learned, search
from megatron_lwz.planner.simulation.lengths import Drawn, quantile_of
from megatron_lwz.planner.simulation.numbers import setting_of as simulated
from megatron_lwz.planner.simulation.outcome import simulate
from megatron_lwz.planner.simulation.planned import planned
from megatron_lwz.planner.simulation.setting import WeightSync
from megatron_lwz.planner.timing import Layout
from megatron_lwz.planner.transfers import Route, Transfer, deltas, disk, from_rank_0, resharded
from megatron_lwz.units import GIB

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "plans.md"
GPUS = [8, 16, 32, 64, 128, 256, 512]
HEAD = (
    "config", "card", "engines", "layout", "recompute", "tokens per pack", "peak GiB", "instant", "rollout s", "training s",
    "a step s", "",
)  # fmt: skip
INTRO = """# Plans: which layout, does it fit, how long

    python tools/plan_page.py [PART …]      # {parts}; default: all

**Nothing here ran on a GPU.** Memory is rehearsed: the project's own code on fake GPUs ([planning.md](../planning.md)). Times are
formulas with the assumptions that every `lwz plan` prints; they compare layouts and may be wrong by a factor of two. Each part says
of which day and versions it is, and what it took: CPU seconds of all processes without the planner's own imports (some 5 s a
command), and at most so much memory (the largest of the planner, plus twice the largest of its rehearsals, since the worker and its
current case live at once).
"""


def main() -> None:
    """Makes the named parts again and leaves the others as they are on the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"{unknown[0]}: choose from {', '.join(PARTS)}")
    for name in chosen:
        sections = _sections()
        sections[PARTS[name][0]] = "\n".join(_made(PARTS[name][1]))
        text = INTRO.format(parts=", ".join(PARTS))
        for title, _ in PARTS.values():
            if title in sections:
                text += f"\n## {title}\n\n{sections[title].strip()}\n"
        PAGE.write_text(text, encoding="utf-8")


def _sections() -> dict[str, str]:
    """Returns title → text of what the page has now."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return dict(part.split("\n", 1) for part in text.split("\n## ")[1:])


def _made(part: Callable[[Rehearsals], Iterator[str]]) -> Iterator[str]:
    """Yields the lines of a part, under a line about when and how it was made."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with Rehearsals(watch) as rehearsals:
        lines = list(part(rehearsals))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() - began
    spent += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    most = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 2 * after.ru_maxrss) / 2**20
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, megatron-core {megatron.core.__version__}"
    )
    yield f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {versions}; {spent:,.0f} CPU seconds, at most {most:.1f} GiB."
    yield ""
    yield from lines


def _options(gpus: int, card: str, stage: str = "grpo") -> argparse.Namespace:
    return argparse.Namespace(
        gpus=gpus, gpu=card, stage=stage, engine_gpus=None, engine_tensor=None, mean_tokens=None, table=GPUS
    )


def _table(path: str, preset: str) -> Callable[[Rehearsals], Iterator[str]]:
    def made(rehearsals: Rehearsals) -> Iterator[str]:
        config = load_config(ROOT / "examples" / path, ["model.hf=null", f"model.preset={preset}"])
        yield f"    lwz plan examples/{path} model.hf=null model.preset={preset} --gpu h800-80g \\"
        yield f"        --table {','.join(map(str, GPUS))}"
        yield ""
        yield from rows(config, _options(0, "h800-80g"), MOST, rehearsals)

    return made


def _head() -> Iterator[str]:
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{'---|' * len(HEAD)}"


def _line(name: str, plan: Plan, setting: Setting) -> str:
    training, engines = plan.config.training, setting.engines
    place = "–" if engines is None else f"{engines.count} × {engines.tensor}"
    cells = [name, setting.card.name.removeprefix("NVIDIA "), place, str(plan.layout), training.recompute]
    cells.append(f"{training.tokens_per_micro_batch:,}")
    if plan.ranks:
        rollout = f"{plan.seconds['rollout']:,.0f}" if "rollout" in plan.seconds else "–"
        cells += [f"{plan.peak / GIB:,.1f} of {setting.card.memory / GIB:,.1f}", plan.worst[1], rollout]
        cells += [f"{plan.training_seconds:,.0f}", f"{plan.duration(setting)[0]:,.0f}"]
    else:
        cells += ["–"] * 5
    return f"| {' | '.join([*cells, plan.reason or 'fits'])} |"


def _both(
    name: str, config: Config, options: argparse.Namespace, rehearsals: Rehearsals, *, keep: int = 1
) -> Iterator[str]:
    """Yields the config's own layout, and those that a search finds (none with `keep` 0)."""
    trainers, setting = setting_of(config, options)
    now = make_plan(config, trainers, setting, rehearsals)
    yield _line(f"{name}, as it stands", now, setting)
    found = search(config, trainers, setting, Learned(rehearsals), keep=keep, most=MOST) if keep else []
    fitting = sorted((plan for plan in found if plan.reason is None), key=lambda plan: plan.duration(setting)[0])
    yield from (_line("found", plan, setting) for plan in fitting)
    if found and not fitting:
        yield _line("found none; the last one tried", found[-1], setting)


def _paper(rehearsals: Rehearsals) -> Iterator[str]:
    config = Example("longwriter_zero_32b_64xh100/config.yaml", "grpo", 32, "qwen2.5-32b").config()
    tokens = f"{longest_sequence(config, 'grpo'):,} tokens of prompt and response"
    yield f"Qwen2.5-32B, {tokens}, 64 × H800: half of them train, with the layout and the engines of the 32B example."
    yield ""
    yield from _head()
    yield from _both("32B", config, _options(64, "h800-80g"), rehearsals, keep=3)


def _examples(rehearsals: Rehearsals) -> Iterator[str]:
    alike: dict[str, list[Example]] = {}
    for example in EXAMPLES:
        alike.setdefault(what_it_does(next(iter(example.cases()))), []).append(example)
    yield "With their engines, as section `launch` or the script starts them. What is made for CPUs is planned as if on one or two GPUs."
    yield ""
    yield from _head()
    for first, *others in alike.values():
        config, engines = first.config(), first.config().launch.engines
        if first.stage == "sft":  # what the scripts name on the command line
            config = config.model_copy(
                update={"data": config.data.model_copy(update={"instructions": ("rows.jsonl",)})}
            )
        gpus = first.world + max(1, engines.nodes) * engines.per_node * engines.gpus * (first.stage == "grpo")
        also = f" (and {', '.join(Path(other.path).stem for other in others)})" if others else ""
        name = f"`{first.path}`{also}"
        card = "a800-80g" if "a800" in first.path else "h100-80g"
        yield from _both(name, config, _options(gpus, card, first.stage), rehearsals, keep=int(first.for_gpus))


def _wish(rehearsals: Rehearsals) -> Iterator[str]:
    yield "Qwen3-4B on 4 × A800-80GB ([THUDM/LongWriter#44](https://github.com/THUDM/LongWriter/issues/44)). vLLM shares the four cards"
    yield "with the trainer (`rollout.colocated`), everything else is the recipe's default: responses of up to 14,000 tokens, 1,024 per"
    yield 'step. `examples/qwen3_4b_4xa800` does not share: two cards train and two write (under "The examples").'
    yield ""
    yield from _head()
    rollout = {"engine": "vllm", "colocated": True, "urls": ["http://127.0.0.1:8000"]}
    tree = {"model": {"preset": "qwen3-4b"}, "data": {"prompts": "prompts.jsonl"}, "rollout": rollout}
    yield from _both("Qwen3-4B", validate(tree), _options(4, "a800-80g"), rehearsals, keep=3)


SIZES = {
    "7b": (Layout(4, 1, 1, 1, 2), 1),
    "32b": (Layout(8, 2, 1, 1, 2), 4),
    "72b": (Layout(8, 2, 4, 1, 1), 8),
}
"""Preset → the trainer's layout, and the GPUs of each of eight engines."""
CHANGED = 0.01
"""Share of the bf16 weights that a step changes: at most, says arXiv 2602.03839 of its runs. Not measured here."""


def _ways(route: Route) -> list[Transfer]:
    return [disk(route), from_rank_0(route), resharded(route), deltas(route, CHANGED)]


def _sync(rehearsals: Rehearsals) -> Iterator[str]:
    card = gpu("h800-80g")
    yield "Eight engines on H800, a bucket of 1 GiB; formulas of `megatron_lwz/planner/transfers.py` with the assumed shares of the links."
    yield "*Sent* is the most that one adapter (or the file system) carries, *arrives* what one engine GPU gets, *before* the time in"
    yield "which engines go on writing, *held* that in which they hold their streams; memory is beside the trainer's state and the"
    yield "engine's weights."
    yield ""
    head = (
        "model", "trainer", "engines", "way", "sent GB", "arrives GB", "before s", "held s", "trainer GiB", "engine GiB",
    )  # fmt: skip
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for size, (layout, gpus) in SIZES.items():
        route = Route(PRESETS[f"qwen2.5-{size}"], layout, 8, gpus, card, 2**30)
        for way in _ways(route):
            numbers = (f"{way.sent / 1e9:,.2f}", f"{way.received / 1e9:,.2f}", f"{way.before:,.2f}", f"{way.held:,.2f}")
            memory = (f"{way.trainer_memory / GIB:,.2f}", f"{way.engine_memory / GIB:,.2f}")
            yield f"| {' | '.join((size.upper(), str(layout), f'8 × {gpus}', way.name, *numbers, *memory))} |"
    yield ""
    yield "A step of the paper's run with each of them, simulated (`lwz simulate`), synchronous and one step ahead:"
    yield ""
    yield "| way | synchronous s | one step ahead s |"
    yield "|---|---|---|"
    config = Example("longwriter_zero_32b_64xh100/config.yaml", "grpo", 32, "qwen2.5-32b").config()
    trainers, setting = setting_of(config, _options(64, "h800-80g"))
    lengths = Drawn(quantile_of("uniform:7000"), 14000, int(ASSUMED.prompt_tokens.value), config.grpo.group_size)
    numbers_of_plan = planned(config, trainers, setting, lengths, rehearsals)
    layout, gpus = SIZES["32b"]
    for way in _ways(Route(PRESETS["qwen2.5-32b"], layout, 8, gpus, card, 2**30)):
        ours = replace(numbers_of_plan, sync=WeightSync(way.before, way.held))
        seconds = [simulate(simulated(config, ours, steps=20, staleness=k), lengths).step_seconds for k in (0, 1)]
        yield f"| {way.name} | {seconds[0]:,.1f} | {seconds[1]:,.1f} |"


PARTS: dict[str, tuple[str, Callable[[Rehearsals], Iterator[str]]]] = {
    "paper": ("The paper's run", _paper),
    "examples": ("The examples", _examples),
    "wish": ("Qwen3-4B on four A800", _wish),
    "sync": ("Weight sync at scale", _sync),
    "7b": ("Qwen2.5-7B on 8 to 512 H800", _table("qwen2.5_7b_8xh100/config.yaml", "qwen2.5-7b")),
    "32b": ("Qwen2.5-32B on 8 to 512 H800", _table("longwriter_zero_32b_64xh100/config.yaml", "qwen2.5-32b")),
}
"""Name → title, and what makes its lines."""

if __name__ == "__main__":
    main()
