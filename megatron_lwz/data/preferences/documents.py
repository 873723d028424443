"""Documents from which pairs are made: a request with a good reply. An index finds others of similar length fast."""

from __future__ import annotations

import bisect
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_lwz.data.instructions import Rendering, find_fault, parse_conversation
from megatron_lwz.data.preferences.pairs import Language, language_of
from megatron_lwz.data.preferences.pieces import Pieces, size, split_pieces
from megatron_lwz.data.replies import EMPTY, clean, thinks, wrap
from megatron_lwz.data.text.grammar import parse_response, quoted_tags
from megatron_lwz.reading import read_rows

_WORD = re.compile(r"[a-z]{4,}")
_CJK_RUN = re.compile(r"[\u4e00-\u9fff]+")
_CJK_SIZES = (2, 3, 4)
_COMMON = 0.3
"""Maximum share of the requests in which a word occurs if it is to count as the subject of one of them."""


@dataclass(frozen=True)
class Document:
    """A request and a good reply to it. `id` is the same in every run."""

    id: str
    prompt: str
    reply: str
    source: str

    @cached_property
    def pieces(self) -> Pieces:
        """The reply's paragraphs or sentences."""
        return split_pieces(self.reply)

    @cached_property
    def size(self) -> int:
        """Length of the reply in words and CJK characters."""
        return size(self.reply)

    @cached_property
    def language(self) -> Language:
        """Language of the request."""
        return language_of(self.prompt)


def read_documents(path: Path) -> Iterator[Document | str]:
    """Yields a document per row (prompt + response, messages, conversations …).

    Yields the reason in place of a row that cannot be used: several turns, or what fine-tuning leaves out (empty, cut
    off, text outside the tags …). Raises DataError naming the row; for an unknown format it lists the columns.
    """
    for row in read_rows(path):
        try:
            yield _document(row.value, str(row.value.get("id") or row.identity), path.name.split(".")[0])
        except ValueError as error:
            raise row.error(error) from error


def _document(row: Mapping[str, Any], identity: str, source: str) -> Document | str:
    conversation = parse_conversation(row, identity)
    if len(conversation.replies) != 1:
        return "with several replies"
    if conversation.unanswered:
        return "with a last question that has no reply"
    fault = find_fault(conversation, Rendering())
    if fault is not None:
        return fault
    request, reply = conversation.asked[0], clean(conversation.replies[0])
    parsed = parse_response(wrap(reply), "think" if thinks(reply) else "direct", quoted=quoted_tags(request))
    # Both texts of a pair are joined from pieces, so that they differ only in the corruption.
    text = split_pieces(parsed.answer or "").text
    return Document(identity, request.strip(), text, source) if text else EMPTY


class Pool:
    """The documents of one side of the split."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents = list(documents)
        self._by_size: dict[Language, list[Document]] = {
            language: sorted((d for d in self.documents if d.language == language), key=lambda d: (d.size, d.id))
            for language in ("en", "zh")
        }
        self._sizes = {language: [d.size for d in found] for language, found in self._by_size.items()}
        self._frequency: dict[Language, Counter[str]] = defaultdict(Counter)
        prompts: dict[Language, set[str]] = defaultdict(set)
        for document in self.documents:
            prompts[document.language].add(document.prompt)
        self._prompts = {language: len(found) for language, found in prompts.items()}
        for language, found in prompts.items():
            for prompt in found:
                self._frequency[language].update(set(_terms(prompt)))

    def subjects(self, document: Document) -> Sequence[str]:
        """Returns the subjects of the request, longest first: terms that few requests share and that the reply has."""
        reply, frequency = document.reply.lower(), self._frequency[document.language]
        most = max(2.0, _COMMON * self._prompts.get(document.language, 0))
        found = [term for term in _terms(document.prompt) if frequency[term] <= most and term in reply]
        return sorted(dict.fromkeys(found), key=lambda term: (-len(term), term))

    def other(self, document: Document, rng: random.Random, tolerance: float | None) -> Document | None:
        """Draws another document in the same language about something else, or None if no draw finds one.

        With a `tolerance`, its length differs by at most this share.
        """
        found, sizes = self._by_size[document.language], self._sizes[document.language]
        low, high = 0, len(found)
        if tolerance is not None:
            low = bisect.bisect_left(sizes, document.size * (1 - tolerance))
            high = bisect.bisect_right(sizes, document.size * (1 + tolerance))
        subjects = self.subjects(document)
        if high <= low or not subjects:
            return None
        for _ in range(30):
            other = found[rng.randrange(low, high)]
            if other.prompt != document.prompt and not any(term in other.reply.lower() for term in subjects):
                return other
        return None


def _terms(prompt: str) -> Iterator[str]:
    """Yields words of four or more letters, and all substrings of two to four Chinese characters."""
    yield from _WORD.findall(prompt.lower())
    for run in _CJK_RUN.findall(prompt):
        for length in _CJK_SIZES:
            for start in range(len(run) - length + 1):
                yield run[start : start + length]
