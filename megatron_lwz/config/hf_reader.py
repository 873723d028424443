"""Reading the values of a Hugging Face `config.json`, with errors that name file, key and value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError


class HfReader:
    """The object of one config.json, whose errors name file, key and value."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path = path
        self.raw = raw

    def error(self, key: str, advice: str, value: Any = None) -> DataError:
        """Returns the error about a key and its value, or another `value`."""
        shown = repr(self.raw.get(key) if value is None else value)
        return DataError(self.path, f"{key} = {shown if len(shown) < 120 else shown[:120] + '…'}: {advice}")

    def refuse_others(self, accepted: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
        """Raises DataError for a key with another value than those accepted: key → (values, why no other is)."""
        for key, (values, why) in accepted.items():
            if key in self.raw and not is_one_of(self.raw[key], values):
                raise self.error(key, why)

    def number(self, key: str, default: float) -> float:
        """Returns the finite number of a key, or the default without the key."""
        return self.finite(key, self.raw[key]) if key in self.raw else default

    def whole(self, key: str, default: int | None = None) -> int:
        """Returns a whole number; 896.0 and "896" are read. Without a default the key must be there."""
        if key not in self.raw and default is not None:
            return default
        if key not in self.raw:
            raise DataError(self.path, f"{key} is missing: use the config.json that came with the weights")
        value = self.finite(key, self.raw[key])
        if value != int(value):
            raise self.error(key, "must be a whole number")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns true or false."""
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def finite(self, key: str, value: Any) -> float:
        """Returns a finite number that stands under a key; a text that holds one is read."""
        found = math.nan
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):
                found = float(value)
        if not math.isfinite(found):
            raise self.error(key, "must be a number", value)
        return found


def is_one_of(value: Any, accepted: tuple[Any, ...]) -> bool:
    """Returns whether a value is accepted. `true` is not 1, and `false` is not 0."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in accepted)
