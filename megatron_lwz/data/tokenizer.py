"""The tokenizer of a Hugging Face folder, and the tokens that end a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from megatron_lwz.errors import DataError


class Tokenizer:
    """Converts text to token ids and back, from `tokenizer.json` alone. Adds no BOS and no EOS."""

    def __init__(self, folder: str | Path) -> None:
        """Reads `folder`. Raises DataError when tokenizer.json is missing or broken, or when no file names an EOS."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise DataError(folder, "no tokenizer.json in this folder")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise DataError(path, f"not a tokenizers file ({error})") from error
        self.eos_ids: frozenset[int] = self._read_eos(folder)
        """All ids that end a text. Qwen2.5's files name different ones.

        If a stop set lacks one of them, generation can run to its token limit.
        """

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`. Special tokens written out in it (`<|endoftext|>`) become their ids."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Returns the text of `ids`. Bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def _read_eos(self, folder: Path) -> frozenset[int]:
        found: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            ids = _read_object(folder / name).get("eos_token_id")
            found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
        token = _read_object(folder / "tokenizer_config.json").get("eos_token")
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None:
            number = self._tokenizer.token_to_id(token)
            if number is None:
                raise DataError(folder / "tokenizer_config.json", f"eos_token {token!r} is not in tokenizer.json")
            found.add(number)
        if not found:
            raise DataError(folder, "no end-of-text token: name eos_token in tokenizer_config.json")
        return frozenset(found)


def read_pad_id(folder: Path) -> int | None:
    """Returns the id of the padding token that config.json or tokenizer_config.json names, None if neither does."""
    given = _read_object(folder / "config.json").get("pad_token_id")
    if given is not None:
        return given
    token = _read_object(folder / "tokenizer_config.json").get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is None or not (folder / "tokenizer.json").is_file():
        return None
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(path, "must hold a JSON object")
    return value
