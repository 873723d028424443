"""Prepares a whole corpus: units → workers → verdict on copies and split → indexed datasets → manifest.

Intermediate files lie in OUT/work. A finished unit is never redone, so a preparation that was killed resumes with the
unfinished ones. The result depends neither on the number of restarts nor on the number of workers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_lwz.data.corpora import assemble, tokenize
from megatron_lwz.data.corpora.assemble import Assembly, Verdict
from megatron_lwz.data.corpora.duplicates import SPLIT_RULE
from megatron_lwz.data.corpora.report import source_entries, with_weights
from megatron_lwz.data.corpora.spec import CorpusSpec, Format, SourceSpec, find_files
from megatron_lwz.data.corpora.tokenize import Job, UnitRows
from megatron_lwz.data.corpora.units import Unit, cut
from megatron_lwz.data.index_file import token_dtype
from megatron_lwz.data.manifest import NAME, Manifest, TokenizerEntry, read_manifest, tokenizer_checksum, write_manifest
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import DataError, LwzError
from megatron_lwz.reading import read_object
from megatron_lwz.writing import replacing

Distil = Callable[[SourceSpec, Path, Tokenizer], Iterable[str]]
"""Reads the documents of a journal, given a source of format journal, the journal file and its tokenizer."""


def prepare(
    spec: CorpusSpec,
    out: Path,
    *,
    workers: int,
    unit_bytes: int,
    distil: Distil,
    say: Callable[[str], None],
) -> Manifest:
    """Writes the corpus into `out`, or resumes writing it. If the corpus is complete, only its weights are updated.

    `say` is called with each line of progress. Raises LwzError; finished units are kept.
    """
    tokenizer = Tokenizer(spec.tokenizer)
    inputs = [find_files(source) for source in spec.sources]
    fingerprint = _fingerprint(spec, inputs, unit_bytes)
    work = out / "work"
    if (out / NAME).exists():
        manifest = read_manifest(out)
        _check_same(manifest.fingerprint, fingerprint, out)
        manifest = with_weights(manifest, spec)
        write_manifest(manifest, out)
        shutil.rmtree(work, ignore_errors=True)
        say(f"{out} is complete; only weights can have changed")
        return manifest
    made = work if out.exists() else out
    with _locked(work):
        _claim(work / "job.json", fingerprint, out)
        jobs = _jobs(spec, inputs, work, unit_bytes, tokenizer, distil)
        if not jobs:
            shutil.rmtree(made)
            raise DataError(out, "the sources' files are all empty")
        _tokenize(jobs, workers, say)
        rows = [tokenize.load_rows(job.target) for job in jobs]
        say("comparing documents")
        verdict = assemble.judge(rows, spec)
        assemblies = _assemblies(spec, jobs, rows, verdict, out, tokenizer.vocab_size)
        _run_all(assemble.write, assemblies, workers, lambda _: None)
        manifest = Manifest(
            fingerprint=fingerprint,
            tokenizer=TokenizerEntry(
                folder=spec.tokenizer,
                sha256=tokenizer_checksum(Path(spec.tokenizer)),
                vocabulary=tokenizer.vocab_size,
                eos=min(tokenizer.eos_ids),
            ),
            validation_share=spec.validation,
            split_rule=SPLIT_RULE,
            sources=source_entries(spec, [len(files) for _, files in inputs], jobs, rows, verdict, assemblies),
        )
        manifest = with_weights(manifest, spec)
        write_manifest(manifest, out)
    shutil.rmtree(work)
    for left_by_a_kill in out.glob("*.tmp"):
        left_by_a_kill.unlink()
    return manifest


def _fingerprint(spec: CorpusSpec, inputs: list[tuple[Format, list[Path]]], unit_bytes: int) -> str:
    """Returns a hash of all inputs and settings that determine the tokens.

    Of a journal only the name is included, because the file grows while its run goes on.
    """
    sources = []
    for source, (kind, files) in zip(spec.sources, inputs, strict=True):
        stats = [(str(file), *_size_and_time(file)) if kind != "journal" else str(file) for file in files]
        sources.append([source.model_dump(exclude={"weight"}), kind, stats])
    settings = [spec.model_dump(exclude={"sources", "tokenizer"}), tokenizer_checksum(Path(spec.tokenizer)), unit_bytes]
    return hashlib.sha256(json.dumps([settings, sources]).encode()).hexdigest()


def _size_and_time(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _check_same(found: str | None, fingerprint: str, out: Path) -> None:
    if found != fingerprint:
        advice = "holds a corpus of other inputs or settings: name another folder, or delete this one"
        raise DataError(out, advice)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(work, "another process prepares this corpus") from error
        yield


def _claim(path: Path, fingerprint: str, out: Path) -> None:
    if path.exists():
        _check_same(read_object(path).get("fingerprint"), fingerprint, out)
    else:
        with replacing(path, durable=True) as file:
            file.write(json.dumps({"fingerprint": fingerprint}).encode())


def _jobs(
    spec: CorpusSpec,
    inputs: list[tuple[Format, list[Path]]],
    work: Path,
    unit_bytes: int,
    tokenizer: Tokenizer,
    distil: Distil,
) -> list[Job]:
    """Returns the jobs for all units of all sources, in the order of the documents."""
    units: list[Unit] = []
    for number, (source, (kind, files)) in enumerate(zip(spec.sources, inputs, strict=True)):
        if kind == "journal":
            units += cut(number, "jsonl", [_export(source, files, work, tokenizer, distil)], unit_bytes)
        else:
            units += cut(number, kind, files, unit_bytes)
    return [
        Job(
            unit=unit,
            source=spec.sources[unit.source],
            duplicates=spec.duplicates,
            tokenizer=spec.tokenizer,
            eos=min(tokenizer.eos_ids),
            target=work / f"unit{number:06d}",
        )
        for number, unit in enumerate(units)
    ]


def _export(source: SourceSpec, files: list[Path], work: Path, tokenizer: Tokenizer, distil: Distil) -> Path:
    """Writes the journals' documents to a JSONL file and returns its path.

    The file is written only once, so that a resumed preparation reads the same documents.
    """
    path = work / f"{source.name}.jsonl"
    if not path.exists():
        with replacing(path, durable=True) as file:
            for journal in files:
                for text in distil(source, journal, tokenizer):
                    file.write(json.dumps({source.key: text}, ensure_ascii=False).encode() + b"\n")
    return path


def _tokenize(jobs: list[Job], workers: int, say: Callable[[str], None]) -> None:
    waiting = [job for job in jobs if not job.done]
    say(f"{len(jobs)} units of work, {len(jobs) - len(waiting)} done before")
    started = said = time.monotonic()
    done = 0

    def count(error: str | None) -> None:
        nonlocal done, said
        if error is not None:
            raise LwzError(error)
        done += 1
        if time.monotonic() - said > 10 or done == len(waiting):
            said = time.monotonic()
            say(f"{done} of {len(waiting)} units in {said - started:.0f} s")

    _run_all(tokenize.run, waiting, workers, count)


def _run_all(work: Callable[[Any], Any], items: list[Any], workers: int, on_done: Callable[[Any], None]) -> None:
    """Runs `work` on every item in `workers` new processes, or in this process if only one is needed.

    Calls `on_done` with each result. Stops at the first error.
    """
    size = min(workers, len(items))
    if size <= 1:
        for item in items:
            on_done(work(item))
        return
    context = multiprocessing.get_context("spawn")  # tokenizers and Parquet readers start threads, so fork is unsafe
    with ProcessPoolExecutor(size, mp_context=context, initializer=tokenize.die_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(work, item) for item in items]):
                on_done(future.result())
        except BrokenProcessPool as error:
            advice = "a worker process was killed (out of memory?); start again to go on, with fewer workers"
            raise LwzError(advice) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _assemblies(
    spec: CorpusSpec, jobs: list[Job], rows: list[UnitRows], verdict: Verdict, out: Path, vocabulary: int
) -> list[Assembly]:
    """Returns the datasets that are not empty: per source a training part, then a validation part."""
    found = []
    for number, source in enumerate(spec.sources):
        for side in ("train", "validation"):
            selected = verdict.selected(side == "validation")
            units, start = [], 0
            for job, unit in zip(jobs, rows, strict=True):
                taken = selected[start : start + len(unit.lengths)]
                start += len(unit.lengths)
                if job.unit.source == number and taken.any():
                    units.append((job.target.with_suffix(".bin"), unit.lengths, taken))
            if units:
                found.append(Assembly(out / f"{source.name}_{side}", token_dtype(vocabulary), units))
    return found
