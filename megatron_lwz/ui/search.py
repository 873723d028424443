"""Full-text search in English and Chinese: how texts and queries are cut for SQLite's FTS5, and snippets of what was found.

FTS5 cuts text into words at spaces and punctuation. Chinese has no spaces, so every CJK character is set apart and
becomes a word; a query's characters are then searched as a phrase.
"""

from __future__ import annotations

import re

_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af])")
_PARTS = re.compile(r'"([^"]*)"|(\S+)')
_LEAD, _TAIL = 60, 140


def searchable(text: str) -> str:
    """Returns the text with every CJK character set apart. NUL, at which SQLite would end it, becomes a space."""
    return _CJK.sub(r" \1 ", text).replace("\0", " ").encode("utf-8", "replace").decode()


def terms(query: str) -> list[str]:
    """Returns the words and quoted phrases of a query, without those that have neither letter nor digit."""
    found = [phrase if phrase else word for phrase, word in _PARTS.findall(query[:500])]
    return [term for term in found if any(char.isalnum() for char in term)]


def fts_query(query: str) -> str:
    """Returns the FTS5 query: all terms must occur, the last word of an English term may go on. "" for no term."""
    parts = []
    for term in terms(query):
        text = " ".join(searchable(term).replace('"', " ").split())
        parts.append(f'"{text}"' + ("*" if text[-1:].isascii() and text[-1:].isalnum() else ""))
    return " AND ".join(parts)


def snippet(text: str, query: str) -> tuple[str, str, str] | None:
    """Returns what stands before, at and after the first term in the text; None where none stands there as typed."""
    for term in terms(query):
        words = re.split(r"\s+", term.strip())
        match = re.search(r"\s+".join(map(re.escape, words)), text, re.IGNORECASE)
        if match:
            low, high = max(0, match.start() - _LEAD), match.end() + _TAIL
            before = ("…" if low else "") + text[low : match.start()]
            after = text[match.end() : high] + ("…" if high < len(text) else "")
            return before, match[0], after
    return None
