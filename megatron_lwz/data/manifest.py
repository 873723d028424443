"""manifest.json of a prepared corpus: `lwz corpus` writes it, pretraining reads it.

The weights may be edited. A source's share of the trained predictions is its weight divided by the sum of all weights.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from megatron_lwz.config.sections import Section
from megatron_lwz.errors import DataError
from megatron_lwz.file_sums import FileSum, difference
from megatron_lwz.reading import Row, read_text, scan_rows
from megatron_lwz.writing import write_text

NAME = "manifest.json"


class Part(Section):
    """One indexed dataset. `tokens` counts the end-of-text token of every document."""

    prefix: str = Field(description="path without .bin, relative to the manifest")
    documents: int
    tokens: int
    index_sum: FileSum | None = Field(None, description="size in bytes and SHA-256 of the .idx file")
    tokens_sum: FileSum | None = Field(None, description="those of the .bin file")

    def fault(self, folder: Path, *, contents: bool) -> str | None:
        """Returns what is wrong with the files, None if nothing is or the manifest has no sums of them.

        Without `contents` only the size of the .bin file is compared.
        """
        for ending, expected, thorough in ((".idx", self.index_sum, True), (".bin", self.tokens_sum, contents)):
            path = folder / (self.prefix + ending)
            if expected is not None and (found := difference(path, expected, contents=thorough)) is not None:
                return found
        return None


class SourceEntry(Section):
    """A source: its parts, and counts of the documents read, removed and kept."""

    name: str
    weight: float = Field(gt=0, description="share of the trained predictions")
    train: Part | None
    validation: Part | None
    read: int = Field(description="documents read; the four below are not in the parts")
    broken: int
    empty: int
    exact_duplicates: int
    near_duplicates: int
    control_texts: int = Field(0, description="documents that spell out a control token, such as <|im_end|>")
    bytes: int = Field(description="UTF-8 bytes of the text of all readable documents")
    paths: tuple[str, ...] = Field(description="as the preparation was given them")
    files: int


class TokenizerEntry(Section):
    """The tokenizer that the ids belong to."""

    folder: str
    sha256: str = Field(description="of tokenizer.json")
    vocabulary: int
    eos: int = Field(description="the id appended to every document")


class Manifest(Section):
    """The whole manifest file."""

    format: Literal["megatron_lwz corpus 1"] = "megatron_lwz corpus 1"
    fingerprint: str = Field(description="of inputs and settings; weights are not part of it")
    tokenizer: TokenizerEntry
    validation_share: float
    split_rule: str
    sources: tuple[SourceEntry, ...]


def is_manifest(path: str) -> bool:
    """Returns whether an entry of `data.corpus` names a manifest or its folder, rather than rows."""
    if not path.endswith(".json") or Path(path).is_dir():
        return Path(path).is_dir()
    try:
        first = next(scan_rows(path), None)
    except DataError:  # the file is missing, or holds one object over several lines, as a manifest does
        return True
    return not isinstance(first, Row) or "text" not in first.value


def read_manifest(path: Path) -> Manifest:
    """Reads the manifest at `path`, a file or its folder. Raises DataError."""
    path = path / NAME if path.is_dir() else path
    if not path.exists():
        raise DataError(path, "there is no such file: is the preparation finished?")
    text = read_text(path)
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(path, f"not a manifest of `lwz corpus`: {where}: {first['msg']}") from error


def check_parts(folder: Path) -> int:
    """Compares every file of the corpus in `folder` with its checksum; returns the number of parts. Raises DataError."""
    found = [part for entry in read_manifest(folder).sources for part in (entry.train, entry.validation) if part]
    for part in found:
        if part.tokens_sum is None:
            raise DataError(folder / NAME, "has no checksums: an earlier version prepared this corpus")
        if (fault := part.fault(folder, contents=True)) is not None:
            raise DataError(folder / part.prefix, f"{fault}: copy the corpus again, or prepare it anew")
    return len(found)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes manifest.json atomically."""
    text = json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False)
    write_text(folder / NAME, text + "\n", durable=True)


def tokenizer_checksum(folder: Path) -> str:
    """Returns the SHA-256 of tokenizer.json."""
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
