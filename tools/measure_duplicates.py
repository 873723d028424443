#!/usr/bin/env python
"""Precision, recall and speed of the near-duplicate detector on generated texts, for docs/format.md.

    python tools/measure_duplicates.py [--paragraphs N] [--speed]

Paragraphs in English and Chinese are composed from word lists; several share a topic and its phrases. Known edits make
copies of them, and also paragraphs that only look similar. Everything is seeded: the numbers are the same on every
machine.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from megatron_lwz.data.corpora.fingerprints import MinHash
from megatron_lwz.data.text.near_duplicates import UNIT, ParagraphIndex, shingles

ENGLISH = {
    "who": "the miller|an old sailor|her sister|the night nurse|a young clerk|our teacher|the gardener|my uncle|the mayor|"
    "a travelling singer|the ferryman|two students|the widow next door|a retired judge|the lamplighter|their cousin",
    "did": "opened|carried|forgot|painted|described|lost|mended|measured|sold|hid|copied|admired|refused|borrowed|washed|"
    "counted|defended|inherited",
    "what": "the iron gate|a box of letters|the last apples|an unfinished map|the silver bell|three grey blankets|the garden "
    "wall|a broken clock|the harbour ledger|a torn photograph|the wooden stairs|a bottle of ink|the winter coats|a small piano",
    "where": "behind the station|near the cold river|in the upper room|under the chestnut tree|at the edge of town|beside "
    "the chapel|on the empty square|below the lighthouse|across the marsh|inside the bakery|along the railway|over the bridge",
    "when": "before sunrise|after the long winter|on market day|during the storm|late in autumn|every other evening|when the "
    "bells rang|in the year of the flood|while the others slept|once the fog had lifted|at noon|in the first week of May",
    "why": "because nobody had asked|to keep an old promise|without a word to anyone|for the sake of the children|out of "
    "plain curiosity|as the doctor had advised|although the letter was late|in spite of the rumours|to settle a small debt",
}
CHINESE = {
    "who": "磨坊主人|老水手|她的姐姐|值夜的护士|年轻的店员|我们的老师|园丁|舅舅|镇长|流浪歌手|摆渡人|两个学生|隔壁的寡妇|退休的法官",
    "did": "打开了|搬走了|忘记了|粉刷了|描述了|弄丢了|修好了|丈量了|卖掉了|藏起了|抄写了|赞美了|拒绝了|借走了|清洗了|数过了",
    "what": "那扇铁门|一箱旧信|最后的苹果|没画完的地图|银色的铃铛|三条灰毯子|花园的矮墙|坏掉的座钟|港口的账本|撕破的照片|木头楼梯|一瓶墨水",
    "where": "在车站后面|在冰冷的河边|在楼上的房间里|在栗子树下|在小镇尽头|在教堂旁边|在空荡的广场上|在灯塔下面|在沼泽对岸|在面包房里",
    "when": "天亮之前|漫长的冬天过后|赶集那天|暴风雨里|深秋时节|每隔一个傍晚|钟声响起的时候|发大水那一年|别人都睡着以后|雾气散开之后",
    "why": "因为没有人问起|为了守住旧日的诺言|没有对任何人说|为了孩子们|完全出于好奇|按照医生的嘱咐|尽管信来得太晚|不顾那些传言",
}
ORDERS = (
    "when who did what where why",
    "who did what where when",
    "where who did what when why",
    "who did what why when",
)
SYNONYMS = {
    "English": "opened=unlocked|carried=brought|forgot=left behind|painted=coloured|lost=misplaced|mended=repaired|sold=gave "
    "away|hid=concealed|admired=praised|refused=turned down|the=that|a=one|in=inside|near=close to|after=following|before="
    "ahead of|old=aged|cold=icy|small=little|young=youthful|because=since|without=lacking|under=beneath|late=far on",
    "Chinese": "打开=推开|搬走=带走|忘记=忘掉|弄丢=遗失|修好=修理好|卖掉=变卖|藏起=收起|赞美=夸奖|拒绝=回绝|借走=拿走|因为=由于|没有=未曾|"
    "老=年老的|旧=从前的|河边=河畔|冰冷=寒冷|小镇=镇子|天亮=黎明|傍晚=黄昏|时候=时刻",
}


NEW = "new, partly on the same topic"


@dataclass(frozen=True)
class Case:
    """A paragraph, and whether it repeats an earlier one. `kind` is the edit that made it."""

    text: str
    kind: str
    copy: bool


class Writer:
    """Writes paragraphs of one language, and edits them."""

    def __init__(self, language: str, seed: int) -> None:
        self.language = language
        self._lists = {key: words.split("|") for key, words in (ENGLISH if language == "English" else CHINESE).items()}
        self._synonyms = dict(pair.split("=") for pair in SYNONYMS[language].split("|"))
        self._random = random.Random(f"{language} {seed}")

    def paragraph(self, topic: int) -> list[str]:
        """Returns three to six sentences. Those of one topic draw half of their words from a small subset."""
        return [self._sentence(topic) for _ in range(self._random.randint(3, 6))]

    def join(self, sentences: list[str]) -> str:
        """Returns the sentences as one line."""
        return (" " if self.language == "English" else "").join(sentences)

    def edits(self) -> dict[str, tuple[Callable[[list[str]], str], bool]]:
        """Returns kind → (function that edits an earlier paragraph, whether the result is a near-duplicate)."""
        return {
            "the same": (self.join, True),
            "case, spaces, punctuation": (lambda s: self._restyled(self.join(s)), True),
            "1 word in 20 replaced": (lambda s: self._replaced(self.join(s), 0.05), True),
            "1 word in 10 replaced": (lambda s: self._replaced(self.join(s), 0.1), True),
            "1 word in 5 replaced": (lambda s: self._replaced(self.join(s), 0.2), True),
            "a sentence added": (lambda s: self.join([*s, self._sentence(0)]), True),
            "a sentence left out": (lambda s: self.join(s[:-1]), True),
            "sentences in another order": (lambda s: self.join(s[::-1]), True),
            "reworded with synonyms": (lambda s: self._reworded(self.join(s)), True),
            "another text, same opening": (lambda s: self.join([s[0], *(self._sentence(0) for _ in s[1:])]), False),
            "half of it, then another text": (self._half, False),
            "a form filled in again": (lambda _: self._form(), False),
        }

    def _sentence(self, topic: int) -> str:
        parts = []
        for key in self._random.choice(ORDERS).split():
            words = self._lists[key]
            few = words[topic % len(words) :][:3]
            parts.append(self._random.choice(few if self._random.random() < 0.5 else words))
        if self.language == "English":
            text = " ".join(parts)
            return text[0].upper() + text[1:] + "."
        return "".join(parts) + "。"

    def _half(self, sentences: list[str]) -> str:
        kept = sentences[: len(sentences) // 2]
        return self.join([*kept, *(self._sentence(0) for _ in sentences[len(kept) :])])

    def _form(self) -> str:
        """Returns an entry of a log: always the same frame, with other names and numbers."""
        pick = {key: self._random.choice(words) for key, words in self._lists.items()}
        one, two = self._random.randrange(100), self._random.randrange(1000)
        if self.language == "English":
            return (
                f"Entry {two}: {pick['when']} the station {pick['where']} reported {one} degrees and a wind of {one % 9} knots; "
                f"{pick['who']} signed for {pick['what']} and closed the book {pick['why']}."
            )
        return (
            f"第{two}条记录：{pick['when']}，设{pick['where']}的观测站报告气温{one}度，风力{one % 9}级；"
            f"{pick['who']}签收了{pick['what']}，{pick['why']}合上了记录本。"
        )

    def _units(self, text: str, change: Callable[[str], str]) -> str:
        return UNIT.sub(lambda found: change(found.group()), text)

    def _restyled(self, text: str) -> str:
        if self.language == "Chinese":
            return text.replace("。", "！").replace("了", "了，")
        return self._units(text, lambda word: word.upper() if self._random.random() < 0.3 else word).replace(". ", "; ")

    def _replaced(self, text: str, share: float) -> str:
        words = [unit for key in self._lists for phrase in self._lists[key] for unit in UNIT.findall(phrase)]
        return self._units(text, lambda w: self._random.choice(words) if self._random.random() < share else w)

    def _reworded(self, text: str) -> str:
        """Replaces every word that has a synonym, so that the text says the same in other words."""
        known = sorted(self._synonyms, key=len, reverse=True)
        edge = r"\b" if self.language == "English" else ""
        pattern = re.compile("|".join(rf"{edge}{re.escape(word)}{edge}" for word in known))
        return pattern.sub(lambda found: self._synonyms[found.group()], text)


def texts(language: str, count: int, *, seed: int = 0) -> Iterator[list[Case]]:
    """Yields texts of 24 paragraphs, 12 new and 12 made from them, in random order; `count` paragraphs in all."""
    for number in range(count // 24):
        writer, shuffled = Writer(language, seed * 1_000_000 + number), random.Random(number)
        originals = [writer.paragraph(number if shuffled.random() < 0.5 else topic) for topic in range(12)]
        made = [Case(writer.join(original), NEW, copy=False) for original in originals]
        edits = list(writer.edits().items())
        for original in originals:
            kind, (edit, copy) = shuffled.choice(edits)
            made.append(Case(edit(original), kind, copy))
        yield made[:12] + shuffled.sample(made[12:], 12)


def measure(
    language: str, count: int, *, threshold: float = 0.6, shingle: int = 3
) -> tuple[dict[str, tuple[int, int]], float, float]:
    """Returns kind → (paragraphs, those called near-duplicates); precision; recall over all kinds that are copies."""
    found: dict[str, tuple[int, int]] = {}
    hits = called = copies = 0
    for cases in texts(language, count):
        index = ParagraphIndex(threshold=threshold, shingle=shingle)
        for case in cases:
            said = index.add(case.text)
            total, yes = found.get(case.kind, (0, 0))
            found[case.kind] = (total + 1, yes + said)
            hits, called, copies = hits + (said and case.copy), called + said, copies + case.copy
    return found, hits / max(called, 1), hits / max(copies, 1)


class Banded:
    """MinHash and LSH instead of the index, with the same exact comparison of the candidates, for the speed table."""

    def __init__(self, threshold: float = 0.6, bands: int = 20, rows: int = 3) -> None:
        self._threshold, self._bands, self._rows = threshold, bands, rows
        self._minhash = MinHash(3, 8)
        self._buckets: list[dict[bytes, list[int]]] = [{} for _ in range(bands)]
        self._sets: list[frozenset[int]] = []

    def add(self, paragraph: str) -> bool:
        """Works like ParagraphIndex.add."""
        values = self._minhash(paragraph)
        keys = [
            np.ascontiguousarray(values[i * self._rows : (i + 1) * self._rows]).tobytes() for i in range(self._bands)
        ]
        found = shingles(paragraph, 3)
        candidates = dict.fromkeys(i for key, b in zip(keys, self._buckets, strict=True) for i in b.get(key, ()))
        duplicate = any(
            (overlap := len(found & self._sets[i])) >= self._threshold * (len(found | self._sets[i])) and overlap > 0
            for i in candidates
        )
        for key, bucket in zip(keys, self._buckets, strict=True):
            bucket.setdefault(key, []).append(len(self._sets))
        self._sets.append(found)
        return duplicate


def _lines(kind: str, count: int) -> list[str]:
    """Returns `count` paragraphs of 100 words from a Zipf vocabulary.

    `kind` is "all different", "near-copies" of one paragraph, or any other text for 2 in 3 words shared.
    """
    rng = random.Random(0)
    words, weights = [f"w{i}" for i in range(20_000)], [1 / (i + 5) for i in range(20_000)]
    base = rng.choices(words, weights, k=100)
    if kind == "all different":
        return [" ".join(rng.choices(words, weights, k=100)) for _ in range(count)]
    if kind == "near-copies":
        return [" ".join([*base[: (at := rng.randrange(100))], f"x{i}", *base[at + 1 :]]) for i in range(count)]
    return [" ".join([*base[:66], *rng.choices(words, weights, k=34)]) for _ in range(count)]


def _speed() -> None:
    print("| text | words | index, ms | MinHash + LSH, ms |\n|---|---|---|---|")
    for count in (120, 1000, 10_000):
        for kind in ("all different", "near-copies", "two thirds shared"):
            if count == 10_000 and kind == "two thirds shared":
                continue
            lines, spent = _lines(kind, count), []
            for finder in (ParagraphIndex(), Banded()):
                started = time.process_time()
                for line in lines:
                    finder.add(line)
                spent.append(f"{(time.process_time() - started) * 1e3:,.0f}")
            print(f"| {kind} | {count * 100:,} | {' | '.join(spent)} |")


def main() -> None:
    """Prints the tables of docs/format.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paragraphs", type=int, default=24_000, help="per language")
    parser.add_argument("--speed", action="store_true", help="the index beside MinHash and LSH")
    options = parser.parse_args()
    if options.speed:
        _speed()
        return
    both = [measure(language, options.paragraphs) for language in ("English", "Chinese")]
    print("| made how | English | Chinese |\n|---|---|---|")
    for kind in (NEW, *Writer("English", 0).edits()):
        cells = [
            f"{yes / total:.1%} of {total:,}"
            for found, _, _ in both
            for total, yes in [found.get(kind, (0, 0))]
            if total
        ]
        print(f"| {kind} | {' | '.join(cells)} |")
    print("\n| n-grams of | threshold | precision, recall (English) | precision, recall (Chinese) |\n|---|---|---|---|")
    for shingle, threshold in itertools.product((2, 3), (0.4, 0.5, 0.6, 0.7)):
        pairs = [
            measure(language, options.paragraphs, threshold=threshold, shingle=shingle)[1:]
            for language in ("English", "Chinese")
        ]
        print(f"| {shingle} | {threshold} | " + " | ".join(f"{p:.1%}, {r:.1%}" for p, r in pairs) + " |")


if __name__ == "__main__":
    main()
