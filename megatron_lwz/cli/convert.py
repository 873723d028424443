"""Converts between Hugging Face folders and Megatron checkpoints, and verifies that both are the same model.

    lwz convert import --hf DIR --out DIR          Hugging Face → checkpoint + config.yaml
    lwz convert export --checkpoint DIR --out DIR  checkpoint (or run folder) → Hugging Face
    lwz convert verify --hf DIR --checkpoint DIR   do both hold the same model?

`verify` compares every weight, then the log-probs of random tokens and of text, both in fp32 with an fp64 reference.
The checkpoint may be off by --tolerance, or by as much as transformers is. Reward models
(sequence classifiers with one label) are converted in the same way; `verify` then compares scores. Of a run with LoRA
`export` writes the model with its adapter merged, or with --adapter a PEFT folder of the adapter alone.

`import` and `export` replace a folder only if it holds nothing but the files that such a conversion writes, and if no
run that goes on writes there.

A checkpoint does not depend on the layout: `--tensor` and `--pipeline` of `import` only fill in the `parallel` section
of config.yaml. One process holds the whole model once. For models that do not fit into one machine's memory, start it with
torchrun, and it uses the layout that the options give: `torchrun --nproc-per-node 8 -m megatron_lwz.cli.convert … --tensor 8`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table

from megatron_lwz.cli import common, option_types
from megatron_lwz.config import Config, load_config, read_hf_architecture, validate
from megatron_lwz.data.preferences.rendering import rendering_for, save_rendering
from megatron_lwz.data.start_check import beyond_context
from megatron_lwz.distributed import environment, groups, launch
from megatron_lwz.errors import CheckpointError
from megatron_lwz.models.hf import HfFolder, export_policy, load_policy
from megatron_lwz.models.hf.adapter import ADAPTER_EXPORT, export_adapter
from megatron_lwz.models.hf.compare import compare_weights
from megatron_lwz.models.hf.export import SHARD_BYTES
from megatron_lwz.models.hf.name_map import tensor_shapes
from megatron_lwz.models.hf.target import CHECKPOINT, EXPORT, check_no_run, check_target
from megatron_lwz.models.hf.write import copy_carried_files
from megatron_lwz.models.qwen import build_policy
from megatron_lwz.run_paths import RunPaths, with_config
from megatron_lwz.training.checkpoint import resolve, save_model
from megatron_lwz.training.initial import saved_policy
from megatron_lwz.training.verification import (
    Comparison,
    check_function,
    check_same_architecture,
    compare_function,
    sample_texts,
)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(argv: Sequence[str]) -> None:
    """Parses the command line and runs one of the three commands."""
    parser = common.Parser(
        prog="lwz convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        parsers[command].add_argument("--tensor", type=option_types.positive, default=1, help="tensor parallel size")
        parsers[command].add_argument("--pipeline", type=option_types.positive, default=1, help="pipeline stages")
    parsers["export"].add_argument(
        "--adapter", action="store_true", help="of a run with LoRA: its adapter alone, as a PEFT folder; else merged"
    )
    parsers["export"].add_argument("--dtype", choices=DTYPES, help="default: as trained")
    parsers["export"].add_argument(
        "--shard-bytes", type=option_types.positive, default=SHARD_BYTES, help="largest weight file"
    )
    parsers["verify"].add_argument(
        "--tolerance", type=option_types.positive_number, default=1e-4, help="largest allowed error"
    )
    parsers["verify"].add_argument("--sequences", type=option_types.positive, default=4, help="random ones")
    parsers["verify"].add_argument("--length", type=option_types.positive, default=128, help="tokens per sequence")
    parsers["verify"].add_argument("--seed", type=option_types.not_negative, default=0)
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
    check_target(out, CHECKPOINT, [hf], outside=hf)
    check_no_run(out)
    config = _layout_here(config, arguments)
    launch.initialize(config)
    policies = build_policy(config)
    load_policy(policies, HfFolder(hf), finite=True)
    save_model(policies, out.resolve())  # of a link, the folder that it names is replaced
    if groups.is_rank_zero():
        copy_carried_files(hf, out)
        shutil.copyfile(hf / "config.json", out / "config.json")
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        RunPaths(out).config.write_text(text, encoding="utf-8")
    _say(f"wrote {out} ({config.training.precision}); use it as CONFIG, or as checkpoint.load")


def export_hf(arguments: argparse.Namespace) -> None:
    """Converts a checkpoint or run folder to a Hugging Face folder."""
    config = _layout_here(_config_of(arguments.checkpoint), arguments)
    carried = config.model.tokenizer or config.model.hf
    folder = resolve(arguments.checkpoint)
    if arguments.adapter and config.adapter() is None:
        raise CheckpointError(arguments.checkpoint, "has no LoRA adapter, its run trained all weights: drop --adapter")
    given = [folder, *map(Path, filter(None, (config.model.hf, config.model.tokenizer)))]
    check_target(arguments.out, ADAPTER_EXPORT if arguments.adapter else EXPORT, given, outside=folder)
    check_no_run(arguments.out)
    launch.initialize(config)
    policies = saved_policy(config, arguments.checkpoint)
    if arguments.adapter:
        dtype = DTYPES.get(arguments.dtype)
        checksum = export_adapter(policies, arguments.out, base=config.model.hf, dtype=dtype)
        _say(f"wrote {arguments.out}, an adapter of {config.model.hf}; checksum {checksum}")
        return
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
    """Compares the checkpoint with the folder: numbers of the architecture, weights, and outputs in fp32."""
    hf, checkpoint = arguments.hf, arguments.checkpoint
    saved = _layout_here(_config_of(checkpoint), arguments)
    arch = read_hf_architecture(hf)
    if arguments.length < 2:
        raise common.UsageError(f"--length {arguments.length}: must be at least 2")
    if fault := beyond_context(arch, arguments.length, str(hf / "config.json")):
        raise common.UsageError(f"--length {arguments.length}: {fault}")
    cap = max(arguments.length + 1, saved.training.tokens_per_micro_batch)  # + 1: the mark after a scored text
    training = saved.training.model_copy(update={"precision": "fp32", "tokens_per_micro_batch": cap})
    config = saved.model_copy(update={"training": training})
    launch.initialize(config)
    check_same_architecture(config, arch, hf, checkpoint)
    folder = HfFolder(hf)
    folder.check(tensor_shapes(arch))
    if fault := folder.fault():
        raise CheckpointError(hf, fault)
    samples = sample_texts(hf, arch, sequences=arguments.sequences, length=arguments.length, seed=arguments.seed)
    policies = saved_policy(config, checkpoint)
    weights = compare_weights(policies, folder, DTYPES[saved.training.precision])
    if weights.worst is not None:
        said = f"{weights.differing} of {weights.tensors} tensors differ; {weights.worst}"
        raise CheckpointError(checkpoint, f"is not the model in {hf}: {said}: name the folder that it was made from")
    _say(f"weights: all {weights.tensors} tensors are equal ({weights.values:,} values)")
    found = compare_function(policies, hf, arch, samples, config)
    output = "score" if arch.head == "scalar" else "log-prob"
    _show(found, output)
    check_function(found, hf, checkpoint, output=output, tolerance=arguments.tolerance)
    _say(f"function: the {output}s are those of the folder")


def _show(found: Sequence[Comparison], output: str) -> None:
    """Prints the errors of the outputs, ours and those of transformers."""
    table = Table(title=f"errors of {output}s in fp32 against fp64", title_justify="left")
    heads = ("", "number", "ours\nlargest", "ours\nmean", "transformers\nlargest", "transformers\nmean")
    for head in heads:
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for kind in found:
        errors = (kind.ours.largest, kind.ours.mean, kind.theirs.largest, kind.theirs.mean)
        table.add_row(kind.what, str(kind.count), *(f"{error:.1e}" for error in errors))
    common.console().print(table)


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
    if (found := with_config(checkpoint)) is None:
        advice = "no config.yaml here, nor in a run folder above: name an imported checkpoint or a run"
        raise CheckpointError(checkpoint, advice)
    return load_config(found)


def _layout_here(config: Config, arguments: argparse.Namespace) -> Config:
    """Returns the config with the layout of this process: one rank without torchrun, else the layout of the options."""
    alone = environment.world_size() == 1
    layout = {"tensor": 1 if alone else arguments.tensor, "pipeline": 1 if alone else arguments.pipeline}
    return config.model_copy(update={"parallel": type(config.parallel)(**layout)})


if __name__ == "__main__":
    sys.exit(common.run(main))
