"""Counts worn phrases of language models ("slop") by the lists of EQ-Bench's long-form benchmark, read from a copy of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_lwz.errors import DataError
from megatron_lwz.reading import read_json

FILES = {"slop_list.json": 1, "slop_list_bigrams.json": 2, "slop_list_trigrams.json": 8}
"""List of the public repository → what one occurrence counts, as in its metrics."""
_SPLIT = re.compile(r"--|[\s\[\](){}<>\"“”„«»‘’`;@#$%&*?!…]+|\.{2,}|[,:](?!\d)")
"""Marks at which NLTK's tokenizer, which the public script uses, cuts a word."""
_CONTRACTION = re.compile(r"(?:n't|'(?:s|m|d|re|ve|ll))$")


@dataclass(frozen=True)
class SlopLists:
    """The listed words, 2-grams and 3-grams (in lower case), in the order of FILES."""

    words: frozenset[str]
    bigrams: frozenset[str]
    trigrams: frozenset[str]

    def score(self, text: str) -> float | None:
        """Returns the slop score per 1,000 words: words count 1, 2-grams 2, 3-grams 8. None for a text without a word.

        The lists are English, so a text in another language scores about 0.
        """
        # A token with a mark inside, such as a hyphen, is dropped, as in the public script.
        words = (_CONTRACTION.sub("", word.strip("',.:")) for word in _SPLIT.split(text.lower()))
        tokens = [word for word in words if word.isalnum()]
        if not tokens:
            return None
        score = 0
        for size, (listed, weight) in enumerate(
            zip((self.words, self.bigrams, self.trigrams), FILES.values(), strict=True)
        ):
            grams = (" ".join(tokens[place : place + size + 1]) for place in range(len(tokens) - size))
            score += weight * sum(gram in listed for gram in grams)
        return 1000 * score / len(tokens)


def read_slop(folder: Path) -> SlopLists:
    """Reads the three lists from a copy of EQ-bench/longform-writing-bench, or from its `data` folder. Raises DataError."""
    lists = [_read(data_file(folder, name)) for name in FILES]
    return SlopLists(*lists)


def data_file(folder: Path, name: str) -> Path:
    """Returns a file of the benchmark's `data` folder. Raises DataError if it is not there."""
    found = next((path for path in (folder / "data" / name, folder / name) if path.is_file()), None)
    if found is None:
        raise DataError(folder, f"no {name} here: name a copy of EQ-bench/longform-writing-bench")
    return found


def _read(path: Path) -> frozenset[str]:
    """Reads [["word"], ["word"], …]."""
    value = read_json(path)
    items = value if isinstance(value, list) else []
    texts = [item[0] if isinstance(item, list) and item else item for item in items]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(path, "not a slop list: it reads [[phrase], [phrase], …]")
    return frozenset(" ".join(text.lower().split()) for text in texts)
