"""Makes pairs without human labels: splits documents into two sides, then corrupts replies on each side separately."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from megatron_lwz.data.preferences.corruptions import CORRUPTIONS
from megatron_lwz.data.preferences.documents import Document, Pool
from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preferences.pieces import size

T = TypeVar("T")


@dataclass(frozen=True)
class MakeRules:
    """Rules for making pairs.

    `tolerance`: maximum difference of a pair's lengths, as a share of the chosen text's length; None for no limit.
    `per_document`: number of pairs per document, each of a different kind. `tries`: maximum number of draws for one
    kind of pair from one document.
    """

    kinds: tuple[str, ...] = tuple(CORRUPTIONS)
    tolerance: float | None = 0.1
    per_document: int = 3
    tries: int = 12
    seed: int = 1


def split_documents(
    items: Sequence[T], keys: Callable[[T], Sequence[Hashable]], *, held_out: float, seed: int
) -> tuple[list[T], list[T]]:
    """Splits items into (training, held-out). Items that share a key, directly or through others, are on one side.

    The side of a group depends on its keys and the seed alone. So adding items does not move the others, as long as the
    new items do not join two groups.
    """
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for item in items:
        first, *others = keys(item)
        for key in others:
            a, b = sorted((root(first), root(key)), key=repr)
            parent[b] = a
    sides: tuple[list[T], list[T]] = ([], [])
    for item in items:
        group = root(keys(item)[0])
        digest = hashlib.blake2b(f"{seed}:{group!r}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        sides[int.from_bytes(digest, "big") < held_out * 2**64].append(item)
    return sides


def document_keys(document: Document) -> tuple[str, str]:
    """Returns keys for `split_documents` that keep documents with the same request or the same reply together."""
    return f"prompt {_plain(document.prompt)}", f"reply {_plain(document.reply)}"


def pair_keys(pair: PreferencePair) -> tuple[str, str, str]:
    """Returns keys for `split_documents` that keep pairs with the same request or a shared reply together."""
    return f"prompt {_plain(pair.prompt)}", f"reply {_plain(pair.chosen)}", f"reply {_plain(pair.rejected)}"


def make_pairs(documents: Iterable[Document], rules: MakeRules) -> tuple[list[PreferencePair], Counter[str]]:
    """Makes pairs from the documents of one side. Returns (pairs, counts of the pairs that could not be made).

    For every kind, the chosen text is the longer one as often as the shorter one, as far as the draws allow. So length
    does not predict the preference.
    """
    pool, missed = Pool(documents), Counter[str]()
    balance: defaultdict[tuple[str, str], int] = defaultdict(int)
    made: list[PreferencePair] = []
    used: Counter[str] = Counter()
    for document in pool.documents:
        rng = random.Random(f"{rules.seed}/{document.id}/{document.prompt}")
        # The kinds that were made least often come first, so that rare ones get the documents that allow them.
        order = sorted(rules.kinds, key=lambda kind: (used[kind], rng.random()))
        count = 0
        for kind in order:
            if count == rules.per_document:
                break
            texts = _draw(document, pool, kind, rules, rng, balance[kind, document.language])
            if texts is None:
                missed[f"{kind} {document.language}"] += 1
                continue
            balance[kind, document.language] += _sign(texts)
            used[kind] += 1
            count += 1
            made.append(
                PreferencePair(
                    id=f"{document.id}/{kind}",
                    prompt=document.prompt,
                    chosen=texts[0],
                    rejected=texts[1],
                    kind=kind,
                    source=document.source,
                    document=document.id,
                )
            )
    return made, missed


def _draw(
    document: Document, pool: Pool, kind: str, rules: MakeRules, rng: random.Random, balance: int
) -> tuple[str, str] | None:
    fallback = None
    for _ in range(rules.tries):
        texts = CORRUPTIONS[kind](document, pool, rng, rules.tolerance)
        if texts is None or not texts[1].strip():
            continue
        if rules.tolerance is not None and abs(size(texts[1]) - size(texts[0])) > rules.tolerance * size(texts[0]):
            continue
        if balance == 0 or (_sign(texts) * balance <= 0 and (_sign(texts) or abs(balance) < 2)):
            return texts
        fallback = fallback or texts
    return fallback


def _sign(texts: tuple[str, str]) -> int:
    """Returns 1 if the rejected text is longer, −1 if it is shorter, 0 if the lengths are equal."""
    difference = size(texts[1]) - size(texts[0])
    return (difference > 0) - (difference < 0)


def describe(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Summarises a file of pairs: counts, mean lengths, and the accuracy of guessing the preference by length alone."""
    sizes = [(size(pair.chosen), size(pair.rejected)) for pair in pairs]
    longer = sum((c > r) + 0.5 * (c == r) for c, r in sizes) / max(1, len(sizes))
    return {
        "pairs": len(pairs),
        "documents": len({pair.document for pair in pairs}),
        "kinds": dict(sorted(Counter(pair.kind for pair in pairs).items())),
        "languages": dict(sorted(Counter(pair.language for pair in pairs).items())),
        "sources": dict(sorted(Counter(pair.source for pair in pairs).items())),
        "mean_length": {
            "chosen": round(sum(c for c, _ in sizes) / max(1, len(sizes)), 1),
            "rejected": round(sum(r for _, r in sizes) / max(1, len(sizes)), 1),
        },
        "length_only_accuracy": round(max(longer, 1 - longer), 4) if sizes else None,
    }


def without_shared(train: Iterable[PreferencePair], held_out: Iterable[PreferencePair]) -> list[PreferencePair]:
    """Returns the held-out pairs that share no text with a training pair. Short corrupted texts can coincide."""
    seen = {_plain(text) for pair in train for text in (pair.chosen, pair.rejected)}
    return [pair for pair in held_out if _plain(pair.chosen) not in seen and _plain(pair.rejected) not in seen]


def leaks(train: Iterable[PreferencePair], held_out: Iterable[PreferencePair]) -> dict[str, int]:
    """Counts the requests and texts that are on both sides. Both counts are 0 if the split is correct."""
    sides = [
        ({_plain(p.prompt) for p in pairs if p.prompt}, {_plain(t) for p in pairs for t in (p.chosen, p.rejected)})
        for pairs in (list(train), list(held_out))
    ]
    return {"prompts": len(sides[0][0] & sides[1][0]), "texts": len(sides[0][1] & sides[1][1])}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
