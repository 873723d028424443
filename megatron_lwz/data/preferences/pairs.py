"""One preference pair, and its row in a file of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_lwz.data.templates import detect_language

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class PreferencePair:
    """Two replies to one request, the better one first.

    `kind` says what is wrong with the rejected one (a corruption, or `human`), `source` which file or data set it comes from,
    `document` the source text that must not stand on both sides of a split. `margin` is how much better the chosen one
    is, on the data set's own scale; None where nobody said.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    kind: str = "human"
    source: str = ""
    document: str = ""
    margin: float | None = None

    @property
    def language(self) -> Language:
        """Of the request, or of the chosen reply where there is no request."""
        return language_of(self.prompt or self.chosen)

    def row(self) -> dict[str, Any]:
        """The pair as a row of a file."""
        row: dict[str, Any] = {
            "id": self.id,
            "prompt": self.prompt,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "kind": self.kind,
            "source": self.source,
            "document": self.document,
            "language": self.language,
        }
        return row if self.margin is None else row | {"margin": self.margin}


def language_of(text: str) -> Language:
    """`zh` for a text with Chinese characters, else `en`."""
    return "zh" if detect_language(text) == "chinese" else "en"


def text_of(row: Mapping[str, Any], key: str, otherwise: str) -> str:
    """A string of a row, `otherwise` where it has none."""
    value = row.get(key)
    return value if isinstance(value, str) and value else otherwise
