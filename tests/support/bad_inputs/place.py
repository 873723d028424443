"""A folder in which every command would work, an input that is wrong in it, and what a command does with that."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import runpy
import shutil
import stat
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_lwz.cli import common, main, pretrain, score, train_dpo, train_grpo, train_reward_model, train_sft
from megatron_lwz.config import read_hf_architecture
from megatron_lwz.models.hf.name_map import tensor_shapes
from tests.support.files import write_jsonl
from tests.support.grpo_runs import write_example
from tests.support.paths import ROOT
from tests.support.synthetic_run import write_run

Main = Callable[[Sequence[str]], None]
STAGES: Mapping[str, Main] = {
    "train_grpo": train_grpo.main, "train_sft": train_sft.main, "train_reward_model": train_reward_model.main, "train_dpo": train_dpo.main,
    "pretrain": pretrain.main, "score": score.main, "lwz": main.dispatch,
}  # fmt: skip
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True)
class Bad:
    """A command line with an input that is wrong, and the three parts of the message that it must get.

    `{}` in the texts stands for the folder. `spoil` makes the input wrong in it.
    """

    line: str
    names: str
    """The key, option, file or line at fault."""
    value: str
    """What is wrong about it, or its value."""
    remedy: str
    """What is allowed, or what to do."""
    spoil: Callable[[Path], None] = lambda _place: None

    @property
    def variables(self) -> dict[str, str]:
        """What stands before the command, as in a shell."""
        before = itertools.takewhile(lambda word: re.match(r"[A-Z_]+=", word), self.line.split())
        return dict(word.split("=", 1) for word in before)

    def argv(self, place: Path) -> tuple[Main, list[str]]:
        """The main function and its arguments."""
        command, *words = [word.replace("{}", str(place)) for word in self.line.split()][len(self.variables) :]
        tool = ROOT / "tools" / f"{command}.py"
        return STAGES[command] if command in STAGES else runpy.run_path(str(tool))["main"], words


def write_good(place: Path) -> None:
    """Fills the folder with a config, data of each kind, a model, a checkpoint and two runs."""
    config = write_example(place)
    write_jsonl(place / "rows.jsonl", [{"messages": [_user("Write."), {"role": "assistant", "content": "Text."}]}] * 3)
    pairs = [{"prompt": f"Task {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(9)]
    write_jsonl(place / "pairs.jsonl", pairs)
    write_jsonl(place / "corpus.jsonl", [{"text": f"document {i} " * 9} for i in range(9)])
    write_jsonl(place / "tokens.jsonl", [{"id": "a", "tokens": [1, 2, 3], "prompt_length": 1}])
    write_jsonl(place / "responses.jsonl", [{"prompt": "Task 5", "id": "p5", "response": "<answer>a</answer>"}])
    (place / "spec.yaml").write_text("tokenizer: .\nsources:\n- {name: a, paths: [corpus.jsonl]}\n")
    _write_model(place / "hf", place)
    tool = runpy.run_path(str(ROOT / "tools" / "convert_hf.py"))["main"]
    assert common.run(tool, ["import", "--hf", str(place / "hf"), "--out", str(place / "checkpoint")]) == 0
    write_run(place / "run", steps=4, prompts=1, samples=2)
    begun = place / "begun"
    begun.mkdir()
    text = config.read_text().replace(f"{place}/run", str(begun))
    config.write_text(text)
    shutil.copytree(place / "checkpoint", begun / "checkpoints" / "step_00000002")
    (begun / "checkpoints" / "latest").write_text("step_00000002")
    write_jsonl(begun / "metrics.jsonl", [{"step": step, "loss": 0.5} for step in (1, 2)])


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _write_model(folder: Path, tokenizer: Path) -> None:
    """A model of zeros with one token per byte."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    shapes = tensor_shapes(read_hf_architecture(folder))
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "model.safetensors")


HF_CONFIG: Mapping[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 257, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip


Contents = dict[str, tuple[int, bytes]]


def contents(place: Path) -> Contents:
    """Every file, folder and link below `place`: its mode and what is in it. Readers of SQLite leave two files more."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if not name.endswith((".sqlite-shm", ".sqlite-wal")):
            readable = path.is_file() and not path.is_symlink()
            found[name] = (path.lstat().st_mode, path.read_bytes() if readable else b"")
    return found


def restore(place: Path, good: Contents) -> None:
    """Makes the folder what it was again."""
    now = contents(place)
    for name in sorted(now, reverse=True):
        if stat.S_IFMT(now[name][0]) == stat.S_IFMT(good.get(name, (0, b""))[0]):
            continue
        path = place / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, (mode, content) in sorted(good.items()):
        if now.get(name) != (mode, content):
            path = place / name
            path.mkdir(exist_ok=True) if stat.S_ISDIR(mode) else path.write_bytes(content)
            path.chmod(stat.S_IMODE(mode))


@contextmanager
def as_any_user() -> Iterator[None]:
    """Inside, modes of files count, also for root: this thread does without the two capabilities that pass over them."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    held, libc = ctypes.create_string_buffer(24), ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, held) == 0, os.strerror(ctypes.get_errno())
    effective, *rest = struct.unpack("<6I", held.raw)
    less = effective & ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert libc.capset(header, struct.pack("<6I", less, *rest)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0
