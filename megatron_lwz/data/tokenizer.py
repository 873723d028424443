"""The tokenizer of a Hugging Face folder, and the tokens that end a text.

A control token is a token that tokenizer.json marks as special, such as `<|im_end|>`. Only a template can ask for one
(`data/markup.py`). The same characters in a prompt, a reply or a document are text and become ordinary tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from megatron_lwz.data.markup import Markup
from megatron_lwz.errors import DataError
from megatron_lwz.reading import read_object, read_text

_FILE, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_MOST_IDS = 2**31  # ids are int32 everywhere
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Tags of a reply. They are part of its text, also for a tokenizer that has special tokens for them."""


class Tokenizer:
    """Converts text to token ids and back, from `tokenizer.json` alone. Adds no BOS and no EOS."""

    def __init__(self, folder: str | Path) -> None:
        """Reads `folder`. Raises DataError when tokenizer.json is missing or broken, or when no file names an EOS."""
        self.folder = Path(folder)
        self._tokenizer = open_tokenizer(self.folder)
        self._controls = Controls(self._tokenizer)
        self.control_texts = 0
        """Number of texts encoded so far whose data spells out a control token."""
        self.eos_ids: frozenset[int] = self._read_eos()
        """All ids that end a text. Qwen2.5's files name different ones.

        If a stop set lacks one of them, generation can run to its token limit.
        """

    @cached_property
    def vocab_size(self) -> int:
        """The largest id + 1, added tokens included. A vocabulary may have gaps."""
        return vocabulary_size(self._tokenizer)

    def vocabulary(self) -> dict[str, int]:
        """Returns every token, added ones included, with its id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`. Control tokens that it spells out are text, except in a template's Markup.

        Text with such a token, whose text is then encoded in parts, is counted in `control_texts`.
        """
        found = self._controls.find(text)
        if not found:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        self.control_texts += any(not match.meant for match in found)
        ids: list[int] = []
        for part in self._controls.parts(text, found):
            ids += [part] if isinstance(part, int) else self._tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def control_note(self) -> str:
        """Returns ", 3 texts spell out control tokens (read as text)" for a summary; "" if none did."""
        count = self.control_texts
        return (
            f", {count} text{'s spell' if count > 1 else ' spells'} out control tokens (read as text)" if count else ""
        )

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Returns the text of `ids`. Bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def _read_eos(self) -> frozenset[int]:
        found: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            path = self.folder / name
            ids = read_token_ids(_settings(path), "eos_token_id", path)
            strange = next((number for number in ids if self._tokenizer.id_to_token(number) is None), None)
            if strange is not None:
                raise DataError(path, f"eos_token_id {strange} is no token of {_FILE}")
            found.update(ids)
        token = _named_token(self.folder, "eos_token")
        if token is not None:
            found.add(_token_id(self._tokenizer, token, self.folder, "eos_token"))
        if not found:
            raise DataError(self.folder, f"no end-of-text token: name eos_token in {_SETTINGS}")
        return frozenset(found)


class Spelled(NamedTuple):
    """A control token's characters in a text: text[start:stop]. `meant`: a template wrote them, so the token is meant."""

    start: int
    stop: int
    meant: bool


class Controls:
    """Finds the control tokens of a tokenizer in texts. Makes the tokenizer itself read their characters as text."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder()
        self._tokens = {token.content: (number, token) for number, token in added.items() if token.special}
        marks = sorted(self._tokens, key=len, reverse=True)  # of two that begin alike, the longer one is meant
        self._pattern = re.compile("|".join(map(re.escape, marks)) or r"(?!)")

    def find(self, text: str) -> list[Spelled]:
        """Returns every place where `text` spells out a control token, in order."""
        matches = list(self._pattern.finditer(text))
        if not matches:
            return []
        own = text.own if isinstance(text, Markup) else ()
        return [
            Spelled(*match.span(), match[0] in _TAGS or any(a <= match.start() and match.end() <= b for a, b in own))
            for match in matches
        ]

    def parts(self, text: str, found: Sequence[Spelled]) -> Iterator[str | int]:
        """Yields the text in parts: ids of the control tokens that are meant, and the texts between them."""
        at, strip = 0, False
        for start, stop, meant in found:
            if not meant:
                continue
            number, token = self._tokens[text[start:stop]]
            between = str(text[at:start])
            between = between.lstrip() if strip else between
            if between := (between.rstrip() if token.lstrip else between):  # such a token takes the spaces beside it
                yield between
            yield number
            at, strip = stop, token.rstrip
        if rest := (str(text[at:]).lstrip() if strip else str(text[at:])):
            yield rest


def vocabulary_size(tokenizer: tokenizers.Tokenizer) -> int:
    """Returns the largest id of a tokenizer + 1, added tokens included."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def read_pad_id(folder: Path) -> int | None:
    """Returns the id of the padding token that config.json or tokenizer_config.json names, None if neither does.

    Raises DataError.
    """
    path = folder / "config.json"
    given = read_token_ids(_settings(path), "pad_token_id", path)
    if len(given) > 1:
        raise DataError(path, f"pad_token_id = {given}: must be one token id")
    token = _named_token(folder, "pad_token")
    if given or token is None or not (folder / _FILE).is_file():
        return given[0] if given else None
    return _token_id(open_tokenizer(folder), token, folder, "pad_token")


def read_token_ids(settings: dict[str, Any], key: str, path: Path) -> list[int]:
    """Returns the token ids under `key`: one, or a list of them; none if it is missing or null. Raises DataError.

    Files of other tools hold ids as texts or as numbers like 2.0, which are read too.
    """
    value = settings.get(key)
    if value is None:
        return []
    found = [_whole(entry) for entry in (value if isinstance(value, list) else [value])]
    ids = [number for number in found if number is not None and 0 <= number < _MOST_IDS]
    if len(ids) < len(found):
        raise DataError(path, f"{key} = {value!r}: must be a token id, a whole number from 0 on, or a list of them")
    return ids


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _named_token(folder: Path, key: str) -> Any:
    """Returns the token under `key` of tokenizer_config.json. Old files hold an object with the text and its flags."""
    token = _settings(folder / _SETTINGS).get(key)
    return token.get("content") if isinstance(token, dict) else token


def _token_id(tokenizer: tokenizers.Tokenizer, token: Any, folder: Path, key: str) -> int:
    number = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if number is None:
        raise DataError(folder / _SETTINGS, f"{key} {token!r} is not in {_FILE}: use the two files of one tokenizer")
    return number


def open_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Returns the library's tokenizer of a folder. Raises DataError."""
    path = folder / _FILE
    if not path.is_file():
        raise DataError(folder, f"no {_FILE} in this folder: name the folder of a tokenizer, or copy the file there")
    text = read_text(path)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise DataError(path, f"not a tokenizers file ({error}): copy it again") from error


def _settings(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
