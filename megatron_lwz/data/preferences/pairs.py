"""A preference pair, and its row in a file of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_lwz.data.templates import detect_language

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class PreferencePair:
    """Two replies to one request, the better one first.

    `kind` names the fault of the rejected reply (a corruption, or `human`). `source` is the file or data set of the
    pair. `document` is the source text; it must not be on both sides of a split. `margin` is how much better the chosen
    reply is, on the data set's own scale; None if the data set has no margin. `template` is the prompt's template in
    reinforcement learning; None: not known.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    kind: str = "human"
    source: str = ""
    document: str = ""
    margin: float | None = None
    template: Literal["think", "direct"] | None = None

    @property
    def language(self) -> Language:
        """Language of the request, or of the chosen reply if there is no request."""
        return language_of(self.prompt or self.chosen)

    def row(self) -> dict[str, Any]:
        """Returns the pair as a row of a file."""
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
        known = {"margin": self.margin, "template": self.template}
        return row | {name: value for name, value in known.items() if value is not None}


def language_of(text: str) -> Language:
    """Returns `zh` for a text with Chinese characters, else `en`."""
    return "zh" if detect_language(text) == "chinese" else "en"


def text_of(row: Mapping[str, Any], key: str, otherwise: str) -> str:
    """Returns the non-empty string under `key` of a row, or `otherwise` if there is none."""
    value = row.get(key)
    return value if isinstance(value, str) and value else otherwise
