#!/usr/bin/env python
"""False alarms and delay of the guard's rule `loop`, on legitimate texts and on real endless loops, for docs/guard.md.

    python tools/measure_loops.py [FOLDER …] [--ends]

It uses made-up texts of kinds that legitimately repeat themselves, in English and Chinese, and the .txt files of the
folders, each file as one text in UTF-8. Every text is read like a rollout, 256 characters at a time. Everything is seeded.
`--ends` prints the end of each file that raised an alarm with the default settings.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_lwz.cli import common
from megatron_lwz.config.guard import GuardSection
from megatron_lwz.data.text.loops import LoopFinder
from megatron_lwz.reading import read_text

PIECE = 256
DEFAULT = GuardSection()
SETTINGS = [(500, 3), (500, 5), (1000, 5), (DEFAULT.loop_characters, DEFAULT.loop_repeats), (4000, 5)]
"""(characters, repeats) settings that are compared."""
EACH = 200
"""Number of made-up texts of each kind and language."""
PHRASES = {
    "English": "the river|a cold morning|my father's house|the long road home|an empty chair|the sound of bells|a letter|"
    "the harbour lights|an old song|the garden gate|winter wheat|a borrowed coat|the last train|a quiet street",
    "Chinese": "江水|寒冷的清晨|父亲的老屋|回家的路|空椅子|远处的钟声|一封信|港口的灯火|旧时的歌|花园的门|冬天的麦田|借来的外衣|末班车",
}


def phrase(noise: random.Random, language: str) -> str:
    """Returns a random phrase of the language."""
    return noise.choice(PHRASES[language].split("|"))


def line(noise: random.Random, language: str) -> str:
    """Returns a line of three phrases."""
    return (", " if language == "English" else "，").join(phrase(noise, language) for _ in range(3))


def poem(noise: random.Random, language: str) -> str:
    """Returns twelve stanzas, each followed by the same refrain of two to four lines."""
    refrain = "\n".join(line(noise, language) for _ in range(noise.randint(2, 4)))
    stanzas = ("\n".join(line(noise, language) for _ in range(4)) for _ in range(12))
    return "\n\n".join(f"{stanza}\n\n{refrain}" for stanza in stanzas)


def song(noise: random.Random, language: str) -> str:
    """Returns verses, each followed by a chorus sung two to four times and a line of la la la."""
    chorus = "\n".join(line(noise, language) for _ in range(4)) + "\n"
    la = ("la " if language == "English" else "啦") * noise.randint(8, 60) + "\n"
    return "".join(line(noise, language) + "\n" + chorus * noise.randint(2, 4) + la for _ in range(5))


def table(noise: random.Random, language: str) -> str:
    """Returns a Markdown table whose cells are mostly empty."""
    columns = noise.randint(3, 8)
    rows = (
        "| " + " | ".join(phrase(noise, language) if noise.random() < 0.1 else "—" for _ in range(columns)) + " |"
        for _ in range(noise.randint(20, 60))
    )
    return "|".join(["", *(["---"] * columns), ""]) + "\n" + "\n".join(rows)


def numbered(noise: random.Random, language: str) -> str:
    """Returns a list whose items begin alike."""
    start = phrase(noise, language)
    return "\n".join(f"{n}. {start}: {phrase(noise, language)}" for n in range(1, noise.randint(30, 120)))


def contents(noise: random.Random, language: str) -> str:
    """Returns a table of contents with dots up to the page number."""
    rows = (f"{phrase(noise, language)} " + "." * noise.randint(20, 80) + f" {7 * n}" for n in range(40))
    return "\n".join(rows)


def rules(noise: random.Random, language: str) -> str:
    """Returns sections between long lines of dashes, with laughter and dots."""
    laughter = "ha" if language == "English" else "哈"
    marks = ("-" * 80, "=" * 120, "…" * 40, laughter * 60, "_" * 200)
    return "\n".join(f"{line(noise, language)}\n{noise.choice(marks)}" for _ in range(40))


def checklist(noise: random.Random, language: str) -> str:
    """Returns a page of boxes to fill in, all alike."""
    box = "- [ ] __________" if language == "English" else "□ ________"
    return line(noise, language) + "\n" + f"{box}\n" * noise.randint(10, 60)


def litany(noise: random.Random, language: str) -> str:
    """Returns names, each with the same response."""
    answer = "remember us" if language == "English" else "请记得我们"
    return "\n".join(f"{line(noise, language)}\n{answer}" for _ in range(60))


def lines_to_write(noise: random.Random, language: str) -> str:
    """Returns the same sentence a hundred times, as a pupil's punishment. It cannot be distinguished from a loop."""
    return (line(noise, language) + "\n") * 100


KINDS: dict[str, Callable[[random.Random, str], str]] = {
    "poem with a refrain": poem,
    "song with choruses": song,
    "table, mostly empty": table,
    "list, items alike": numbered,
    "contents with dots": contents,
    "rules and laughter": rules,
    "form, boxes alike": checklist,
    "litany": litany,
    "one line 100 times": lines_to_write,
}


MADE_UP = {f"{name} ({language})" for name in KINDS for language in PHRASES}


def first_alarm(text: str, characters: int, repeats: int, unit: int = DEFAULT.loop_unit) -> int | None:
    """Returns the number of characters read when the rule first holds."""
    finder = LoopFinder(characters=characters, repeats=repeats, unit=unit)
    for start in range(0, len(text), PIECE):
        if finder.feed(text[start : start + PIECE]):
            return start + PIECE
    return None


def sources(folders: list[Path]) -> Iterator[tuple[str, list[str]]]:
    """Yields (name, texts): made-up kinds first, then the files."""
    for language in PHRASES:
        for name, make in KINDS.items():
            noise = random.Random(f"{name} {language}")
            yield f"{name} ({language})", [make(noise, language) for _ in range(EACH)]
    for folder in folders:
        yield folder.name, [read_text(path) for path in sorted(folder.rglob("*.txt"))]


def delays() -> Iterator[tuple[int, float]]:
    """Yields (characters of the unit, repeats of it until the alarm) of endless loops with the default settings."""
    noise = random.Random(0)
    for length in (10, 50, 200, 500, 1000, 2000):
        unit = "".join(noise.choices("abcdefghijklmnopqrstuvwxyz   .\n", k=length))
        found = []
        for _ in range(20):
            begin = noise.randint(3000, 6000)
            before = "".join(noise.choices("abcdefghijklmnopqrstuvwxyz ", k=begin))
            at = first_alarm(before + unit * (40_000 // length), DEFAULT.loop_characters, DEFAULT.loop_repeats)
            assert at is not None, length
            found.append((at - begin) / length)
        yield length, statistics.mean(found)


def main(argv: Sequence[str]) -> None:
    """Measures and prints two tables. Raises LwzError."""
    parser = common.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--ends", action="store_true")
    options = parser.parse_args(list(argv))
    heads = [f"{characters} × {repeats}" for characters, repeats in SETTINGS]
    print("| texts | of them | characters | " + " | ".join(heads) + " |\n|---|" + "---|" * (len(heads) + 2))
    for name, texts in sources(options.folders):
        alarms = [sum(first_alarm(text, *setting) is not None for text in texts) for setting in SETTINGS]
        size = sum(map(len, texts)) // max(1, len(texts))
        print(f"| {name} | {len(texts)} | {size} | " + " | ".join(map(str, alarms)) + " |", flush=True)
        for text in texts if options.ends and name not in MADE_UP else ():
            at = first_alarm(text, *SETTINGS[3])
            if at is not None:
                print(f"    {at}: {text[max(0, at - 200) : at]!r}")
    print("\n| unit, characters | repeats until it is found |\n|---|---|")
    for length, repeats in delays():
        print(f"| {length} | {repeats:.1f} |")


if __name__ == "__main__":
    sys.exit(common.run(main))
