"""Detects repetition loops: whether the end of a text repeats one unit again and again.

The exact rule: there is a p ≤ `unit` such that each of the last max(`characters`, `repeats` · p) characters of the
text, except the first p of them, equals the character p places before it.
"""

from __future__ import annotations

_PROBE = 64


def loop_unit(text: str, *, characters: int, repeats: int, unit: int) -> int:
    """Returns the length of the shortest unit that the end of `text` repeats by the rule above, 0 if there is none.

    `repeats` must be 3 or more. The time is linear in the length of the text that the rule reads. Candidates p' are the
    distances at which the end of the text occurs once more, nearest first. A candidate that fails after a run of r
    characters rules out every p ≤ r − p' (Fine and Wilf 1965). The next candidate must repeat the run together with the
    character that broke it. So the string to search for grows by half or more each time.
    """
    end = len(text)
    size = characters * (repeats - 1) // repeats  # max(characters, repeats · p) − p is never less
    if end < characters:
        return 0
    probe = min(size, _PROBE)
    if text.find(text[end - probe :], max(0, end - probe - unit), end - 1) < 0:
        return 0  # the usual case, decided without copying text
    text, smallest = text[: -max(characters, repeats * unit) - 1 : -1], 1  # reversed: the search begins at the end
    while True:
        period = text.find(text[:size], smallest, unit + size)
        if period < 0:
            return 0
        needed = max(characters, repeats * period)
        run = period + _agree(text, period, needed - period)
        if run >= needed:
            return period
        size, smallest = run + 1, max(period, run - period) + 1


def _agree(text: str, shift: int, most: int) -> int:
    """Returns how many characters from the start equal those `shift` places later, at most `most`."""
    low, most, step = 0, min(most, len(text) - shift), 64
    while low < most:
        high = min(most, low + step)
        if text[low:high] != text[low + shift : high + shift]:
            break
        low, step = high, 2 * step
    else:
        return most
    while high - low > 1:
        middle = (low + high) // 2
        if text[low:middle] == text[low + shift : middle + shift]:
            low = middle
        else:
            high = middle
    return low


class LoopFinder:
    """Computes `loop_unit` of a text that arrives in pieces. Keeps only the part of its end that the rule reads."""

    def __init__(self, *, characters: int, repeats: int, unit: int) -> None:
        self._characters, self._repeats, self._unit = characters, repeats, unit
        self._read = max(characters, repeats * unit)
        self._end = ""

    def feed(self, text: str) -> int:
        """Adds the next piece. Returns the length of the unit that the end of the text now repeats, 0 if none."""
        self._end += text
        if len(self._end) > 2 * self._read:
            self._end = self._end[-self._read :]
        return loop_unit(self._end, characters=self._characters, repeats=self._repeats, unit=self._unit)
