"""Rank side of test_chain: the recipe's stages one after the other in one launch, each under another layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from megatron_lwz.config import Config, load_config
from megatron_lwz.distributed import groups, launch
from megatron_lwz.models.hf import checksum_folder, checksum_policy
from megatron_lwz.rollout.progress import Progress
from megatron_lwz.training import grpo, sft
from megatron_lwz.training.initial import initial_policy
from megatron_lwz.training.pretrain import pretrain
from megatron_lwz.training.profiler import Profiler
from tools import prepare_corpus


class Silent:
    """A display for nobody."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def phase(self, name: str) -> None:
        """Nothing."""

    def waiting(self, progress: Progress) -> None:
        """Nothing."""


def chain(config: str) -> dict[str, dict[str, str]]:
    """pretrain → SFT → GRPO → distil → continual pretraining → GRPO; checksums of what each began from and left."""
    root = Path(config).parent
    base, think = root / "base", root / "think"
    source = ["model.architecture=null", f"model.hf={root}/sft/hf"]
    found = {
        "base": run(config, "base", []),
        "sft": run(config, "sft", ["parallel.tensor=2", f"checkpoint.load={base}"]),
        "think": run(config, "think", ["parallel.pipeline=2", *source, "model.tokenizer=null"]),
    }
    if groups.is_rank_zero():
        distil(root)
    dist.barrier()
    newest = (think / "checkpoints" / "latest").read_text()
    load = f"checkpoint.load={think}/checkpoints/{newest}"
    found["cpt"] = run(config, "cpt", ["parallel.context=2", load, f"data.corpus=[{root}/corpus]", "optimizer.lr=1e-3"])
    found["final"] = run(config, "final", ["parallel.tensor=2", f"checkpoint.load={root}/cpt"])
    return found


def run(path: str, name: str, overrides: list[str]) -> dict[str, str]:
    """One stage; which, says the run's name."""
    config = load_config(path, [f"run.dir={Path(path).parent / name}", *overrides])
    launch.initialize(config)
    start = checksum_policy(initial_policy(config))
    if name == "sft":
        sft.train(*sft.prepare(config))
    elif name in ("base", "cpt"):
        pretrain(config)
    else:
        config = with_fewer_steps(config)
        grpo.train(config, Silent(), Profiler())
    root = Path(config.run.dir)
    left = root / "hf" if (root / "hf").is_dir() else root / "weights" / f"{config.training.steps}.0"
    return {"start": start, "end": checksum_folder(left), "layout": str(config.parallel.model_dump())}


def with_fewer_steps(config: Config) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update={"steps": 2})})


def distil(root: Path) -> None:
    """1 % of the corpus are thoughts of the GRPO run."""
    sources: list[dict[str, Any]] = [
        {"name": "texts", "paths": ["corpus.jsonl"]},
        {"name": "thoughts", "format": "journal", "paths": ["think"], "weight": 0.01},
    ]
    spec = {"tokenizer": ".", "validation": 0.2, "duplicates": {"near": False}, "sources": sources}
    (root / "spec.yaml").write_text(yaml.safe_dump(spec))
    prepare_corpus.main([str(root / "spec.yaml"), "--out", str(root / "corpus"), "--workers", "1"])
