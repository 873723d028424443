"""Pairs without human labels: documents split into two sides, then spoilt in controlled ways on each side alone."""

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
    """`tolerance`: how much the lengths of a pair may differ, as a share of the chosen text's; None: as it comes.

    `per_document`: pairs of each document, of different kinds. `tries`: draws before a kind is given up for a document.
    """

    kinds: tuple[str, ...] = tuple(CORRUPTIONS)
    tolerance: float | None = 0.1
    per_document: int = 3
    tries: int = 12
    seed: int = 1


def split_documents(
    items: Sequence[T], keys: Callable[[T], Sequence[Hashable]], *, held_out: float, seed: int
) -> tuple[list[T], list[T]]:
    """(training, held-out) items: those that share a key, directly or through others, are on one side.

    The side of a group depends on its keys and the seed alone, so that more items later leave the others where they are
    as long as they join no two groups.
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
    """Documents with the same request or the same reply must not be parted."""
    return f"prompt {_plain(document.prompt)}", f"reply {_plain(document.reply)}"


def pair_keys(pair: PreferencePair) -> tuple[str, str, str]:
    """The same for pairs that were read."""
    return f"prompt {_plain(pair.prompt)}", f"reply {_plain(pair.chosen)}", f"reply {_plain(pair.rejected)}"


def make_pairs(documents: Iterable[Document], rules: MakeRules) -> tuple[list[PreferencePair], Counter[str]]:
    """(pairs, counts of what could not be made) of the documents of one side.

    Which of a pair is the longer is kept even for every kind, as far as the draws allow, so that length tells nothing.
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
    """1 where the rejected text is longer, −1 where it is shorter."""
    difference = size(texts[1]) - size(texts[0])
    return (difference > 0) - (difference < 0)


def describe(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """What a person wants to know of a file of pairs: counts, lengths, and how well length alone would tell them apart."""
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
    """The held-out pairs of which no text stands in a training pair: short pieces of texts may come out the same."""
    seen = {_plain(text) for pair in train for text in (pair.chosen, pair.rejected)}
    return [pair for pair in held_out if _plain(pair.chosen) not in seen and _plain(pair.rejected) not in seen]


def leaks(train: Iterable[PreferencePair], held_out: Iterable[PreferencePair]) -> dict[str, int]:
    """How many requests and texts stand on both sides: 0, unless the split is broken."""
    sides = [
        ({_plain(p.prompt) for p in pairs if p.prompt}, {_plain(t) for p in pairs for t in (p.chosen, p.rejected)})
        for pairs in (list(train), list(held_out))
    ]
    return {"prompts": len(sides[0][0] & sides[1][0]), "texts": len(sides[0][1] & sides[1][1])}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
