"""Builds the manifest's entries: exact counts per source, and blend weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megatron_lwz.data.corpora.assemble import Assembly, Verdict
from megatron_lwz.data.corpora.spec import CorpusSpec
from megatron_lwz.data.corpora.tokenize import Job, UnitRows
from megatron_lwz.data.manifest import Manifest, Part, SourceEntry
from megatron_lwz.errors import DataError
from megatron_lwz.file_sums import sum_of_file


def source_entries(
    spec: CorpusSpec,
    files: list[int],
    jobs: list[Job],
    rows: list[UnitRows],
    verdict: Verdict,
    assemblies: list[Assembly],
) -> tuple[SourceEntry, ...]:
    """Returns one entry per source, in order. Weights are filled in later by `with_weights`."""
    parts = {
        assembly.prefix.name: Part(
            prefix=assembly.prefix.name,
            documents=len(assembly.lengths),
            tokens=int(assembly.lengths.sum(dtype=np.int64)),
            index_sum=sum_of_file(assembly.prefix.with_name(assembly.prefix.name + ".idx")),
            tokens_sum=sum_of_file(assembly.prefix.with_name(assembly.prefix.name + ".bin")),
        )
        for assembly in assemblies
    }
    owner = np.repeat([job.unit.source for job in jobs], [len(unit.lengths) for unit in rows])
    entries = []
    for number, (source, count) in enumerate(zip(spec.sources, files, strict=True)):
        own = [unit for job, unit in zip(jobs, rows, strict=True) if job.unit.source == number]
        entries.append(
            SourceEntry(
                name=source.name,
                weight=1.0,
                train=parts.get(f"{source.name}_train"),
                validation=parts.get(f"{source.name}_validation"),
                read=sum(unit.read for unit in own),
                broken=sum(unit.broken for unit in own),
                empty=sum(unit.empty for unit in own),
                exact_duplicates=int(verdict.exact[owner == number].sum()),
                near_duplicates=int(verdict.near[owner == number].sum()),
                control_texts=sum(unit.control_texts for unit in own),
                bytes=sum(unit.bytes for unit in own),
                paths=source.paths,
                files=count,
            )
        )
    return tuple(entries)


def with_weights(manifest: Manifest, spec: CorpusSpec) -> Manifest:
    """Returns the manifest with weights that sum to 1 over the sources that hold training documents.

    Sources without a given weight split the remaining share in proportion to their tokens. Raises DataError when a
    source with a given weight has no training document: the shares of the others would not be the requested ones.
    """
    asked = {source.name: source.weight for source in spec.sources}
    for entry in manifest.sources:
        if entry.train is None and asked[entry.name] is not None:
            raise DataError(", ".join(entry.paths), f"source '{entry.name}' has a weight but no document to train on")
    tokens = {entry.name: entry.train.tokens if entry.train else 0 for entry in manifest.sources}
    given = sum(weight for weight in asked.values() if weight is not None)
    unasked = sum(tokens[name] for name, weight in asked.items() if weight is None)
    if not any(tokens.values()):
        raise DataError(spec.sources[0].name, "no source holds a document to train on")

    def weight(name: str) -> float:
        asked_for = asked[name]
        if asked_for is None:
            return (1.0 - given) * tokens[name] / unasked if tokens[name] else 1.0  # a source without documents: unused
        return asked_for / given if unasked == 0 else asked_for

    entries = tuple(entry.model_copy(update={"weight": round(weight(entry.name), 12)}) for entry in manifest.sources)
    return manifest.model_copy(update={"sources": entries})


def table(manifest: Manifest) -> Iterator[str]:
    """Yields the lines of a readable table, one per source.

    The column `epochs` is the number of passes over the source while the whole corpus is read once.
    """
    columns = ("documents", "tokens", "held back", "copies", "near", "empty", "broken", "control", "weight", "epochs")
    yield f"{'source':20}" + "".join(f"{name:>14}" for name in columns)
    everything = sum(entry.train.tokens for entry in manifest.sources if entry.train)
    for entry in manifest.sources:
        train, held = entry.train, entry.validation
        counts = (
            train.documents if train else 0,
            train.tokens if train else 0,
            held.tokens if held else 0,
            entry.exact_duplicates,
            entry.near_duplicates,
            entry.empty,
            entry.broken,
            entry.control_texts,
        )
        shares = (
            f"{entry.weight:>14.4f}{entry.weight * everything / train.tokens:>14.2f}" if train else f"{'-':>14}" * 2
        )
        yield f"{entry.name:20}" + "".join(f"{count:>14,}" for count in counts) + shares
    held_back = sum(entry.validation.tokens for entry in manifest.sources if entry.validation)
    yield f"{everything:,} tokens to train on, {held_back:,} held back; end-of-text tokens are counted"
