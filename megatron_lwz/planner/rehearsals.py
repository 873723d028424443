"""Rehearsals on demand, in one process that makes the imports once."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator
from types import TracebackType
from typing import cast

from megatron_lwz.planner.extrapolate import extended, fewer
from megatron_lwz.rehearsal.case import Case, Report
from megatron_lwz.rehearsal.pool import rehearse


class Rehearsals:
    """Answers cases one by one; each is rehearsed once. With few layers, which tell what all of them need."""

    def __init__(self, watch: Callable[[Report], None] = lambda _: None) -> None:
        """`watch` sees every new report: a search takes minutes."""
        self._watch = watch
        self._asked: deque[Case | None] = deque()
        self._answers = cast("Generator[Report]", rehearse(iter(self._asked.popleft, None)))
        self._known: dict[str, Report] = {}

    def __enter__(self) -> Rehearsals:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._answers.close()

    def report(self, case: Case) -> Report:
        """Returns the report of the case. An error of the product's code is in it. Raises EnvironmentSetupError."""
        return extended(case, [self._rehearsed(part) for part in fewer(case)])

    def _rehearsed(self, case: Case) -> Report:
        key = json.dumps({**case.__dict__, "name": ""}, sort_keys=True)
        if key not in self._known:
            self._asked.append(case)
            self._known[key] = next(self._answers)
            self._watch(self._known[key])
        return self._known[key]
