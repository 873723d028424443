"""The YAML file that `lwz corpus` reads: what a corpus is made of. Field descriptions are its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from megatron_lwz.config.load import first_fault
from megatron_lwz.config.sections import Fraction, Section
from megatron_lwz.decoding import decode_yaml
from megatron_lwz.errors import DataError, quote
from megatron_lwz.reading import files_below, read_text
from megatron_lwz.run_paths import RunPaths

Format = Literal["jsonl", "parquet", "text", "journal"]
ROW_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
TEXT_ENDINGS = (".txt", ".md")
_ENDINGS: dict[tuple[str, ...], Format] = {
    ROW_ENDINGS: "jsonl",
    TEXT_ENDINGS: "text",
    (".parquet",): "parquet",
    (".sqlite",): "journal",
}


class JournalChoice(Section):
    """Choice of the rollouts of a run's journal that become documents (format: journal)."""

    per_group: int = Field(1, gt=0, description="best-rewarded rollouts per prompt")
    keep: float = Field(1.0, gt=0, le=1, description="share of those to keep, best first over the whole journal")
    first_step: int = Field(0, ge=0, description="only groups admitted at this training step or later")
    prompt: bool = Field(True, description="begin with the rendered prompt, as the run saw it; open in the paper")


class SourceSpec(Section):
    """One source of the blend."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="in file names, metrics and reports")
    paths: tuple[str, ...] = Field(
        min_length=1, description="files, folders or glob patterns, relative to the YAML file"
    )
    format: Literal["auto", "jsonl", "parquet", "text", "journal"] = Field(
        "auto",
        description="auto: by ending (.jsonl, .json, both also with .gz, .parquet, .sqlite); a folder: text, *.txt and *.md",
    )
    key: str = Field("text", description="key (JSONL) or column (Parquet) of the text")
    encoding: str = Field("utf-8", description="of text files, e.g. gb18030")
    weight: float | None = Field(
        None,
        gt=0,
        description="share of the trained predictions; sources without one split what is left by their tokens",
    )
    skip_broken: bool = Field(False, description="count documents that cannot be read and go on, instead of failing")
    special_tokens: bool = Field(
        False,
        description="special tokens written out in the text become their ids; only for text you trust; false: text",
    )
    journal: JournalChoice = JournalChoice()


class DuplicateSpec(Section):
    """Definition of a copy. Of two copies, the earlier document in the order of the sources is kept."""

    exact: bool = Field(True, description="remove documents with the same text up to white space")
    near: bool = Field(True, description="remove near copies; if false they are still kept on one side of the split")
    threshold: Fraction = Field(
        0.8, description="estimated Jaccard similarity from which two documents are near copies"
    )
    shingle: int = Field(5, gt=0, description="n-gram size: words, or characters in CJK text")
    minimum_shingles: int = Field(20, gt=0, description="shorter documents are compared exactly only")


class CorpusSpec(Section):
    """The whole YAML file."""

    tokenizer: str = Field(description="folder with tokenizer.json, relative to the YAML file")
    validation: Fraction = Field(0.001, description="share of the documents held back")
    seed: int = Field(0, ge=0, description="of the split")
    duplicates: DuplicateSpec = DuplicateSpec()
    sources: tuple[SourceSpec, ...] = Field(min_length=1, max_length=255)

    @model_validator(mode="after")
    def _check_names_and_weights(self) -> CorpusSpec:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"every source needs its own name, got {', '.join(names)}")
        given = [source.weight for source in self.sources if source.weight is not None]
        if len(given) < len(names) and sum(given) >= 1:
            raise ValueError(f"the given weights sum to {sum(given):g}: nothing is left for the sources without one")
        return self


def read_spec(path: Path) -> CorpusSpec:
    """Reads the YAML file and makes its paths absolute. Raises DataError naming the key."""
    text = read_text(path)
    try:
        tree = decode_yaml(text)
    except (ValueError, yaml.YAMLError) as error:  # ValueError: a date or number that is none; too deep
        raise DataError(path, f"cannot be read ({' '.join(str(error).split())}): correct it") from error
    try:
        spec = CorpusSpec.model_validate(tree)
    except ValidationError as error:
        key, value, advice = first_fault(error, CorpusSpec)
        raise DataError(path, f"{key or 'the file'} = {quote(value)}: {advice}") from error
    folder = path.resolve().parent
    sources = [s.model_copy(update={"paths": tuple(str(folder / p) for p in s.paths)}) for s in spec.sources]
    return spec.model_copy(update={"tokenizer": str(folder / spec.tokenizer), "sources": tuple(sources)})


def find_files(source: SourceSpec) -> tuple[Format, list[Path]]:
    """Returns the source's format and its files, sorted per entry of `paths`.

    Raises DataError when an entry matches no file.
    """
    formats: set[Format] = set()
    files: list[Path] = []
    for entry in source.paths:
        path = Path(entry)
        found = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not found:
            raise DataError(entry, f"source '{source.name}': no such file or folder: check the path")
        for item in found:
            kind = _format_of(item, source)
            formats.add(kind)
            files += [item] if item.is_file() else _files_below(item, kind, source)
    if len(formats) > 1:
        raise DataError(
            source.paths[0], f"source '{source.name}' mixes {', '.join(sorted(formats))}: make it two sources"
        )
    return formats.pop(), files


def _format_of(path: Path, source: SourceSpec) -> Format:
    if source.format != "auto":
        return source.format
    if path.is_dir():
        return "text"
    kind = next((kind for endings, kind in _ENDINGS.items() if path.name.endswith(endings)), None)
    if kind is None:
        raise DataError(path, f"source '{source.name}': unknown ending; set its format")
    return kind


def _files_below(folder: Path, kind: Format, source: SourceSpec) -> list[Path]:
    if kind == "journal":
        return [RunPaths(folder).journal]
    # A folder of data sets holds .json files that are no rows, such as dataset_info.json.
    endings = {"jsonl": (".jsonl", ".jsonl.gz"), "parquet": (".parquet",), "text": TEXT_ENDINGS}[kind]
    found = [path for path in files_below(folder) if path.name.endswith(endings)]
    if not found:
        raise DataError(folder, f"source '{source.name}': no {' or '.join(endings)} files in this folder")
    return found
