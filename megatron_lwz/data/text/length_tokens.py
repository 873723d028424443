"""Splits a request into the words that state lengths: numbers, units, bounds, negations, and what links them.

Words of these kinds that follow each other without any other word form a statement, for example
"at least 800 words, but no more than 1000". `length_statements` reads statements.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from megatron_lwz.data.text import length_patterns as patterns
from megatron_lwz.data.text.numerals import adjacent_pair, parse_number, simplify


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


def find_statements(text: str) -> list[list[Token]]:
    """Returns the runs of tokens with nothing but spaces between them that hold a number. `text` is normalized."""
    statements: list[list[Token]] = [[]]
    for match in patterns.TOKEN.finditer(text):
        run = statements[-1]
        if run and text[run[-1].end : match.start()].strip(" "):
            run = []
            statements.append(run)
        run.append(_token(match))
    return [run for run in statements if any(token.kind == "number" for token in run)]


def _token(match: re.Match[str]) -> Token:
    kind, text, (start, end) = match.lastgroup or "", match.group(), match.span()
    if kind != "number":
        return Token(kind, text, start, end)
    pair = adjacent_pair(text)
    if pair is not None:
        return Token(kind, text, start, end, *map(float, pair))
    parsed = parse_number(text)
    if parsed is None:
        return Token("fill", text, start, end)
    return Token(kind, text, start, end, parsed[0], parsed[0], parsed[1])


_SAME = str.maketrans(
    {
        **dict.fromkeys("—–−‐‑‒", "-"),
        **dict.fromkeys("〜∼～", "~"),
        **dict.fromkeys("’‘′ʼ", "'"),
        **dict(
            zip(
                "數內於約個過應間單詞總達餘來長寫節標題開頭結論頁後這從為爲準須區範圍動誤調讀還書請體漢報錄較別該則現無當許會幾兩勿際擴縮壓減萬與並併嚴儘盡務給讓們說話評記經據單張篇點條類連",
                "数内于约个过应间单词总达余来长写节标题开头结论页后这从为为准须区范围动误调读还书请体汉报录较别该则现无当许会几两勿际扩缩压减万与并并严尽尽务给让们说话评记经据单张篇点条类连",
                strict=True,
            )
        ),
    }
)


LIST_COMMA = "\ue000"
"""Stands for the comma of "2，500字" in a normalized text: it may separate thousands, or follow the number of an item."""
_ITEM_NUMBER = re.compile("[\u2460-\u249b\u24ea-\u24ff\u2776-\u2793]")


def normalize(text: str) -> str:
    """Converts to lower case, half width and one kind of dash, and removes emphasis marks.

    Traditional characters that the patterns use become simplified ones. Every kind of space becomes a plain one.
    """
    text = _ITEM_NUMBER.sub(";", re.sub(r"(?<=\d)，(?=\d)(?!0+(?!\d))", LIST_COMMA, text))
    text = simplify(unicodedata.normalize("NFKC", text).lower()).translate(_SAME)
    return re.sub(r"[^\S\n]+", " ", re.sub("[*_`\u200b\ufeff]", "", text))
