"""Where the tokens of a response stand in its text."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from megatron_lwz.data.tokenizer import open_tokenizer
from megatron_lwz.errors import LwzError


class Tokens:
    """The tokenizer of a run, if this machine has it. `missing` says why not."""

    def __init__(self, folder: Path | None) -> None:
        self.missing = ""
        self._tokenizer: Any = None
        if folder is None:
            self.missing = "the run's config names no tokenizer"
            return
        try:
            self._tokenizer = open_tokenizer(folder)
        except LwzError as error:
            self.missing = f"{error}; lwz ui --tokenizer names another folder"

    def ends(self, ids: Sequence[int], text: str) -> list[int] | None:
        """Returns the end of every token in `text`, in characters; None where the tokens do not give this text.

        A character of several tokens belongs to the last of them. Special tokens are empty.
        """
        if self._tokenizer is None:
            return None
        pieces = self._bytes(ids)
        if pieces is None:
            return self._by_decoding(ids, text)
        decoder = getincrementaldecoder("utf-8")("replace")  # a character counts when its last byte has come
        last = len(pieces) - 1
        ends = list(accumulate(len(decoder.decode(piece, place == last)) for place, piece in enumerate(pieces)))
        return ends if b"".join(pieces).decode("utf-8", "replace") == text else None

    def _bytes(self, ids: Sequence[int]) -> list[bytes] | None:
        """Returns the bytes of every token of a byte-level vocabulary, None for another kind."""
        if not repr(self._tokenizer.decoder).startswith("ByteLevel("):
            return None
        table = _byte_values()
        added = self._tokenizer.get_added_tokens_decoder()
        pieces = []
        for number in ids:
            if (token := added.get(number)) is not None:
                pieces.append(b"" if token.special else token.content.encode())
                continue
            name = self._tokenizer.id_to_token(number) or ""
            if any(char not in table for char in name):
                return None
            pieces.append(bytes(table[char] for char in name))
        return pieces

    def _by_decoding(self, ids: Sequence[int], text: str) -> list[int] | None:
        """Decodes with the token before: slower, for tokenizers that are not byte-level."""
        ends, at = [], 0
        for place in range(len(ids)):
            before = self._tokenizer.decode(list(ids[max(0, place - 1) : place]), skip_special_tokens=True)
            both = self._tokenizer.decode(list(ids[max(0, place - 1) : place + 1]), skip_special_tokens=True)
            at += len(both) - len(before)
            ends.append(at)
        whole = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return ends if whole == text and at == len(text) else None


@lru_cache(1)
def _byte_values() -> dict[str, int]:
    """Returns the table of byte-level BPE: printable bytes stand for themselves, others are moved to U+0100 and above."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + index): value for index, value in enumerate(others)}
