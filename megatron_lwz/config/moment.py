"""Moments by which something must be done: a duration, a date with a time zone, or the end of the Slurm job."""

from __future__ import annotations

import datetime
import re

SLURM = "slurm"
"""Stands for the end of the job's time, which Slurm gives in SLURM_JOB_END_TIME."""
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SECONDS = (86_400, 3_600, 60, 1)


def check_moment(text: str) -> str:
    """Returns `text` if it is a moment. Raises ValueError."""
    if text != SLURM and _duration(text) is None:
        _date(text)
    return text


def check_duration(text: str) -> str:
    """Returns `text` if it is a duration above 0. Raises ValueError."""
    if not _duration(text):
        raise ValueError("give a duration like 3h50m")
    return text


def seconds_of(text: str) -> int:
    """Returns the seconds of a checked duration."""
    return round(_duration(text) or 0)


def seconds_until(text: str, *, now: float, job_end: str | None) -> float | None:
    """Returns the seconds from `now` (s since 1970) to the moment; a duration begins now.

    `job_end`: SLURM_JOB_END_TIME. None if the moment is the end of the job and nobody says when that is.
    """
    if text == SLURM:
        return float(job_end) - now if job_end is not None and job_end.isdecimal() else None
    duration = _duration(text)
    return duration if duration is not None else _date(text).timestamp() - now


def _duration(text: str) -> float | None:
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        return None
    return float(sum(int(count) * size for count, size in zip(found.groups("0"), _SECONDS, strict=True)))


def _date(text: str) -> datetime.datetime:
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("give a duration (3h50m), a date (2027-01-31T18:00:00+01:00) or slurm") from error
    if date.tzinfo is None:
        raise ValueError("name the time zone: 2027-01-31T18:00:00+01:00, or …Z for UTC")
    return date
