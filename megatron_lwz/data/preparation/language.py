"""Detects whether a request is in one of the recipe's two languages, by its script, then by its most common words."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["en", "zh"]

_LONGEST = 4000
"""Number of characters of a request that are examined."""
_CJK = re.compile(r"[\u3400-\u9fff]")
_KANA_HANGUL = re.compile(r"[\u3040-\u30ff\uac00-\ud7af\u1100-\u11ff]")
_LATIN = re.compile(r"[a-z\u00c0-\u024f]+(?:'[a-z]+)?")
_ANY_LETTER = re.compile(r"[^\W\d_]")
_ENGLISH = frozenset(
    """the of and to in a is that for it as with on be by this are from or an at not have you was but they can which i we
    will his your has what all were would there about if do who my when how more write me make please should give into
    their them could some no create story essay explain""".split()  # noqa: SIM905
)
_OTHERS = frozenset(
    """el los las del que una por con para como pero esta este le les des est et dans une pour qui sur pas avec vous je
    der die das und ist nicht ein eine mit auf den von zu il di che non per sono della o os um uma não para com em de la
    het een van niet voor och att det som ini yang dan untuk dengan nie jest się bir ve için và của là escribe écrire
    schreibe scrivi escreva""".split()  # noqa: SIM905
)
_TAGS = {
    "en": "en", "eng": "en", "english": "en", "zh": "zh", "zho": "zh", "chinese": "zh", "mandarin": "zh", "中文": "zh",
    "zh-cn": "zh", "zh-tw": "zh", "zh-hans": "zh", "zh-hant": "zh",
}  # fmt: skip
_UNSURE = ("", "unknown", "und", "other")


def tell_language(text: str, tag: str | None = None) -> Language | None:
    """Returns en, zh, or None for any other language.

    `tag` is the data set's own language label. It can only exclude a request; otherwise the text decides. Chinese: at
    least 30 % of the letters are CJK, and at most 5 % are kana or hangul. English: Latin letters, and more common words
    of English than of other languages.
    """
    if tag is not None and tag.strip().lower() not in (*_UNSURE, *_TAGS):
        return None
    text = text[:_LONGEST].lower()
    letters = len(_ANY_LETTER.findall(text))
    if not letters:
        return None
    if len(_KANA_HANGUL.findall(text)) > 0.05 * letters:
        return None
    if len(_CJK.findall(text)) >= 0.3 * letters:
        return "zh"
    words = _LATIN.findall(text)
    if sum(map(len, words)) < 0.8 * letters:
        return None
    english = sum(word in _ENGLISH for word in words)
    others = sum(word in _OTHERS and word not in _ENGLISH for word in words)
    plain = sum(word.isascii() for word in words) / len(words)
    # Few words with no common word among them ("cyberpunk noir opening") count as English if they are plain ASCII.
    return "en" if plain > 0.8 and (english > others or (others == 0 and len(words) < 8)) else None
