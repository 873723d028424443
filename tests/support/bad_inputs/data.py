"""Rows of each kind, files of rows, tokenizers, and corpora."""

from __future__ import annotations

import gzip
import json
from typing import Any

from tests.support.bad_inputs.place import Bad
from tests.support.bad_inputs.spoils import both, folder, link, mode, put, remove, replace, rows

_RUN = "{}/config.yaml run.dir={}/out"
_GRPO = f"train_grpo {_RUN} data.prompts={{}}/bad.jsonl"
_SFT = f"train_sft {_RUN} training.sequence_length=64 data.instructions={{}}/bad.jsonl"
_PAIRS = f"train_reward_model {_RUN} training.sequence_length=64 reward_model.pairs={{}}/bad.jsonl"
_PRETRAIN = f"pretrain {_RUN} training.sequence_length=64 data.corpus={{}}/bad.jsonl"
_SCORE = "score {}/config.yaml --input {}/bad.jsonl --output {}/out.jsonl"
_TEXT = "lwz evaluate text {}/bad.jsonl --output {}/out"
_FILE = "lwz evaluate generate {}/bad.jsonl --url http://127.0.0.1:9 --served-model m --output {}/out.jsonl"
_OK = {"prompt": "a", "id": "x"}


def _prompt(row: Any, value: str, remedy: str) -> Bad:
    return Bad(_GRPO, "{}/bad.jsonl, line 2", value, remedy, rows("bad.jsonl", _OK, row))


def _bytes(content: bytes, value: str, remedy: str, names: str = "{}/bad.jsonl, line 2", line: str = _FILE) -> Bad:
    return Bad(line, names, value, remedy, put("bad.jsonl", content))


_FIRST = json.dumps(_OK).encode() + b"\n"
PROMPTS = (
    _prompt({"id": "y"}, 'no "prompt"', "a row is {"),
    _prompt({"prompt": 5}, "not 5", "must be a text or a list"),
    _prompt({"prompt": " "}, "'prompt'", "must not be empty"),
    _prompt({"prompt": "a", "id": 1.5}, "1.5", "must be a non-empty string or an integer"),
    _prompt({"prompt": "a", "id": "x"}, "'x'", "give every row its own"),
    _prompt({"prompt": "a", "language": 5}, "got 5", "must be a string"),
    _prompt({"prompt": "a", "template": "chat"}, "'chat'", 'must be "think" or "direct"'),
    _prompt({"prompt": "a", "length": 500}, "500", 'must be {"lower"'),
    _prompt({"prompt": "a", "length": {"lower": 9, "upper": 3}}, "[9, 3]", "must have 0 ≤ lower ≤ upper"),
    _prompt({"prompt": "a", "length": {"lower": 1, "upper": 99999}}, "99999", "reward.length.maximum must be larger"),
)
ROWS = (
    _bytes(_FIRST + b'{"prompt": \n', "not valid JSON", "correct it"),
    _bytes(_FIRST + b'{"prompt": "caf\xe9"}\n', "0xe9", "convert the file to UTF-8"),
    _bytes(_FIRST + b'["a"]\n', "a list", "a row must be a JSON object"),
    _bytes(_FIRST + b'{"prompt": "\\ud83d"}\n', "half a surrogate pair", "remove it"),
    _bytes(
        _FIRST + b'{"prompt": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}\n", "nested too deeply", "at most 100 levels"
    ),
    _bytes(b'{\n "prompt": "a"\n}\n', "over several lines", "give one object per line", "{}/bad.jsonl, line 1"),
    _bytes(b"", "no prompts", "give a file with rows", "{}/bad.jsonl"),
    _bytes("{}".encode("utf-16"), "UTF-16", "convert it (iconv", "{}/bad.jsonl"),
    _bytes(b"PK\x03\x04zip", "compressed with zip", "unpack it", "{}/bad.jsonl"),
    _bytes(gzip.compress(_FIRST)[:-9], "cannot be read", "copy it again", "{}/bad.jsonl"),
    _bytes(b"PAR1 no parquet", "not a Parquet file", "copy it again", "{}/bad.jsonl"),
    _bytes(b'[{"prompt": "a"} {"prompt": "b"}]', "no ',' or ']'", "correct it", "{}/bad.jsonl, line 1"),
    Bad(_FILE, "{}/bad.jsonl", "No such file", "check the path"),
    Bad(_FILE, "{}/bad.jsonl", "Is a directory", "name a file", folder("bad.jsonl")),
    Bad(_FILE, "{}/bad.jsonl", "symbolic links", "name the file itself", link("bad.jsonl", "bad.jsonl")),
    Bad(
        _FILE,
        "{}/bad.jsonl",
        "Permission denied",
        "change its permissions",
        both(rows("bad.jsonl", _OK), mode("bad.jsonl", 0)),
    ),
    Bad(f"train_grpo {_RUN} data.prompts={{}}/config.yaml/x", "{}/config.yaml/x", "Not a directory", "check the path"),
)
SUPERVISED = (
    Bad(_SFT, "{}/bad.jsonl, line 1", "keys txt", "give messages or conversations", rows("bad.jsonl", {"txt": "a"})),
    Bad(
        _SFT,
        "{}/bad.jsonl, line 1",
        "'wizard'",
        "give one of system",
        rows("bad.jsonl", {"messages": [{"role": "wizard", "content": "a"}]}),
    ),
    Bad(_SFT, "{}/bad.jsonl, line 1", "'messages'", "must be a list of turns", rows("bad.jsonl", {"messages": 5})),
    Bad(_SFT, "{}/bad.jsonl", "holds no row", "give other rows", put("bad.jsonl", b"")),
    Bad(
        _PAIRS,
        "{}/bad.jsonl, line 1",
        "prompt, chosen",
        "chosen + rejected",
        rows("bad.jsonl", {"prompt": "a", "chosen": "b"}),
    ),
    Bad(
        _PAIRS,
        "{}/bad.jsonl",
        "1 with equal replies",
        "give other rows",
        rows("bad.jsonl", {"prompt": "a", "chosen": "b", "rejected": "b"}),
    ),
    Bad(
        _PRETRAIN,
        "{}/bad.jsonl, line 2",
        "the row has txt",
        "needs a string under the key 'text'",
        rows("bad.jsonl", {"text": "a"}, {"txt": "b"}),
    ),
    Bad(
        _PRETRAIN,
        "{}/bad.jsonl, line 1",
        "the row has text",
        "needs a string under the key 'text'",
        rows("bad.jsonl", {"text": 5}),
    ),
    Bad(_PRETRAIN, "{}/bad.jsonl", "no documents", "name JSONL files", put("bad.jsonl", b"")),
    Bad(
        _SCORE,
        "{}/bad.jsonl, line 1",
        "9999",
        "must be an integer from 0 to 256",
        rows("bad.jsonl", {"id": "a", "tokens": [1, 9999], "prompt_length": 1}),
    ),
    Bad(
        _SCORE,
        "{}/bad.jsonl, line 1",
        "token 'a'",
        "must be an integer from 0 to 256",
        rows("bad.jsonl", {"id": "a", "tokens": "abc", "prompt_length": 1}),
    ),
    Bad(_TEXT, "{}/bad.jsonl, line 1", "None", "'response' must be a text", rows("bad.jsonl", {"prompt": "a"})),
    Bad(
        _TEXT,
        "{}/bad.jsonl, line 1",
        "-3",
        "'length' must have 0 ≤ lower",
        rows("bad.jsonl", {"prompt": "a", "response": "b", "length": -3}),
    ),
    Bad(
        "lwz evaluate longbench-write --prompts {}/prompts.jsonl --responses {}/bad.jsonl --output {}/out",
        "{}/bad.jsonl",
        "'nobody'",
        "are these its responses?",
        rows("bad.jsonl", {"prompt": "a", "id": "nobody", "response": "b"}),
    ),
    Bad(
        "make_preference_pairs --pairs {}/bad.jsonl --out {}/out",
        "{}/bad.jsonl",
        "prompt, chosen",
        "chosen + rejected",
        rows("bad.jsonl", {"prompt": "a", "chosen": "b"}),
    ),
    Bad(
        "make_preference_pairs --documents {}/bad.jsonl --out {}/out",
        "{}/bad.jsonl",
        "holds no row",
        "give a file with rows",
        put("bad.jsonl", b""),
    ),
    Bad(
        "prepare_prompts --input {}/bad.jsonl --output {}/out.jsonl --rules-only",
        "{}/bad.jsonl",
        "not valid JSON",
        "correct it",
        put("bad.jsonl", b"{{{"),
    ),
    Bad(
        "prepare_prompts --input {}/rows.jsonl --output {}/out.jsonl --rules-only --column nope",
        "{}/rows.jsonl",
        "'nope'",
        "present are: messages",
    ),
)
TOKENIZERS = (
    Bad(f"train_grpo {_RUN}", "model.tokenizer", "{}", "name the folder of a tokenizer", remove("tokenizer.json")),
    Bad(
        f"train_grpo {_RUN}", "{}/tokenizer.json", "not a tokenizers file", "copy it again", put("tokenizer.json", b"{")
    ),
    Bad(
        f"train_grpo {_RUN}",
        "{}/tokenizer.json",
        "not a tokenizers file",
        "copy it again",
        put("tokenizer.json", b"{}"),
    ),
    Bad(
        f"train_grpo {_RUN}",
        "eos_token",
        "no end-of-text token",
        "name eos_token in tokenizer_config.json",
        put("tokenizer_config.json", b"{}"),
    ),
    Bad(
        f"train_grpo {_RUN}",
        "{}/tokenizer_config.json: eos_token",
        "'<gone>'",
        "use the two files of one tokenizer",
        put("tokenizer_config.json", b'{"eos_token": "<gone>"}'),
    ),
    Bad(
        f"train_grpo {_RUN}",
        "{}/tokenizer_config.json",
        "a list",
        "must hold a JSON object",
        put("tokenizer_config.json", b"[]"),
    ),
    Bad(
        f"train_grpo {_RUN} model.architecture.vocab_size=256",
        "{}/tokenizer.json",
        "up to 256",
        "use the tokenizer that belongs to the model",
    ),
)
CORPORA = (
    Bad("prepare_corpus {}/gone.yaml --out {}/out", "{}/gone.yaml", "No such file", "check the path"),
    Bad(
        "prepare_corpus {}/spec.yaml --out {}/out",
        "{}/spec.yaml: sources",
        "{'tokenizer': '.'}",
        "is required here",
        put("spec.yaml", b"tokenizer: .\n"),
    ),
    Bad(
        "prepare_corpus {}/spec.yaml --out {}/out",
        "{}/spec.yaml: sources.0.weigth",
        "= 1",
        "did you mean 'weight'?",
        replace("spec.yaml", b"{name: a,", b"{name: a, weigth: 1,"),
    ),
    Bad(
        "prepare_corpus {}/spec.yaml --out {}/out",
        "source 'a'",
        "{}/gone.jsonl",
        "check the path",
        replace("spec.yaml", b"corpus.jsonl", b"gone.jsonl"),
    ),
    Bad(
        "prepare_corpus {}/spec.yaml --out {}/out --unit-mib nan",
        "--unit-mib",
        "nan",
        "must be a finite number above 0",
    ),
    Bad("prepare_corpus {}/spec.yaml --out {}/out --workers 0", "--workers", "0", "must be at least 1"),
    Bad("prepare_corpus {}/spec.yaml --out {}/config.yaml", "--out {}/config.yaml", "is a file", "name a folder"),
    Bad("prepare_corpus {}/spec.yaml --out {}/out --verify", "{}/out", "no such file", "is the preparation finished?"),
    Bad(
        f"pretrain {_RUN} training.sequence_length=64 data.corpus={{}}/manifest.json",
        "{}/manifest.json",
        "format",
        "not a manifest of `lwz corpus`",
        put("manifest.json", b'{"format": "other"}'),
    ),
)
TABLE = (*PROMPTS, *ROWS, *SUPERVISED, *TOKENIZERS, *CORPORA)
