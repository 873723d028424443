"""Reads the rollouts in a run's journal as responses, so that a run is evaluated without generating anything again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.pinned import unfinished
from megatron_lwz.evaluation.responses import Response, cut
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import Group


def read_run(run_dir: Path, step: int | None = None) -> tuple[list[Response], str]:
    """Returns rollouts of a run as responses, and a note that says which rollouts they are.

    They are the rollouts of the held-out prompts after `step` updates; None takes the newest complete evaluation. In a
    run without held-out prompts, they are those that training step `step` used. Raises DataError.
    """
    path = RunPaths(run_dir).journal
    with JournalReader(path) as reader:
        held_out: dict[int, dict[str, Group]] = {}
        for group in reader.groups("evaluation"):
            # A step that was redone after a kill was evaluated again. Ids decrease, so the latest comes first.
            held_out.setdefault(group.admitted, {}).setdefault(group.prompt.id, group)
        if held_out:
            begun = unfinished(run_dir)
            found = _pick(
                path, sorted(held_out, key=lambda s: (s not in begun, s)), step, "evaluations on held-out prompts"
            )
            note = ", as far as they are written" if found in begun else ""
            return responses_of(held_out[found].values()), f"held-out prompts after step {found}{note}"
        found = _pick(path, sorted(set(reader.consumed().values())), step, "training steps")
        return responses_of(reader.groups(consumed_at=found)), f"training step {found}"


def _pick(path: Path, there: list[int], step: int | None, what: str) -> int:
    if not there:
        raise DataError(path, "no rollouts were finished yet")
    if step is not None and step not in there:
        raise DataError(path, f"no step {step}: there are {what} at {', '.join(map(str, sorted(there)))}")
    return there[-1] if step is None else step


def responses_of(groups: Iterable[Group]) -> list[Response]:
    """Returns the finished rollouts of groups as responses. Several rollouts of one prompt are its samples."""
    found: list[Response] = []
    samples: dict[str, int] = {}
    for group in groups:
        prompt = group.prompt
        for rollout in group.rollouts:
            written = cut(rollout.text, prompt.template, stop=rollout.stop, prompt=prompt.text)
            found.append(
                Response(
                    prompt.id,
                    written.answer,
                    samples.setdefault(prompt.id, 0),
                    prompt.text,
                    prompt.length,
                    rollout.finish_reason.value,
                    prompt.template,
                    written.fault,
                    prompt.language,
                )
            )
            samples[prompt.id] += 1
    return found
