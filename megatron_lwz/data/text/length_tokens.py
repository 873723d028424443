"""Splits a request into statements: runs of words about a length, such as "at least 800 words, but no more than 1000".

A statement consists of numbers, units, bounds, negations and the words that link them. Any other word ends it.
`length_statements` reads it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Set
from dataclasses import dataclass, field

from megatron_lwz.data.text import length_words as words
from megatron_lwz.data.text.length import Unit
from megatron_lwz.data.text.numerals import adjacent_pair, parse_number, simplify

REACH = 16
"""Largest number of tokens between words that belong together. It bounds the work on each word."""


@dataclass(frozen=True)
class Token:
    """One word or sign at text[start:end]. `low` and `high` are the values of a number, `scale` its last scale."""

    kind: str
    text: str
    start: int
    end: int
    low: float = 0.0
    high: float = 0.0
    scale: int = 1


@dataclass
class Count:
    """A number, or a pair of numbers, at the tokens first..last of a statement. `lower` and `upper`: what it bounds."""

    first: int
    last: int
    low: float
    high: float
    lower: bool = False
    upper: bool = False
    unit: Unit | None = None
    own_unit: bool = False
    """Whether the unit is the count's own. Else it is that of another count of the statement."""

    @property
    def pair(self) -> bool:
        """Whether the count is a range: two numbers, or one with a tolerance."""
        return self.low < self.high

    @property
    def bound(self) -> bool:
        """Whether the count is a minimum or a maximum alone."""
        return not self.pair and (self.lower or self.upper)


@dataclass
class Statement:
    """Tokens of `text` with nothing but spaces between them, and the lengths they state."""

    tokens: list[Token]
    text: str
    counts: list[Count] = field(default_factory=list)
    loose: list[Count] = field(default_factory=list)
    """Bounds without a unit: perhaps the other half of a range, perhaps of something else."""
    doubtful: bool = False
    """Whether something about the counts was not understood."""

    def kind(self, place: int) -> str:
        """Returns the kind of a token, or "" beyond the ends."""
        return self.tokens[place].kind if 0 <= place < len(self.tokens) else ""

    def kinds(self, start: int, stop: int) -> set[str]:
        """Returns the kinds of the tokens start..stop - 1."""
        return {token.kind for token in self.tokens[start:stop]}

    def skip(self, place: int, kinds: Set[str], step: int = 1) -> int:
        """Returns the first place from `place` on whose kind is not in `kinds`, at most REACH steps away.

        `kinds` may hold "(" for any round bracket.
        """
        for _ in range(REACH):
            bracket = "(" in kinds and self.kind(place) == "sep" and self.tokens[place].text in "()"
            if self.kind(place) not in kinds and not bracket:
                break
            place += step
        return place

    def continues(self, place: int) -> bool:
        """Returns whether a word that is no token of the statement follows the token at `place`."""
        end = self.tokens[place].end
        return not self.kind(place + 1) and self.text[end : end + 2].lstrip(" ")[:1].isalpha()


def find_statements(text: str) -> list[Statement]:
    """Returns the statements of a normalized text that hold a number, and a unit or a bound."""
    statements: list[Statement] = []
    run: list[re.Match[str]] = []
    end = 0
    for match in words.TOKEN.finditer(text):
        start, following = match.span()
        if start > end and text[end:start] != " ":
            statements += _statement(run, text)
            run = []
        run.append(match)
        end = following
    return statements + _statement(run, text)


def _statement(run: list[re.Match[str]], text: str) -> list[Statement]:
    kinds = {_kind(match) for match in run}
    told = "number" in kinds and kinds & _TELLING
    return [Statement([_token(match) for match in run], text)] if told else []


def _kind(match: re.Match[str]) -> str:
    return (match.lastgroup or "").rpartition("_")[0]


_TELLING = {
    "unit",
    "label",
    "least",
    "most",
    "least_before",
    "most_before",
    "least_after",
    "most_after",
    "more",
    "less",
}


def _token(match: re.Match[str]) -> Token:
    kind, text, (start, end) = _kind(match), match.group(), match.span()
    if kind != "number":
        return Token(kind, text, start, end)
    if (pair := adjacent_pair(text)) is not None:
        return Token(kind, text, start, end, float(pair[0]), float(pair[1]))
    parsed = parse_number(text)
    if parsed is None:
        return Token("fill", text, start, end)
    return Token(kind, text, start, end, parsed[0], *parsed)


_TRADITIONAL = (
    "數內於約個過應間單詞總達餘來長寫節標題開頭結論頁後這從為爲準須區範圍動誤調讀還書請體漢報錄較別該則現無當許會"
    "幾勿際擴縮壓減與並併嚴儘盡務給讓們說話評記經據張篇點條類連雙"
)
_SIMPLIFIED = (
    "数内于约个过应间单词总达余来长写节标题开头结论页后这从为为准须区范围动误调读还书请体汉报录较别该则现无当许会"
    "几勿际扩缩压减与并并严尽尽务给让们说话评记经据张篇点条类连双"
)
_SAME = str.maketrans(
    {
        **dict.fromkeys("—–−‐‑‒", "-"),
        **dict.fromkeys("〜∼～", "~"),
        **dict.fromkeys("’‘′ʼ", "'"),
        **dict(zip(_TRADITIONAL, _SIMPLIFIED, strict=True)),
    }
)
LIST_COMMA = "\ue000"
"""Stands for the Chinese comma of "2，500字": it may separate thousands, or follow the number of an item."""
_WIDE_COMMA = re.compile(f"(?<=[0-9]){LIST_COMMA}(?=[0-9])")
_ITEM_NUMBER = re.compile("[\u2460-\u249b\u24ea-\u24ff\u2776-\u2793]")
"""Numbers in circles, brackets and with points: in half width, "②800" would be 2800."""


def normalize(text: str) -> str:
    """Converts to lower case, half width and one kind of dash, and removes emphasis marks.

    Traditional characters that the patterns use become simplified ones, and every kind of space a plain one.
    """
    text = _ITEM_NUMBER.sub(";", text).replace("，", LIST_COMMA)
    text = simplify(unicodedata.normalize("NFKC", text).lower()).translate(_SAME)
    text = _WIDE_COMMA.sub(_separate, text)
    text = re.sub(f"{LIST_COMMA}(?![0-9])|(?<![0-9]){LIST_COMMA}", ",", text)
    return re.sub(r"[^\S\n]+", " ", re.sub("[*_`\u200b\ufeff]", "", text))


def _separate(match: re.Match[str]) -> str:
    """Returns the comma of a number for "3，000", a comma and a space for "800，1000", LIST_COMMA for "2，500"."""
    before, after = match.string[max(0, match.start() - 4) : match.start()], match.string[match.end() : match.end() + 4]
    if re.search("(?<![0-9])[0-9]{1,3}$", before) is None or re.match("[0-9]{3}(?![0-9])", after) is None:
        return ", "
    return "," if after.startswith("000") else LIST_COMMA
