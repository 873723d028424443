"""The score command on one rank: its command line, its files, its errors. (Layouts: tests/distributed/test_training.)"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from megatron_lwz.config import validate
from megatron_lwz.distributed import environment
from megatron_lwz.errors import DataError
from megatron_lwz.training.token_logprobs import read_rows
from tests.support.tiny_qwen2 import write_tiny_qwen2

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score") / "hf"
    write_tiny_qwen2(folder, vocab_size=50, hidden_size=16, num_hidden_layers=2, tie_word_embeddings=True)
    return folder


def test_one_rank_without_torchrun_scores_in_input_order(hf: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    from transformers import Qwen2ForCausalLM

    config = tmp_path / "config.yaml"
    training = {"precision": "fp32", "tokens_per_micro_batch": 16}
    config.write_text(yaml.safe_dump({"model": {"hf": str(hf)}, "training": training}))
    rows = [
        {"id": str(i), "tokens": torch.randint(0, 50, (3 + i % 11,)).tolist(), "prompt_length": 2} for i in range(30)
    ]
    source, target = tmp_path / "tokens.jsonl", tmp_path / "logprobs.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    arguments = [str(config), "--input", str(source), "--output", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "megatron_lwz.cli.score", *arguments], cwd=ROOT, capture_output=True, text=True,
        env=environment.child_environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore"), timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = Qwen2ForCausalLM.from_pretrained(hf).float()
    scored = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["id"] for row in scored] == [row["id"] for row in rows]
    for row, found in zip(rows, scored, strict=True):
        tokens = torch.tensor(row["tokens"])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(tokens[None]).logits[0, :-1], -1)
        expected = logprobs.gather(1, tokens[1:, None])[1:, 0]
        torch.testing.assert_close(torch.tensor(found["logprobs"]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "one object over several lines"),
        ("[1]", "must be a JSON object"),
        ('{"id": "a", "tokens": 3, "prompt_length": 1}', "needs"),
        ('{"id": "\\ud83d", "tokens": [1, 2], "prompt_length": 1}', "'id' holds half a surrogate pair"),
        ('{"id": "a", "tokens": [1, 2]}', "'prompt_length'"),
        ('{"id": "a", "tokens": [1, 50], "prompt_length": 1}', "token 50 must be an integer from 0 to 49"),
        ('{"id": "a", "tokens": [1, 2], "prompt_length": 0}', "prompt_length 0 must be from 1"),
        ('{"id": "a", "tokens": [1, 2], "prompt_length": 3}', "prompt_length 3 must be from 1"),
        ('{"id": "a", "tokens": "1 2", "prompt_length": 1}', "token '1' must be an integer"),
        ('{"id": "a", "tokens": [1, 2, 3, 4, 5, 6], "prompt_length": 1}', "do not fit training.tokens_per_micro_batch"),
    ],
)
def test_a_bad_row_is_named(hf: Path, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text('{"id": "good", "tokens": [1, 2], "prompt_length": 1}\n' + line + "\n")
    config = validate({"model": {"hf": str(hf)}, "training": {"tokens_per_micro_batch": 4}})
    with pytest.raises(DataError, match=r"tokens\.jsonl, line 2: .*" + message):
        read_rows(path, config)
