"""One run that is disturbed again and again until it has ended, and what it had to keep each time."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.chaos import family
from tests.support.chaos.bench import Bench
from tests.support.chaos.control import DROPPING, FAILING, FULL, HANGING, READ_ONLY, SERVING, STALLING
from tests.support.chaos.evidence import Durable, compare, durable, lost_tokens, tokens_in

PATIENCE = 600.0
"""Seconds in which a life must come to its moment or its end: a run that hangs is a failure."""
GONE_SECONDS = 60.0
"""Within which nothing of a run is left after one of its processes was killed."""
REFUSALS = {"disk full": FULL, "disk read-only": READ_ONLY}
JUDGE = {"failing": FAILING, "hanging": HANGING}
"""What a reward model's server that is down does, if it was not killed."""
CONNECTIONS = {"connections dropped": DROPPING, "connections stalled": STALLING}


@dataclass(frozen=True)
class Fault:
    """What is done, to whom. Without a victim it is who makes the call at the chosen moment."""

    kind: str
    victim: str = ""

    @property
    def ends_the_run(self) -> bool:
        """Whether the job has to be started again."""
        return self.kind in REFUSALS or (self.kind in ("kill", "cut write") and self.victim != "engine")


@dataclass
class Event:
    """A fault that has happened."""

    fault: Fault
    victim: str
    where: str
    call: int
    wrong: list[str] = field(default_factory=list)
    lost: int = 0


class Trial:
    """A run of `ranks` ranks in a folder of its own. `draw` chooses the moments."""

    def __init__(self, bench: Bench, name: str, ranks: Callable[[], int], draw: random.Random) -> None:
        self.folder, self.events = bench.folder / name, list[Event]()
        self.wrong: list[str] = []
        self.layouts: set[int] = set()
        self._bench, self._board, self._ranks, self._draw = bench, bench.board, ranks, draw
        self._kept: Durable = {}
        self._lives = 0

    def survive(self, faults: list[Fault]) -> None:
        """Lets the faults happen one after the other, and the run come to its end. Then it is compared."""
        left = list(faults)
        while not self._live(left):
            assert self._lives <= 3 * len(faults) + 3, "the run does not come to its end"
        undisturbed, _ = self._bench.undisturbed(min(self.layouts))
        self.wrong += compare(self.folder, undisturbed, exactly=len(self.layouts) == 1)

    def remove(self) -> None:
        """Deletes the run and what it said."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for log in self.folder.parent.glob(f"{self.folder.name}_*.log"):
            log.unlink()

    @property
    def tokens(self) -> int:
        """Tokens in the journal."""
        return tokens_in(self._kept)

    def _live(self, left: list[Fault]) -> bool:
        """One life of the run, with at most one fault that ends it. Returns whether it has ended in order."""
        ranks = self._ranks()
        self.layouts.add(ranks)
        self._lives += 1
        output = self.folder.with_name(f"{self.folder.name}_{self._lives}.log")
        self._bench.undisturbed(ranks)
        self._board.watch(self.folder)
        if left:
            self._arm(left[0], ranks)
        job = self._bench.start(self.folder, output, ranks=ranks)
        before = len(self.events)
        try:
            while self._wait_for_moment(job) and left:
                fault = left.pop(0)
                self._let_happen(fault, job)
                if fault.ends_the_run or not left:
                    break
                self._arm(left[0], ranks, after=self._board.calls)
            people = family.members(job)
            ends = time.monotonic() + PATIENCE
            while job.poll() is None and time.monotonic() < ends:
                people = family.members(job) or people
                time.sleep(0.05)
            self._note_end(job, people, output, left, before, ranks)
        finally:
            family.kill(family.members(job))
            self._board.calm()
        return job.returncode == 0

    def _arm(self, fault: Fault, ranks: int, *, after: int = 0) -> None:
        """Chooses the moment: a call, which is up to a half of a whole run away, more often up to an eighth."""
        span = self._bench.undisturbed_calls(ranks) // self._draw.choice((8, 8, 4, 2))
        call = after + self._draw.randint(1, max(2, span))
        if fault.kind in REFUSALS:
            self._board.refuse_from(call, REFUSALS[fault.kind])
        else:
            self._board.stop_at(call, cut=self._draw.uniform(0.05, 0.95) if fault.kind == "cut write" else 0.0)

    def _wait_for_moment(self, job: subprocess.Popen[bytes]) -> bool:
        ends = time.monotonic() + PATIENCE
        while job.poll() is None and time.monotonic() < ends:
            if self._board.stopped:
                return True
            time.sleep(0.002)
        return False

    def _let_happen(self, fault: Fault, job: subprocess.Popen[bytes]) -> None:
        people = family.members(job)
        caller = next((one for one in people if one.pid == self._board.stopped), None)
        victim = family.with_role(people, fault.victim) if fault.victim in family.NAMES else None
        victim = victim or caller
        given = fault.victim in ("engine", "all") or fault.kind not in ("kill", "cut write", "freeze")
        name = fault.victim if given else family.role_of(victim) if victim is not None else "?"
        event = Event(fault, name, self._board.where, self._board.calls)
        self.events.append(event)
        self._keep(event)
        if fault.kind in ("kill", "cut write"):
            self._kill(fault, victim, people)
        elif fault.kind == "freeze":
            self._board.release()
            assert victim is not None
            family.freeze(victim, self._draw.uniform(0.5, 1.5))
        elif fault.kind in CONNECTIONS:
            self._board.engines(CONNECTIONS[fault.kind])
            self._board.release()
            time.sleep(self._draw.uniform(0.3, 1.0))
            self._board.engines(0)
        elif fault.kind == "judge down":
            self._judge_down(fault.victim)
        elif fault.kind == "clock jump":
            self._board.shift_clock(self._draw.choice([-86_400, -3_600, -5, 5, 3_600, 86_400, 315_360_000]))
        self._board.release()

    def _kill(self, fault: Fault, victim: psutil.Process | None, people: list[psutil.Process]) -> None:
        if fault.victim == "engine":
            engine = self._draw.choice(self._bench.engines)
            engine.kill()
            self._board.release()
            engine.start()
        elif fault.victim == "all":
            family.kill(people)
        else:
            assert victim is not None
            family.kill([victim])

    def _judge_down(self, how: str) -> None:
        """For some attempts of the requests that are under way, and fewer than the run makes."""
        if how == "killed":
            self._bench.judge.kill()
        else:
            self._board.judges(JUDGE[how])
        self._board.release()
        time.sleep(self._draw.uniform(0.3, 1.5))
        if how == "killed":
            self._bench.judge.start()
        self._board.judges(SERVING)

    def _note_end(
        self,
        job: subprocess.Popen[bytes],
        people: list[psutil.Process],
        output: Path,
        left: list[Fault],
        before: int,
        ranks: int,
    ) -> None:
        """What must hold when a life is over, whatever ended it."""
        if left and left[0].kind in REFUSALS and self._board.refused:
            fault = left.pop(0)
            self.events.append(Event(fault, "", self._board.where, self._board.calls))
            self.events[-1].wrong += _said_in_one_line(job.returncode, output, ranks)
        event = self.events[-1] if len(self.events) > before else None
        wrong = event.wrong if event is not None else self.wrong
        if job.returncode is None:
            wrong.append(f"hangs for {PATIENCE:g} s")
        elif job.returncode != 0 and (event is None or not event.fault.ends_the_run):
            wrong.append(f"ended with {job.returncode} without a reason to end: {output}")
        if lived := family.left_after(people, GONE_SECONDS):
            wrong.append(f"still there after {GONE_SECONDS:g} s: {[one.name() for one in lived]}")
            family.kill(lived)
        self._keep(event)

    def _keep(self, event: Event | None) -> None:
        """Compares what is on disk with what was there before. A call that waits may keep the journal locked."""
        now = durable(self.folder / "journal.sqlite")
        if now is None:
            if not self._board.stopped:
                self.wrong.append("the journal cannot be read")
            return
        lost = lost_tokens(self._kept, now)
        if event is not None:
            event.lost += lost
        elif lost:
            self.wrong.append(f"{lost} tokens lost in a life without a fault")
        self._kept = now


def _said_in_one_line(status: int | None, output: Path, ranks: int) -> list[str]:
    """The rule for a disk that refuses: exit status 2 (torchrun: 1), one line that says so, no traceback of ours."""
    said = output.read_text(encoding="utf-8", errors="replace")
    errors = [line for line in said.splitlines() if line.startswith("error")]
    wrong = []
    if status != (2 if ranks == 1 else 1):
        wrong.append(f"exit status {status}: {output}")
    if len(errors) != 1:
        wrong.append(f"{len(errors)} error lines: {output}")
    if ranks == 1 and "Traceback" in said:
        wrong.append(f"a traceback: {output}")
    return wrong
