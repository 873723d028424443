"""Text that goes round in circles: does the end of a text repeat one unit again and again?

The rule, exact: some p ≤ `unit` exists so that in the last max(`characters`, `repeats` · p) characters each equals the one p before it.
"""

from __future__ import annotations

_PROBE = 64


def loop_unit(text: str, *, characters: int, repeats: int, unit: int) -> int:
    """Length of the shortest unit that the end of `text` repeats by the rule above, 0: none. `repeats` must be 3 or more.

    Linear in the length of what the rule reads: candidates are the places where the text's end stands once more, nearest
    first. One that fails after a run of r characters rules out every p ≤ r − p' (Fine and Wilf 1965), and the next one must
    repeat the run with the character that broke it. So what is searched for grows by half or more each time.
    """
    end = len(text)
    size = characters * (repeats - 1) // repeats  # max(characters, repeats · p) − p is never less
    if end < characters:
        return 0
    probe = min(size, _PROBE)
    if text.find(text[end - probe :], max(0, end - probe - unit), end - 1) < 0:
        return 0  # nearly always: nothing is copied
    text, smallest = text[: -max(characters, repeats * unit) - 1 : -1], 1  # reversed: the end is where we search from
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
    """How many characters from the start on equal those `shift` later; counts to `most`."""
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
    """`loop_unit` of a text that arrives in pieces; keeps only as much of its end as the rule reads."""

    def __init__(self, *, characters: int, repeats: int, unit: int) -> None:
        self._characters, self._repeats, self._unit = characters, repeats, unit
        self._read = max(characters, repeats * unit)
        self._end = ""

    def feed(self, text: str) -> int:
        """Takes the next piece: the length of the unit that is repeated at the end now, 0: none."""
        self._end += text
        if len(self._end) > 2 * self._read:
            self._end = self._end[-self._read :]
        return loop_unit(self._end, characters=self._characters, repeats=self._repeats, unit=self._unit)
