"""What the fuzzed parsers read when all is well: the inputs from which others are made, and words to put into them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

CONFIGS = (
    "run: {dir: runs/a, seed: 7}\nmodel: {preset: qwen2.5-0.5b}\ndata:\n  prompts: p.jsonl\n  max_prompt_tokens: 100\n",
    "base: base.yaml\ntraining:\n  steps: 10\n  prompts_per_step: 2\nreward:\n  weights: {length: 1.0, format: 0.5}\n",
    "grpo: {clip_ratio_low: 0.2, loss_function: 'a.b:c'}\nrollout: {urls: [http://a:1, http://b:2], stop: [x, y]}\n",
    "data: {corpus: [a.jsonl], validation: {held: [b.jsonl]}}\nx: &a [1, 2]\ny: *a\nz: ${config_dir}/c\n",
)
CONFIG_WORDS = (
    "&a", "*a", "<<: *a", "!!python/object:os.system", "!!binary x", "${oc.env:HOME}", "${run.dir}", "${", "? ", "- ", "|\n",
    ": ", "{", "[", "null", "~", ".inf", ".nan", "2001-99-99", "1e5", "0x1F", "1_000", "yes", "%YAML 9", "---", "\t", "\x01",
    "model.preset=", "training.steps=", "reward.weights={", "rollout.urls=[", "base: /dev/zero", "base: config.yaml",
)  # fmt: skip
OVERRIDES = (
    "training.steps=3\x01run.seed=5",
    "rollout.urls=[http://a:1]",
    "reward.weights={length: 1}",
    "model.hf=a/b",
)

ROW_KEYS = (
    "messages", "conversations", "prompt", "completion", "question", "answer", "instruction", "input", "output", "role",
    "content", "from", "value", "history", "system", "reasoning", "thinking", "template", "tool_calls", "weight", "text", "type",
    "images", "response", "context",
)  # fmt: skip
ROWS = (
    {"messages": [{"role": "user", "content": "Write."}, {"role": "assistant", "content": "<think>a</think>B"}]},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
    {"instruction": "Do", "input": "this", "output": "done", "history": [["a", "b"]]},
    {"prompt": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "completion": "y", "reasoning": "z"},
    {"question": '[{"role": "user", "content": "x"}]', "answer": "y", "template": "direct"},
    {"messages": [{"user": "a", "assistant": "b"}, {"role": "assistant", "content": "c", "weight": 0}]},
)
PAIR_KEYS = (*ROW_KEYS, "chosen", "rejected", "score_chosen", "score_rejected", "margin", "winner", "label", "completions",
             "response_a", "response_b", "conversation_a", "conversation_b", "better", "responses", "rating", "ranks")  # fmt: skip
PAIRS = (
    {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 1},
    {"chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}],
     "rejected": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "b"}]},
    {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
    {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "model_a", "margin": 0.5},
    {"prompt": "p", "completion": "a", "label": True},
    {"prompt": "p", "tag": "t", "chosen": {"response": "a", "score": 3}, "rejected": {"response": "b", "score": 1}},
    {"prompt": '["p"]', "response_a": '["a"]', "response_b": '["b"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
)  # fmt: skip
PROMPTS = (
    {
        "prompt": "Write 500 words.",
        "id": "a",
        "length": {"lower": 400, "upper": 600},
        "language": "en",
        "template": "think",
    },
    {"prompt": [{"role": "user", "content": "写"}], "id": 5, "system": "s", "length": None},
)
TASK_KEYS = (
    "prompt", "query", "id", "index", "response", "response_length", "length", "sample", "checklist", "criteria", "category",
    "raw", "template", "type", "messages", "finish_reason", "thinking", "tokens", "stop", "model", "baseline_response",
)  # fmt: skip
TASKS = (
    {"prompt": "Write.", "id": "a", "length": {"lower": 1, "upper": 9}},
    {"index": 3, "query": "Write.", "checklist": ["a", {"name": "b", "criteria_description": "c"}], "domain1": "d"},
    {"prompt": "Write.", "type": "story", "length": 500},
)
RESPONSES = (
    {"prompt": "Write.", "response": "text", "id": "a", "sample": 0, "length": 500, "type": "story"},
    {"index": 1, "query": "q", "response": "<think>a</think> <answer>b</answer>", "raw": "c", "template": "think"},
)

JUDGEMENTS = (
    '```json\n{"score": 7, "reason": "a \\"b\\" c"}\n```', "<think>{'score': 1}</think>{'score': '8/10', reason: none,}",
    '{"scores": [1, 2], "requirements": [{"id": 1, "met": true}], "degrees": [0.5, 1]}', '{"winner": "A"} or "B"',
    '{"lower": 400, "upper": 600, "unit": "words"}', "{“score”：９", '{"Relevance": 5, "Accuracy": 4, "Coherence": 3, '
    '"Clarity": 2, "Breadth and Depth": 1, "Reading Experience": 5}', "[[A]] 8分", '{"a": {"b": [{"c": "d',
)  # fmt: skip
JUDGE_WORDS = (
    '"',
    "'",
    "“",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\\",
    "\\u",
    "score",
    "None",
    "```",
    "<think>",
    "/10",
    "分",
    "１",
)

_CHUNK = {"weight_version": "0.1.ab", "choices": [{"index": 0, "text": "a", "token_ids": [5, 6], "finish_reason": None,
          "logprobs": {"token_logprobs": [-0.5, -1.0]}, "stop_reason": None}]}  # fmt: skip
_LAST = {"choices": [{"token_ids": [], "finish_reason": "stop", "stop_reason": 5}]}
STREAMS = (
    f"data: {json.dumps(_CHUNK)}\n\ndata: {json.dumps(_LAST)}\n\ndata: [DONE]\n\n",
    f": comment\r\nevent: x\r\ndata: {json.dumps(_CHUNK)}\r\n\r\n",
    'data: {"error": {"message": "m"}}\n\n', "data: {\ndata: }\n\n",
)  # fmt: skip
STREAM_WORDS = (
    "data:",
    "\n\n",
    "\r\n",
    "[DONE]",
    '"token_ids"',
    "null",
    "NaN",
    "-1",
    '"finish_reason":"length"',
    "1e400",
)

REQUEST_KEYS = ("prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "stop_token_ids", "stream", "stream_options",
                "logprobs", "n", "model", "request_id", "top_k", "min_p", "user", "ignore_eos", "echo")  # fmt: skip
REQUESTS = (
    {"prompt": [1, 2], "max_tokens": 5, "temperature": 0.7, "seed": 3, "stream": True, "stop": ["a"], "logprobs": 1},
    {
        "prompt": "text",
        "model": "policy",
        "n": 1,
        "top_k": -1,
        "stop_token_ids": [1],
        "stream_options": {"include_usage": True},
    },
)

TENSOR_WORDS = (
    '"F32"',
    '"BF16"',
    '"I64"',
    '"shape"',
    '"data_offsets"',
    '"dtype"',
    "[2,3]",
    "[0,24]",
    "-1",
    "{}",
    "__metadata__",
)
INDEXES = ({"metadata": {"total_size": 24}, "weight_map": {"a": "a.safetensors"}},)
HF_CONFIGS = (
    {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 320, "hidden_size": 64,
     "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
     "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None,
     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "hidden_act": "silu", "tie_word_embeddings": False,
     "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 2, "layer_types": ["full_attention"] * 2,
     "attention_dropout": 0.0, "torch_dtype": "bfloat16", "num_labels": 1, "id2label": {"0": "a"}, "initializer_range": 0.02,
     "quantization_config": None, "eos_token_id": [1, 2], "pad_token_id": 0},
)  # fmt: skip
TOKENIZER_CONFIGS = ({"eos_token": "<|endoftext|>", "pad_token": {"content": "<|endoftext|>"}},)
RENDERINGS = ({"template": "chat", "thinking": False, "end": "<|im_end|>"},)
_PART = {"prefix": "a_train", "documents": 2, "tokens": 9, "index_sum": [10, "0" * 64], "tokens_sum": [10, "0" * 64]}
MANIFESTS = (
    {"format": "megatron_lwz corpus 1", "fingerprint": "f", "validation_share": 0.1, "split_rule": "r",
     "tokenizer": {"folder": "t", "sha256": "0", "vocabulary": 320, "eos": 3},
     "sources": [{"name": "a", "weight": 1.0, "train": _PART, "validation": None, "read": 3, "broken": 0, "empty": 0,
                  "exact_duplicates": 0, "near_duplicates": 0, "bytes": 40, "paths": ["p"], "files": 1}]},
)  # fmt: skip

REPLIES = (
    "<think>plan</think> <answer>The piece.</answer>", "<answer>a</answer>", "<think>a<think>b</think></think> <answer></answer>",
    "x<think></think>\n<answer>写 <answer> b</answer> c", "<think>`</answer>` is a tag</think> <answer>a",
)  # fmt: skip
REPLY_WORDS = ("<think>", "</think>", "<answer>", "</answer>", "<", ">", "/", "`", "\n", "＜think＞", "<THINK>")
LENGTHS = (
    "Write an essay of 500 words.", "写一篇不少于800字、不超过1000字的文章", "between 1,000 and 2.5k words, three paragraphs",
    "at least two thousand five hundred characters", "约一万二千字", "300-500 words each for 4 chapters", "Keep it under 1/2 page.",
)  # fmt: skip
LENGTH_WORDS = ("words", "字", "not", "at least", "between", "and", "-", "–", "千", "万", "two hundred", "1e9", "%", "/", "half", "每章",
                "½", "٣", "五百", "k", "pages", "most", "paragraphs", "10^6", ",000")  # fmt: skip
METRICS = (
    'vllm:kv_cache_usage_perc{model="m"} 0.5\nvllm:num_requests_running{model="m"} 3.0 17\nvllm:num_preemptions_total 1e308\n'
    "vllm:num_requests_waiting 1e308\nvllm:num_requests_waiting 2\n# HELP x\n",
)
JOURNAL_WORDS = ("NULL", "1e999", "{}", "[]", "\\ud800", '{"id": 5}', "training", "CREATE TABLE")


def row_files() -> list[bytes]:
    """Returns files of rows in each shape but Parquet."""
    rows = [json.dumps(row, ensure_ascii=False).encode() for row in (*ROWS, *PAIRS, *PROMPTS)]
    lines = b"\n".join(rows)
    array = b"[" + b",\n".join(rows) + b"]"
    return [lines, b"\xef\xbb\xbf" + lines, array, gzip.compress(lines, 1), gzip.compress(array, 1), b"\n\n" + array]


def safetensors() -> bytes:
    """Returns a file of one tensor `a`, [2, 3] fp32."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(24)


def index() -> bytes:
    """Returns the index of an indexed dataset of three documents, 40 tokens."""
    from megatron_lwz.data.index_file import token_dtype, write_index

    file = io.BytesIO()
    write_index(file, np.array([20, 15, 5], np.int32), token_dtype(100))
    return file.getvalue()


@cache
def tokenizer() -> bytes:
    """Returns a tokenizer.json of single bytes and `<|endoftext|>`."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE({chr(n): n for n in range(32, 127)}, []))
    made.add_special_tokens(["<|endoftext|>"])
    return made.to_str().encode()


def journal() -> bytes:
    """Returns a journal with a consumed group, a scored one and an unfinished one, in one file."""
    from megatron_lwz.rollout.journal import Journal
    from tests.support.journal_groups import complete, group, write

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        writer = Journal(path)
        for number in (0, 1):
            complete(writer, group(number))
        writer.consume([0], step=1)
        writer.mark_checkpoint(1)
        writer.record_order(1, [[0, 1]])
        unfinished = group(2)
        writer.admit(unfinished)
        write(writer, unfinished.drafts[0], (1, 2, 3))
        writer.close()
        return path.read_bytes()


def metadata() -> bytes:
    """Returns the pickled metadata of a checkpoint."""
    import pickle

    import torch
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        TensorProperties,
        TensorStorageMetadata,
    )

    size = torch.Size([2, 3])
    tensor = TensorStorageMetadata(
        TensorProperties(torch.float32), size, [ChunkStorageMetadata(torch.Size([0, 0]), size)]
    )
    return pickle.dumps(Metadata({"a": tensor}))
