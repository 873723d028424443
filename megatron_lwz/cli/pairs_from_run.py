"""`lwz pairs --from-run RUN`: the best against the worst sibling of each prompt group in a GRPO run's journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_lwz.cli.evaluate_progress import Bar
from megatron_lwz.config import Config, load_config
from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preferences.siblings import sibling_pairs
from megatron_lwz.errors import DataError, LwzError
from megatron_lwz.orchestrator.experience import group_advantages
from megatron_lwz.rewards.composite import component_sections
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import Group


def read_siblings(
    runs: Sequence[Path], counts: Counter[str], *, steps: tuple[int, int] | None, component: str | None, gap: float
) -> list[PreferencePair]:
    """Returns the pairs of the runs' journals, and counts what was left out. Raises LwzError.

    `steps`: only the groups that these training steps consumed. Siblings are ranked by the advantage that the run's
    config gives them, or by the score of one `component`; `gap` is the least difference of a pair, in the same unit.
    """
    pairs: list[PreferencePair] = []
    for run in runs:
        paths = RunPaths(run)
        config = load_config(paths.config)
        names = tuple(component_sections(config.reward))
        if component is not None and component not in names:
            raise LwzError(f"--component {component!r:.80}: no component of {run}, choose one of {', '.join(names)}")
        with JournalReader(paths.journal) as reader, reader.still(), Bar("groups") as bar:
            consumed = reader.consumed()
            ids = [number for number in reader.scored() if steps is None or _inside(consumed.get(number), steps)]
            if not ids:
                which = f"of steps {steps[0]} to {steps[1]}" if steps else "with scores"
                raise DataError(paths.journal, f"holds no group {which}: wait for the run, or choose other --steps")
            ranked = ((group, _values(group, config, names, component)) for group in _read(reader, ids, bar))
            found, left_out = sibling_pairs(ranked, gap=gap, source=run.resolve().name)
        pairs += found
        counts.update(left_out)
    return pairs


def _read(reader: JournalReader, ids: Sequence[int], bar: Bar) -> Iterator[Group]:
    for done, group in enumerate(reader.texts(ids), start=1):
        yield group
        bar(done, len(ids))


def _values(group: Group, config: Config, names: Sequence[str], component: str | None) -> list[float | None]:
    if component is not None:
        scores = [row.get(component) for row in group.scores]
        return [score.value if score is not None and score.valid else None for score in scores]
    found = group_advantages([group], config, names=names)
    rows = zip(found.total[0].tolist(), found.included[0].tolist(), strict=True)
    return [value if included else None for value, included in rows]


def _inside(step: int | None, steps: tuple[int, int]) -> bool:
    return step is not None and steps[0] <= step <= steps[1]
