#!/usr/bin/env python
"""Converts between Hugging Face folders and Megatron checkpoints, and verifies that both are the same model.

    python tools/convert_hf.py import --hf DIR --out DIR          Hugging Face → checkpoint + config.yaml
    python tools/convert_hf.py export --checkpoint DIR --out DIR  checkpoint (or run folder) → Hugging Face
    python tools/convert_hf.py verify --hf DIR --checkpoint DIR   largest difference of log-probs on random tokens

Reward models (Qwen2ForSequenceClassification with one label) are converted in the same way; `verify` then compares
scores.

A checkpoint does not depend on the layout: `--tensor` and `--pipeline` of `import` only fill in the `parallel` section
of config.yaml. One process holds the whole model once. For models that do not fit into one machine's memory, start the
tool with torchrun, and it uses the layout that the options give: `torchrun --nproc-per-node 8 tools/convert_hf.py …
--tensor 8`.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from megatron_lwz.cli import common
from megatron_lwz.config import Config, load_config, read_hf_architecture, validate
from megatron_lwz.data.preferences.batches import text_batch
from megatron_lwz.data.preferences.rendering import rendering_for, save_rendering
from megatron_lwz.data.tokenizer import read_pad_id
from megatron_lwz.distributed import environment, exchange, groups, launch
from megatron_lwz.errors import CheckpointError
from megatron_lwz.models.hf import HfFolder, export_policy, load_policy
from megatron_lwz.models.hf.export import SHARD_BYTES
from megatron_lwz.models.hf.name_map import tensor_shapes
from megatron_lwz.models.hf.write import copy_carried_files, refuse_foreign
from megatron_lwz.models.qwen2 import build_policy
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.checkpoint import load_model, save_model
from megatron_lwz.training.reward_model import score_sequences
from megatron_lwz.training.token_logprobs import TokenRow, compute_logprobs

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(argv: Sequence[str]) -> None:
    """Parses the command line and runs one of the three commands."""
    parser = common.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    options = {
        "import": ("--hf", "--out"),
        "export": ("--checkpoint", "--out"),
        "verify": ("--hf", "--checkpoint"),
    }
    parsers = {}
    for command, folders in options.items():
        parsers[command] = commands.add_parser(command)
        for folder in folders:
            parsers[command].add_argument(folder, type=Path, required=True, metavar="DIR")
        parsers[command].add_argument("--tensor", type=int, default=1, help="tensor parallel size")
        parsers[command].add_argument("--pipeline", type=int, default=1, help="pipeline stages")
    parsers["export"].add_argument("--dtype", choices=DTYPES, help="default: as trained")
    parsers["export"].add_argument("--shard-bytes", type=int, default=SHARD_BYTES, help="largest weight file")
    parsers["verify"].add_argument("--tolerance", type=float, default=1e-4, help="largest allowed difference")
    parsers["verify"].add_argument("--sequences", type=int, default=4)
    parsers["verify"].add_argument("--length", type=int, default=128, help="tokens per sequence")
    parsers["verify"].add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        {"import": import_hf, "export": export_hf, "verify": verify}[arguments.command](arguments)
    finally:
        launch.shutdown()


def import_hf(arguments: argparse.Namespace) -> None:
    """Converts a Hugging Face folder to a checkpoint folder with a config.yaml that every stage accepts."""
    hf, out = arguments.hf, arguments.out
    tree = _config_tree(hf, arguments)
    config = validate({**tree, "model": {**tree["model"], "tokenizer": None}, "checkpoint": {}})
    config.check_layout(arguments.tensor * arguments.pipeline)
    refuse_foreign(out, weights="*.distcp")
    config = _layout_here(config, arguments)
    launch.initialize(config)
    policies = build_policy(config)
    load_policy(policies, HfFolder(hf))
    save_model(policies, out)
    if groups.is_rank_zero():
        copy_carried_files(hf, out)
        shutil.copyfile(hf / "config.json", out / "config.json")
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        RunPaths(out).config.write_text(text, encoding="utf-8")
    _say(f"wrote {out} ({config.training.precision}); use it as CONFIG, or as checkpoint.load")


def export_hf(arguments: argparse.Namespace) -> None:
    """Converts a checkpoint or run folder to a Hugging Face folder."""
    config = _layout_here(_config_of(arguments.checkpoint), arguments)
    launch.initialize(config)
    policies = build_policy(config)
    load_model(policies, arguments.checkpoint)
    carried = config.model.tokenizer or config.model.hf
    checksum = export_policy(
        policies,
        arguments.out,
        config_files_from=Path(carried) if carried else arguments.checkpoint,
        dtype=DTYPES.get(arguments.dtype),
        shard_bytes=arguments.shard_bytes,
    )
    if groups.is_rank_zero() and config.architecture().head == "scalar" and config.reward_model.pairs:
        section = config.reward_model  # a run's own model: rendered as in its training
        save_rendering(arguments.out, rendering_for(Path(str(carried)), section.template, thinking=section.thinking))
    _say(f"wrote {arguments.out}; checksum {checksum}")


def verify(arguments: argparse.Namespace) -> None:
    """Compares fp32 log-probs (scores) of transformers and of the checkpoint; one model is in memory at a time."""
    config = _layout_here(_config_of(arguments.checkpoint), arguments)
    exact = {
        "precision": "fp32",
        "tokens_per_micro_batch": max(arguments.length, config.training.tokens_per_micro_batch),
    }
    config = config.model_copy(update={"training": config.training.model_copy(update=exact)})
    launch.initialize(config)
    HfFolder(arguments.hf).check(tensor_shapes(read_hf_architecture(arguments.hf)))
    generator = torch.Generator().manual_seed(arguments.seed)
    shape = (arguments.sequences, arguments.length)
    tokens = torch.randint(config.architecture().vocab_size, shape, generator=generator)
    scalar = config.architecture().head == "scalar"
    if scalar:  # transformers looks for the last token that is not padding
        tokens[:, -1] = torch.where(tokens[:, -1] == (read_pad_id(arguments.hf) or 0), 1, tokens[:, -1])
    of_transformers = _transformers_scores if scalar else _transformers_logprobs
    theirs = of_transformers(arguments.hf, tokens) if groups.is_rank_zero() else None
    ours = (_megatron_scores if scalar else _megatron_logprobs)(config, arguments.checkpoint, tokens)
    difference = float((ours - theirs).abs().max()) if theirs is not None else None
    difference = exchange.broadcast_json(difference)
    what, over = ("score", "texts of random tokens") if scalar else ("log-prob", "random tokens")
    _say(f"max |{what} difference| = {difference:.3g} over {ours.numel()} {over}")
    if not difference <= arguments.tolerance:  # a NaN fails too
        raise CheckpointError(
            arguments.checkpoint,
            f"is not the model in {arguments.hf}: {what}s differ by {difference:.3g}, tolerance {arguments.tolerance:g}",
        )


def _say(text: str) -> None:
    common.console().print(text, markup=False)


def _config_tree(hf: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the content of an imported checkpoint's config.yaml.

    `${config_dir}` is resolved when the file is read.
    """
    model: dict[str, Any] = {"architecture": read_hf_architecture(hf).model_dump()}
    if (hf / "tokenizer.json").is_file():
        model["tokenizer"] = "${config_dir}"
    folder = HfFolder(hf)
    folder.check(tensor_shapes(read_hf_architecture(hf)))
    all_bf16 = {folder.dtype(name) for name in tensor_shapes(read_hf_architecture(hf))} == {"BF16"}
    return {
        "model": model,
        "parallel": {"tensor": arguments.tensor, "pipeline": arguments.pipeline},
        "training": {"precision": "bf16" if all_bf16 else "fp32"},
        "checkpoint": {"load": "${config_dir}"},
    }


def _config_of(checkpoint: Path) -> Config:
    """Reads the config.yaml in the checkpoint's folder, or in the run folder that holds it."""
    for folder in (checkpoint, *list(checkpoint.resolve().parents)[:2]):
        if RunPaths(folder).config.is_file():
            return load_config(folder)
    raise CheckpointError(
        checkpoint, "no config.yaml here, nor in a run folder above: name an imported checkpoint or a run"
    )


def _layout_here(config: Config, arguments: argparse.Namespace) -> Config:
    """Returns the config with the layout of this process: one rank without torchrun, else the layout of the options."""
    alone = environment.world_size() == 1
    layout = {"tensor": 1 if alone else arguments.tensor, "pipeline": 1 if alone else arguments.pipeline}
    return config.model_copy(update={"parallel": type(config.parallel)(**layout)})


def _transformers_logprobs(hf: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Returns [sequences, length − 1] log-probs of each next token."""
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(hf, dtype=torch.float32, use_safetensors=True).eval()
    rows = []
    with torch.no_grad():
        for row in tokens:
            logits = model(row[None]).logits[0, :-1]
            rows.append(logits.log_softmax(-1).gather(-1, row[1:, None])[:, 0])
    del model
    gc.collect()
    return torch.stack(rows)


def _transformers_scores(hf: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Returns [sequences] scores of the rows."""
    from transformers import Qwen2ForSequenceClassification

    model = Qwen2ForSequenceClassification.from_pretrained(hf, dtype=torch.float32, use_safetensors=True).eval()
    with torch.no_grad():
        return torch.stack([model(row[None]).logits[0, 0] for row in tokens])


def _megatron_scores(config: Config, checkpoint: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Returns the same scores from the checkpoint, on every rank."""
    models = build_policy(config)
    load_model(models, checkpoint)
    return score_sequences(models, text_batch(list(tokens)), config)


def _megatron_logprobs(config: Config, checkpoint: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Returns the same log-probs from the checkpoint, on every rank."""
    policies = build_policy(config)
    load_model(policies, checkpoint)
    rows = [TokenRow(str(index), tuple(row), 1) for index, row in enumerate(tokens.tolist())]
    return torch.stack([logprobs for logprobs, _ in compute_logprobs(policies, rows, config)])


if __name__ == "__main__":
    sys.exit(common.run(main))
