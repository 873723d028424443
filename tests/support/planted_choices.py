"""Human-like choices between two texts with planted causes, and components whose worth is known.

People prefer the text of higher quality, which stands in it as a number of `fine` words, and now and then decide by
chance; the longer text is a little better on average, as among people.
"""

import hashlib
import json
import random
import re

GENRES = ("poem", "letter", "story")
_MATERIAL = re.compile(r"^=== (\w+ \w{16}) ===\n(.*?)\n=== end of \1 ===$", re.MULTILINE | re.DOTALL)


def text(rng: random.Random, quality: int, length: int) -> str:
    words = ["fine"] * quality + [rng.choice(("river", "stone", "lamp", "road")) for _ in range(length - quality)]
    rng.shuffle(words)
    return " ".join(words) + "."


def rows(count: int, *, seed: int = 0, people: float = 0.85, longer: float = 0.62) -> list[dict]:
    """Rows as data sets publish them. Half of the pairs have equal lengths; among the others the better text is longer
    in a share of `longer`."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        qualities = rng.sample(range(10), 2)
        base = rng.randint(40, 80)
        lengths = [base, base] if rng.random() < 0.5 else sorted((base, int(base * rng.uniform(1.3, 2.5))))
        if (qualities[0] > qualities[1]) == (rng.random() < longer):
            lengths.reverse()  # the first text gets the greater length
        texts = [text(rng, quality, length) for quality, length in zip(qualities, lengths, strict=True)]
        best = int(qualities[1] > qualities[0])
        chosen = best if rng.random() < people else 1 - best
        found.append(
            {"prompt": f"Write a {GENRES[number % 3]}, number {number // 2}.", "genre": GENRES[number % 3],
             "chosen": texts[chosen], "rejected": texts[1 - chosen]}
        )  # fmt: skip
    return found


def right(prompt, rollouts):
    return [float(rollout.text.count("fine")) for rollout in rollouts]


def long(prompt, rollouts):
    return [float(len(rollout.text.split())) for rollout in rollouts]


def noise(prompt, rollouts):
    return [hashlib.sha256(rollout.text.encode()).digest()[0] / 256 for rollout in rollouts]


def first(prompt, rollouts):
    """Follows the order in which it gets the texts, which must say nothing about the vote."""
    return [1.0, 0.0]


def broken(prompt, rollouts):
    return [None, None] if "poem" in prompt.text else [1.0, 1.0]


def fond_of_the_first(prompt: str, _: int) -> str:
    """A judge of pairs that sees quality, but names the first text where qualities are close."""
    one, other = (material.count("fine") for material in materials(prompt)[1:])
    return json.dumps({"reason": "words", "winner": "first" if one - other > -3 else "second"})


def materials(prompt: str) -> list[str]:
    """What stands between marked lines."""
    return [match[1] for match in _MATERIAL.findall(prompt)]
