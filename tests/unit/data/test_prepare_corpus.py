"""tools/prepare_corpus.py: exact tokens, no copies, no leak between the sides, the same bytes after a kill."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_lwz.config import validate
from megatron_lwz.data.corpora import units
from megatron_lwz.data.corpora.prepare import prepare
from megatron_lwz.data.corpora.spec import read_spec
from megatron_lwz.data.corpus import corpus_of, open_corpus
from megatron_lwz.data.manifest import Manifest, check_parts, read_manifest
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import DataError, EnvironmentSetupError, LwzError
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[3]
ENGLISH = [
    "river",
    "stone",
    "market",
    "letter",
    "winter",
    "garden",
    "signal",
    "harbour",
    "silver",
    "window",
    "thunder",
    "paper",
    "lantern",
    "copper",
    "meadow",
]
CHINESE = "山水风云日月星辰春夏秋冬东西南北金木火土天地人和"


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny) -> Path:
    """A folder with a tokenizer; specs and sources go beside it."""
    folder = tmp_path_factory.mktemp("prepare")
    (folder / "tokenizer").mkdir()
    texts = [" ".join(ENGLISH) + CHINESE] * 3
    tiny.save_tokenizer(tiny.train_tokenizer(texts, 300), folder / "tokenizer")
    return folder


def write_text(rng: random.Random, words: int = 120) -> str:
    if rng.random() < 0.5:
        return "".join(rng.choice(CHINESE) + ("。\n" if i % 15 == 14 else "") for i in range(words))
    return " ".join(rng.choice(ENGLISH) + str(rng.randrange(100)) for _ in range(words))


def near_copy(text: str) -> str:
    """The text with one changed character run near its end, and other white space."""
    cut = int(len(text) * 0.96)
    return "  " + text[:cut] + " ~ " + text[cut + 1 :]


def write_jsonl(path: Path, texts: list[str], key: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")


def no_journal(*_: object) -> list[str]:
    raise AssertionError("no source is a journal")


def run(home: Path, name: str, spec: dict, *, unit_bytes: int = 1 << 20, workers: int = 1, **options) -> Manifest:
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"tokenizer": "tokenizer", **spec}, allow_unicode=True), encoding="utf-8")
    options = {"distil": no_journal, "say": lambda _line: None} | options
    return prepare(read_spec(path), home / name, workers=workers, unit_bytes=unit_bytes, **options)


def documents(home: Path, name: str, part: str) -> list[list[int]]:
    if not (home / name / f"{part}.idx").exists():
        return []
    data = IndexedDataset(str(home / name / part))
    return [data[i].tolist() for i in range(len(data))]


def texts_of(home: Path, name: str, part: str) -> list[str]:
    tokenizer = Tokenizer(home / "tokenizer")
    return [tokenizer.decode(ids[:-1]) for ids in documents(home, name, part)]


KEEP_ALL = {"exact": False, "near": False}


def test_every_format_gives_exactly_the_tokens_of_its_texts_in_order(home: Path) -> None:
    rng = random.Random(1)
    texts = [write_text(rng) for _ in range(60)]
    sources = home / "formats"
    write_jsonl(sources / "a.jsonl", texts[:30])
    with gzip.open(sources / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n\n" for text in texts[30:40])
    for number, text in enumerate(texts[40:]):
        path = sources / "folder" / f"{number % 3}" / f"{number:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(("\ufeff" if number == 0 else "") + text, encoding="utf-8")
    gb = sources / "gb"
    gb.mkdir()
    (gb / "x.txt").write_text("春夏秋冬" * 5, encoding="gb18030")
    spec = {
        "validation": 0,
        "duplicates": KEEP_ALL,
        "sources": [
            {"name": "rows", "paths": ["formats/*.jsonl", "formats/b.jsonl.gz"]},
            {"name": "files", "paths": ["formats/folder"]},
            {"name": "gb", "paths": ["formats/gb"], "encoding": "gb18030"},
        ],
    }
    manifest = run(home, "formats_out", spec, unit_bytes=3000)
    tokenizer = Tokenizer(home / "tokenizer")
    eos = min(tokenizer.eos_ids)
    expected = {
        "rows": texts[:40],
        "files": [texts[40 + i] for remainder in range(3) for i in range(remainder, 20, 3)],
        "gb": ["春夏秋冬" * 5],
    }
    for entry in manifest.sources:
        found = documents(home, "formats_out", f"{entry.name}_train")
        assert found == [[*tokenizer.encode(text), eos] for text in expected[entry.name]]
        assert entry.validation is None and entry.train.documents == entry.read == len(found)
        assert entry.train.tokens == sum(map(len, found))
        assert entry.bytes == sum(len(text.encode()) for text in expected[entry.name])


def test_parquet_row_groups_come_in_order(home: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = random.Random(2)
    texts = [write_text(rng) for _ in range(50)]
    (home / "columns").mkdir()
    parquet.write_table(pyarrow.table({"body": texts}), home / "columns" / "a.parquet", row_group_size=7)
    spec = {"validation": 0, "duplicates": KEEP_ALL}
    source = {"name": "p", "paths": ["columns/a.parquet"], "key": "body"}
    run(home, "columns_out", {**spec, "sources": [source]}, unit_bytes=6000)
    encode, eos = Tokenizer(home / "tokenizer").encode, min(Tokenizer(home / "tokenizer").eos_ids)
    assert documents(home, "columns_out", "p_train") == [[*encode(text), eos] for text in texts]
    with pytest.raises(LwzError, match="no column 'text', there are: body"):
        run(home, "columns_bad", {**spec, "sources": [source | {"key": "text"}]})


def test_parquet_without_pyarrow_says_what_to_install(home: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(EnvironmentSetupError, match=r"pip install 'megatron-lwz\[data\]'"):
        list(units.cut(0, "parquet", [home / "x.parquet"], 100))


def test_special_tokens_can_be_ids_or_text(home: Path) -> None:
    write_jsonl(home / "special.jsonl", ["stone<|endoftext|>river"])
    for special in (True, False):
        source = {"name": "s", "paths": ["special.jsonl"]} | ({"special_tokens": True} if special else {})
        manifest = run(home, f"special_{special}", {"validation": 0, "sources": [source]})
        assert manifest.sources[0].control_texts == 1
        eos = min(Tokenizer(home / "tokenizer").eos_ids)
        assert documents(home, f"special_{special}", "s_train")[0].count(eos) == 1 + special


def test_copies_and_near_copies_go_and_the_first_source_keeps_its_own(home: Path) -> None:
    rng = random.Random(3)
    first, second = [write_text(rng) for _ in range(40)], [write_text(rng) for _ in range(40)]
    short = ["stone river", "stone rivers"]  # too short to be near copies of each other
    write_jsonl(home / "first.jsonl", [*first, *short, "\n" + first[0] + "  "])
    write_jsonl(home / "second.jsonl", [*second[:20], *first[5:10], *map(near_copy, first[10:20]), *second[20:], ""])
    sources = [{"name": name, "paths": [f"{name}.jsonl"]} for name in ("first", "second")]
    manifest = run(home, "copies", {"validation": 0, "sources": sources}, unit_bytes=4000)
    assert sorted(texts_of(home, "copies", "first_train")) == sorted([*first, *short])
    assert texts_of(home, "copies", "second_train") == second
    counts = [(e.read, e.empty, e.exact_duplicates, e.near_duplicates) for e in manifest.sources]
    assert counts == [(43, 0, 1, 0), (56, 1, 5, 10)]
    kept = run(home, "kept", {"validation": 0, "duplicates": KEEP_ALL, "sources": sources})
    assert [entry.train.documents for entry in kept.sources] == [43, 55]


def test_no_copy_or_near_copy_crosses_the_split_and_a_rerun_keeps_every_side(home: Path) -> None:
    """Copies are kept here, in other sources than their originals: all of a family must lie on one side."""
    rng = random.Random(4)
    originals = [write_text(rng) for _ in range(150)]
    write_jsonl(home / "one.jsonl", originals)
    write_jsonl(home / "two.jsonl", [near_copy(text) for text in originals[:100]])
    write_jsonl(home / "three.jsonl", [*originals[50:], near_copy(near_copy(originals[0]))])
    sources = [{"name": name, "paths": [f"{name}.jsonl"]} for name in ("one", "two", "three")]
    spec = {"validation": 0.3, "seed": 7, "duplicates": KEEP_ALL}
    run(home, "split", {**spec, "sources": sources}, unit_bytes=5000)

    def family(text: str) -> str:
        return "".join(text.split())[:100]

    sides = {
        side: {family(text) for name in ("one", "two", "three") for text in texts_of(home, "split", f"{name}_{side}")}
        for side in ("train", "validation")
    }
    assert not sides["train"] & sides["validation"]
    assert sides["train"] | sides["validation"] == {family(text) for text in originals}
    assert 25 <= len(sides["validation"]) <= 65
    write_jsonl(home / "new.jsonl", [write_text(rng) for _ in range(30)])
    more = [*sources, {"name": "new", "paths": ["new.jsonl"]}]
    spec["duplicates"] = {}
    run(home, "rerun", {**spec, "sources": more})
    assert {family(text) for text in texts_of(home, "rerun", "one_validation")} == sides["validation"]
    run(home, "reseeded", {**spec, "seed": 8, "sources": sources})
    assert {family(text) for text in texts_of(home, "reseeded", "one_validation")} != sides["validation"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".bin", ".idx")}


def test_neither_unit_size_nor_workers_change_a_byte(home: Path) -> None:
    rng = random.Random(5)
    texts = [write_text(rng) for _ in range(80)]
    write_jsonl(home / "plain.jsonl", [*texts, *texts[:9], near_copy(texts[3])])
    spec = {"validation": 0.2, "sources": [{"name": "plain", "paths": ["plain.jsonl"]}]}
    run(home, "whole", spec)
    run(home, "small", spec, unit_bytes=997)
    run(home, "parallel", spec, unit_bytes=20_000, workers=2)
    assert files_of(home / "whole") == files_of(home / "small") == files_of(home / "parallel")
    assert len(files_of(home / "whole")) == 4 and not (home / "whole" / "work").exists()


@pytest.mark.parametrize("moments", [(3,), pytest.param((1, 4, 9), marks=pytest.mark.long)], ids=["once", "thrice"])
def test_a_killed_preparation_goes_on_and_ends_with_the_same_bytes(home: Path, moments: tuple[int, ...]) -> None:
    """`moments`: finished units at which it is killed."""
    rng = random.Random(6)
    write_jsonl(home / "long.jsonl", [write_text(rng, 400) for _ in range(400)])
    spec = {"validation": 0.1, "sources": [{"name": "long", "paths": ["long.jsonl"], "weight": 1.0}]}
    out = home / f"killed_{len(moments)}"
    undisturbed = run(home, "undisturbed", spec, unit_bytes=1 << 15)
    command = [sys.executable, str(ROOT / "tools" / "prepare_corpus.py"), str(home / "undisturbed.yaml")]
    command += ["--out", str(out), "--workers", "2", "--unit-mib", str(2**-5)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kills = 0
    for wanted in moments:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_for(
            lambda process=process, wanted=wanted: (
                process.poll() is not None or len(list(out.glob("work/*.npz"))) >= wanted
            ),
            seconds=500,
            pause=0.005,
        )
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == len(moments), "it was faster than the kill"
    done = list(out.glob("work/*.npz"))
    assert done and not (out / "manifest.json").exists()
    last = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    resumed = int(last.stderr.split(" done before")[0].split()[-1])
    assert resumed >= len(done) > 0
    assert files_of(out) == files_of(home / "undisturbed")
    fields = {"exclude": {"fingerprint"}}
    manifest = Manifest.model_validate_json((out / "manifest.json").read_bytes())
    assert manifest.model_dump(**fields) == undisturbed.model_dump(**fields)
    assert f"{manifest.sources[0].train.tokens:,} tokens to train on" in last.stdout
    assert not list(out.glob("*.tmp"))


def test_weights_fill_up_to_one_and_can_be_changed_without_reading_again(home: Path) -> None:
    rng = random.Random(8)
    for name, count in (("big", 30), ("small", 10), ("thin", 2)):
        write_jsonl(home / f"{name}.jsonl", [write_text(rng) for _ in range(count)])
    sources = [{"name": name, "paths": [f"{name}.jsonl"]} for name in ("big", "small", "thin")]
    sources[2]["weight"] = 0.01
    manifest = run(home, "weights", {"validation": 0, "sources": sources})
    big, small, thin = manifest.sources
    assert thin.weight == 0.01 and big.weight + small.weight == pytest.approx(0.99)
    assert big.weight / small.weight == pytest.approx(big.train.tokens / small.train.tokens)
    for source, weight in zip(sources, (3, 1, 1), strict=True):
        source["weight"] = weight
    said: list[str] = []
    again = run(home, "weights", {"validation": 0, "sources": sources}, say=said.append)
    assert [entry.weight for entry in again.sources] == [0.6, 0.2, 0.2] and "complete" in said[0]
    assert again.sources[0].train == big.train


def test_a_prepared_corpus_trains(home: Path) -> None:
    rng = random.Random(9)
    write_jsonl(home / "train.jsonl", [write_text(rng) for _ in range(60)])
    run(home, "trains", {"validation": 0.2, "sources": [{"name": "only", "paths": ["train.jsonl"]}]})
    tree = {
        "model": {"tokenizer": str(home / "tokenizer"), "preset": "qwen2.5-0.5b"},
        "data": {"corpus": [str(home / "trains")]},
        "training": {"sequence_length": 64},
    }
    corpus = open_corpus(validate(tree))
    batch, cursor = corpus.take(0, 4)
    assert cursor == len(batch) and max(batch.lengths()) <= 65
    assert corpus.validation_sources == ("only",) and next(corpus.validation("only", 2)).tokens.numel() > 0


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"weights": 1}, "weights = 1: unknown key"),
        ({"sources": []}, "sources"),
        ({"sources": [{"name": "a/b", "paths": ["x"]}]}, r"sources\.0\.name"),
        ({"sources": [{"name": "a", "paths": ["x.jsonl"]}] * 2}, "its own name"),
        ({"sources": [{"name": "a", "paths": ["x"], "weight": 1.0}, {"name": "b", "paths": ["x"]}]}, "nothing is left"),
        ({"sources": [{"name": "a", "paths": ["absent.jsonl"]}]}, "no such file"),
        ({"sources": [{"name": "a", "paths": ["odd.xyz"]}]}, "unknown ending"),
        ({"sources": [{"name": "a", "paths": ["odd.jsonl", "odd.txt"]}]}, "make it two sources"),
        ({"sources": [{"name": "a", "paths": ["empty"]}]}, "no .txt or .md files"),
        (
            {"sources": [{"name": "a", "paths": ["odd.jsonl"]}]},
            r"odd\.jsonl, line 2: needs a string under the key 'text'",
        ),
    ],
)
def test_what_is_wrong_with_a_spec_is_said_in_one_line(home: Path, change: dict, advice: str) -> None:
    (home / "empty").mkdir(exist_ok=True)
    for name in ("odd.xyz", "odd.txt"):
        (home / name).write_text("a")
    (home / "odd.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n[1]\nnot json\n')
    with pytest.raises(LwzError, match=advice) as raised:
        run(home, "wrong", {"sources": [{"name": "a", "paths": ["odd.txt"]}], **change})
    assert "\n" not in str(raised.value)


def test_broken_documents_are_counted_when_they_may_be_skipped(home: Path) -> None:
    (home / "odd2.jsonl").write_bytes(
        b'{"text": "stone river"}\n{"txt": "b"}\n[1]\nnot json\n{"text": "\xff"}\n{"text": "\\ud800"}\n'
    )
    source = {"name": "a", "paths": ["odd2.jsonl"], "skip_broken": True}
    entry = run(home, "skipped", {"validation": 0, "sources": [source]}).sources[0]
    assert (entry.read, entry.broken, entry.train.documents) == (6, 5, 1)


def test_a_folder_of_another_corpus_is_left_alone(home: Path) -> None:
    write_jsonl(home / "mine.jsonl", ["stone river stone", "market"])
    spec = {"validation": 0, "sources": [{"name": "a", "paths": ["mine.jsonl"]}]}
    run(home, "owned", spec)
    before = files_of(home / "owned")
    with pytest.raises(DataError, match="other inputs or settings"):
        run(home, "owned", {**spec, "validation": 0.5})
    assert files_of(home / "owned") == before


def test_a_changed_byte_of_a_finished_corpus_is_seen(home: Path) -> None:
    write_jsonl(home / "sums.jsonl", [f"{word} {word} {word}" for word in ENGLISH])
    manifest = run(
        home, "sums", {"validation": 0, "duplicates": KEEP_ALL, "sources": [{"name": "s", "paths": ["sums.jsonl"]}]}
    )
    out = home / "sums"
    assert read_manifest(out) == manifest and check_parts(out) == 1
    open_it = partial(corpus_of, manifest, out, sequence_length=16, seed=1, shuffle=True)
    for ending, seen_at_every_start in ((".bin", False), (".idx", True)):
        path = out / f"s_train{ending}"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DataError, match=f"s_train{ending} is not as it was written"):
            check_parts(out)
        if seen_at_every_start:
            with pytest.raises(DataError, match=f"s_train{ending} is not as it was written"):
                open_it()
        path.write_bytes(whole[:-2])
        with pytest.raises(DataError, match=f"s_train{ending} has [0-9]+ bytes, [0-9]+ were written"):
            open_it()
        path.write_bytes(whole)
    open_it()
