"""Rank side of test_hf_round_trip: conversions under several layouts, in one launch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megatron_lwz.config import Config, load_config, read_hf_architecture, validate
from megatron_lwz.distributed import groups, launch
from megatron_lwz.errors import CheckpointError, LwzError
from megatron_lwz.models.hf import HfFolder, RandomInit, checksum_policy, export_policy, load_policy
from megatron_lwz.models.hf.compare import compare_weights
from megatron_lwz.models.hf.name_map import tensor_shapes
from megatron_lwz.models.qwen import build_policy
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.training.checkpoint import load_model, save_model
from megatron_lwz.training.initial import initial_policy
from megatron_lwz.training.optimizer import wrap_data_parallel
from megatron_lwz.training.token_logprobs import TokenRow, compute_logprobs
from megatron_lwz.training.weight_sync import DiskTransport, NcclTransport
from megatron_lwz.training.weight_sync.buckets import Buckets
from megatron_lwz.types import WeightVersion
from tests.support.gloo_channel import GlooJoining
from tests.support.weight_peer import TOKEN
from tools import convert_hf

VOCAB_PADDING = 16


def config_for(folder: str, precision: str, layout: dict[str, int], *, padding: int = VOCAB_PADDING) -> Config:
    architecture = read_hf_architecture(Path(folder)).model_dump()
    return validate(
        {
            "model": {"architecture": architecture, "vocab_padding": padding},
            "parallel": layout,
            "training": {"precision": precision},
        }
    )


def round_trips(cases: list[dict[str, Any]]) -> list[str]:
    """For each case loads `source`, exports to `out`; returns the checksums."""
    checksums = []
    for case in cases:
        launch.initialize(config := config_for(case["source"], case["precision"], case["layout"]))
        chunks = build_policy(config)
        for chunk in chunks:  # nothing may survive from before
            for parameter in chunk.parameters():
                parameter.data.fill_(float("nan"))
        if case.get("wrapped"):
            chunks = wrap_data_parallel(chunks, config)
        load_policy(chunks, HfFolder(case["source"]))
        found = compare_weights(chunks, HfFolder(case["source"]), next(chunks[0].parameters()).dtype)
        assert found.worst is None and found.tensors == len(tensor_shapes(config.architecture())), found
        made = export_policy(chunks, Path(case["out"]), config_files_from=Path(case["source"]), shard_bytes=20_000)
        assert made == checksum_policy(chunks)
        checksums.append(made)
    return checksums


def changed_values(source: str, layouts: list[dict[str, int]]) -> list[str]:
    """Under each layout, what the comparison says when one value on the last rank is changed by one percent."""
    said = []
    for layout in layouts:
        launch.initialize(config := config_for(source, "fp32", layout))
        chunks = build_policy(config)
        load_policy(chunks, HfFolder(source))
        if dist.get_rank() == dist.get_world_size() - 1:
            chunks[-1].decoder.layers[-1].mlp.linear_fc2.weight.data[3, 5] *= 1.01
        found = compare_weights(chunks, HfFolder(source), torch.float32)
        said.append(f"{found.differing}: {found.worst}".partition(", most at ")[0])
    return said


def verify_on_two_ranks(hf: str, checkpoint: str) -> None:
    """The tool under torchrun, pipeline parallel 2. It closes the process group, so nothing can follow."""
    convert_hf.main(["verify", "--hf", hf, "--checkpoint", checkpoint, "--pipeline", "2", "--length", "40"])


def random_init(source: str, layouts: list[dict[str, int]]) -> list[str]:
    """Checksum of a fresh model under each layout."""
    checksums = []
    for layout in layouts:
        launch.initialize(config := config_for(source, "fp32", layout))
        chunks = build_policy(config)
        load_policy(chunks, RandomInit(config.architecture(), 5))
        checksums.append(checksum_policy(chunks))
    return checksums


def padding_rows(source: str) -> list[float]:
    """Largest absolute value of this rank's padding rows of embedding and head; 64 rows hold 30 true ones."""
    launch.initialize(config := config_for(source, "fp32", {"tensor": 2}, padding=64))
    (chunk,) = build_policy(config)
    chunk.embedding.word_embeddings.weight.data.fill_(7.0)
    load_policy([chunk], HfFolder(source))
    first = groups.tensor_rank() * 32
    true_rows = max(0, min(32, 30 - first))
    weights = (chunk.embedding.word_embeddings.weight, chunk.output_layer.weight)
    return [float(weight.detach()[true_rows:].abs().max()) for weight in weights]


def faults(broken: list[str]) -> list[str]:
    """What every rank says to each broken folder, and to an export that cannot be written."""
    launch.initialize(config := config_for(broken[0], "fp32", {"tensor": 2}))
    chunks = build_policy(config)
    messages = []
    for folder in broken:
        try:
            load_policy(chunks, HfFolder(folder))
            messages.append("loaded")
        except CheckpointError as error:
            messages.append(str(error))
    load_policy(chunks, RandomInit(config.architecture(), 1))
    try:
        export_policy(chunks, Path(broken[0]) / "config.json", config_files_from=None)
        messages.append("exported")
    except LwzError as error:
        messages.append(str(error))
    return messages


def imported_checkpoint(folder: str, layouts: list[dict[str, int]]) -> list[str]:
    """Checksums of the folder that one rank imported, read back under each layout through its own config.yaml."""
    checksums = []
    for layout in layouts:
        launch.initialize(config := load_config(folder, [f"parallel.{key}={value}" for key, value in layout.items()]))
        checksums.append(checksum_policy(initial_policy(config)))
    return checksums


def weight_sync(source: str, root: str) -> list[str]:
    """Prepares three versions; the transport keeps two."""
    launch.initialize(config := config_for(source, "bf16", {"pipeline": 2}))
    chunks = build_policy(config)
    transport = DiskTransport(None, Path(root), chunks=chunks, config_files_from=Path(source))
    versions = []
    for step in range(3):
        load_policy(chunks, RandomInit(config.architecture(), step))
        versions.append(str(transport.prepare(WeightVersion(step))))
    return versions


def transfer(source: str, layouts: list[dict[str, int]], urls: list[str], broken: str) -> list[str]:
    """Pushes the policy to engines over gloo, under each layout; the last line is what a broken engine makes every rank say."""
    said = []
    section = Config().weight_sync.model_copy(update={"timeout": 20.0})
    for index, layout in enumerate([*layouts, layouts[0]]):
        launch.initialize(config := config_for(source, "fp32", layout))
        chunks = build_policy(config)
        load_policy(chunks, HfFolder(source))
        url = [*urls, broken][index]
        pool = EnginePool([EngineClient(url, TOKEN)], concurrency=1) if groups.is_rank_zero() else None
        disk = DiskTransport(None, Path("unused"), chunks=chunks, config_files_from=None)
        transport = NcclTransport(pool, disk, chunks=chunks, section=section, joining=GlooJoining())
        transport._buckets = Buckets(tensor_shapes(config.architecture()), torch.float32, 20_000)
        try:
            for step in (1, 2):
                version = transport.prepare(WeightVersion(step, 0, "of another version"))
                transport.push(version)
            said.append(str(version))
        except LwzError as error:
            said.append(str(error))
        transport.close()
    return said


def mbridge_for(source: str, config: Config) -> Any:
    """mbridge's Qwen2 converter for models like ours."""
    from mbridge.models.qwen2 import Qwen2Bridge
    from transformers import AutoConfig

    class LocalNormBridge(Qwen2Bridge):
        """mbridge knows Transformer Engine's fused norms; ours stand alone."""

        _OTHER_MAPPING = {"input_layernorm.weight": ["model.layers.{layer_number}.input_layernorm.weight"]}  # noqa: RUF012
        _MLP_MAPPING = {  # noqa: RUF012
            **Qwen2Bridge._MLP_MAPPING,
            "pre_mlp_layernorm.weight": ["model.layers.{layer_number}.post_attention_layernorm.weight"],
        }

    bridge = LocalNormBridge(
        AutoConfig.from_pretrained(source), dtype=torch.float32, make_vocab_size_divisible_by=VOCAB_PADDING
    )
    bridge.vocab_size = config.architecture().vocab_size
    bridge.padded_vocab_size = -(-bridge.vocab_size // VOCAB_PADDING) * VOCAB_PADDING
    return bridge


def against_mbridge(source: str) -> dict[str, Any]:
    """mbridge loads the same folder into our model, then exports our model; both must agree bit by bit."""
    launch.initialize(config := config_for(source, "fp32", {"tensor": 2}))
    ours, theirs = build_policy(config), build_policy(config)
    load_policy(ours, HfFolder(source))
    bridge = mbridge_for(source, config)
    bridge.load_weights(theirs, source)
    pairs = zip(ours[0].named_parameters(), theirs[0].named_parameters(), strict=True)
    different = [name for (name, a), (_, b) in pairs if not torch.equal(a, b)]
    folder = HfFolder(source)
    exported = dict(bridge.export_weights(ours))
    wrong = [name for name, tensor in exported.items() if not torch.equal(tensor, folder.read(name, tensor.shape))]
    return {"different": different, "exported": sorted(exported), "wrong": wrong, "loaded": "mbridge" in sys.modules}


def through_mbridge(source: str, out: str, tokens: list[list[int]]) -> dict[str, Any]:
    """Log-probs of our model, and of what mbridge makes of its HF export and of its checkpoint.

    The checkpoint, written under tensor parallel 2 and read under pipeline parallel 2, goes through mbridge into
    `out`/from_checkpoint, as a Hugging Face folder's weights.
    """
    rows = [TokenRow(str(index), tuple(row), 1) for index, row in enumerate(tokens)]
    launch.initialize(config := config_for(source, "fp32", {"tensor": 2}))
    ours, theirs = build_policy(config), build_policy(config)
    load_policy(ours, HfFolder(source))
    export_policy(ours, Path(out, "export"), config_files_from=Path(source))
    save_model(ours, Path(out, "checkpoint"))
    mbridge_for(source, config).load_weights(theirs, str(Path(out, "export")))
    found = {"ours": compute_logprobs(ours, rows, config), "from_export": compute_logprobs(theirs, rows, config)}
    launch.initialize(config := config_for(source, "fp32", {"pipeline": 2}))
    read = build_policy(config)
    load_model(read, Path(out, "checkpoint"))
    exported = {name: tensor.contiguous() for name, tensor in mbridge_for(source, config).export_weights(read)}
    if groups.is_rank_zero():
        save_file(exported, Path(out, "from_checkpoint.safetensors"))
    return {name: [logprobs.tolist() for logprobs, _ in values] for name, values in found.items()}


def two_ranks(arguments: dict[str, Any]) -> dict[str, Any]:
    """All two-rank checks."""
    return {
        "round_trips": round_trips(arguments["cases"]),
        "changed": changed_values(arguments["source"], arguments["layouts"][1:4]),
        "random": random_init(arguments["source"], arguments["layouts"]),
        "padding": padding_rows(arguments["small_vocabulary"]),
        "faults": faults(arguments["broken"]),
        "sync": weight_sync(arguments["source"], arguments["sync_root"]),
        "transfer": transfer(arguments["source"], arguments["layouts"], *arguments["engines"]),
        "imported": imported_checkpoint(arguments["imported"], arguments["layouts"]),
        "mbridge": against_mbridge(arguments["source"]),
        "logprobs": through_mbridge(arguments["source"], arguments["through_mbridge"], arguments["tokens"]),
        "tool": import_on_two_ranks(arguments["source"], arguments["imported_by_two"]),
    }


def import_on_two_ranks(hf: str, out: str) -> None:
    """The tool under torchrun, tensor parallel 2. It closes the process group, so nothing can follow."""
    convert_hf.main(["import", "--hf", hf, "--out", out, "--tensor", "2"])
