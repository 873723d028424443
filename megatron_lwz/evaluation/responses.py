"""Splits a generated text into thinking and answer, and reads response files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.data.text.grammar import ANSWER_END, Template, parse_response, quoted_tags
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.tasks import ID_KEYS, Task, asked_length, prompt_of, row_id
from megatron_lwz.reading import Row, read_rows
from megatron_lwz.types import LengthRange

THINK_START, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class Written:
    """The parts of a response. `fault` names the first format fault, if a format was requested."""

    thinking: str
    answer: str
    fault: str | None = None


@dataclass(frozen=True)
class Response:
    """One row of a response file. A field that the file does not give is None.

    `text` is the answer alone, which is judged and measured. (`raw` in the file is the model's whole output.)
    """

    id: str
    text: str
    sample: int = 0
    prompt: str | None = None
    length: LengthRange | None = None
    finish_reason: str | None = None
    template: Template | None = None
    fault: str | None = None
    language: str | None = None


def cut(raw: str, template: Template | None, *, stop: str | None = None, prompt: str = "") -> Written:
    """Splits a model's output into thinking and answer.

    With a template (our policies), the text is parsed by the grammar: an answer that the stop `</answer>` ended is
    closed, and tags that `prompt` names are text. Without a template (chat models), the answer is the `<answer>`
    segment after the thinking if there is one, else all text after the first `</think>`, and empty when the thinking
    never ended. White space around the answer is removed.
    """
    if template is not None:
        parsed = parse_response(raw, template, stop=stop, quoted=quoted_tags(prompt))
        return Written((parsed.think or "").strip(), (parsed.answer or "").strip(), parsed.fault)
    before, closed, after = raw.partition(THINK_END)
    if not closed:
        opened = raw.lstrip().startswith(THINK_START)
        thinking, rest = (raw.lstrip().removeprefix(THINK_START), "") if opened else ("", raw)
    else:
        thinking, rest = before.lstrip().removeprefix(THINK_START), after
    if rest.lstrip().startswith("<answer>"):
        rest = parse_response(rest, "direct", stop=ANSWER_END).answer or ""
    return Written(thinking.strip(), rest.strip())


def read_responses(path: Path | str, tasks: Sequence[Task] = ()) -> list[Response]:
    """Reads the rows of a response file, in order.

    The file may be one of ours, or any with the key `response` and the benchmark's own keys.
    `tasks` supply prompt and length to rows that lack them. They are matched by id, or by prompt for rows without an
    id. A duplicate response is an error, because it is unclear which one counts. Raises DataError.
    """
    known = {task.id: task for task in tasks}
    by_prompt = {task.prompt: task.id for task in tasks}
    found: list[Response] = []
    first: dict[tuple[str, int], Row] = {}
    for row in read_rows(path):
        try:
            response = _response(row.value, len(found), known, by_prompt)
        except ValueError as error:
            raise row.error(error) from error
        key = (response.id, response.sample)
        if key in first:
            raise row.error(
                f"response {response.id!r} stands on {row.unit} {first[key].number} already; remove one of them"
            )
        first[key] = row
        found.append(response)
    if not found:
        raise DataError(path, "no responses in this file")
    return found


def sample_of(row: Mapping[str, Any]) -> int:
    """Returns the number of a response among those to one prompt, 0 for a row without it. Raises ValueError."""
    sample = row.get("sample")
    if sample is None:
        return 0
    if type(sample) is not int or sample < 0:
        raise ValueError(f"'sample' must be a whole number from 0, got {sample!r:.80}")
    return sample


def _response(
    row: Mapping[str, Any], position: int, known: Mapping[str, Task], by_prompt: Mapping[str, str]
) -> Response:
    identity = row_id(row, position)
    prompt = prompt_of(row)
    if all(row.get(key) is None for key in ID_KEYS):  # LongBench-Write has no ids, and its script's output has no order
        identity = by_prompt.get(str(prompt), identity)
    text = row.get("response")
    if not isinstance(text, str):
        raise ValueError(f"'response' must be a text, got {text!r:.80}; the row has {', '.join(row):.200}")
    task = known.get(identity)
    template = row.get("template") if row.get("template") in ("think", "direct") and "raw" in row else None
    fault = None
    if template is None:
        text = cut(text, None).answer  # files of other tools may still hold the thinking
    else:
        fault = cut(
            str(row["raw"]), template, stop=_text(row, "stop"), prompt=prompt or (task.prompt if task else "")
        ).fault
    return Response(
        identity,
        text,
        sample_of(row),
        prompt if prompt is not None else task.prompt if task else None,
        asked_length(row) or (task.length if task else None),
        _text(row, "finish_reason"),
        template,
        fault,
        _text(row, "language"),
    )


def _text(row: Mapping[str, Any], key: str) -> str | None:
    """Returns the text under a key that a row may lack. Raises ValueError for anything else."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"'{key}' must be a text, got {value!r:.80}")
    return value
