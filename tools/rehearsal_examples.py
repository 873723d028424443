"""The configs of examples/ that train, as cases of a rehearsal at their true sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_lwz.config import Config, load_config
from megatron_lwz.rehearsal.case import Case

FOLDER = Path(__file__).resolve().parents[1] / "examples"
_SIZES = ("model", "parallel", "training", "kernels", "grpo", "reward_model", "dpo")
"""Sections that change what a rank of a step does, beside the length of its sequences."""


@dataclass(frozen=True)
class Example:
    """A config of examples/, and how its script starts it."""

    path: str
    stage: str
    world: int
    """Number of ranks that train."""
    model: str
    """Preset with the numbers of the model that `model.hf` names, or a file that holds them."""

    @property
    def for_gpus(self) -> bool:
        """Whether its script starts it on GPUs; the others are rehearsed as if there were some."""
        return "_cpu/" not in self.path

    def config(self) -> Config:
        """Returns the config with the numbers of its model in the place of its Hugging Face folder."""
        file = FOLDER / self.path
        if not self.model.endswith(".yaml"):
            return load_config(file, ["model.hf=null", f"model.preset={self.model}"])
        return load_config(file).model_copy(update={"model": load_config(file.with_name(self.model)).model})

    def cases(self) -> Iterator[Case]:
        """Yields a case per kind of rank (first, middle and last pipeline stage), and on GPUs its checkpoints.

        Sequences are as long as the config allows. A step has as many packs per data-parallel rank as the pipeline has
        stages: the least that fills it.
        """
        config = self.config()
        stages = config.parallel.pipeline
        sequence = config.training.sequence_length
        if self.stage == "grpo":
            sequence = config.data.max_prompt_tokens + config.rollout.max_new_tokens
        for stage in ("train", "checkpoint") if self.for_gpus else ("train",):
            for index in sorted({0, stages // 2, stages - 1}):
                rank = index * (self.world // stages)
                what = self.stage if stage == "train" else stage
                name = f"{self.path} {what} rank {rank} of {self.world}, stage {index + 1} of {stages}"
                tree = config.model_dump(mode="json")
                yield Case(name, tree, what, self.world, rank, sequence=sequence, micro_batches=stages)


EXAMPLES = (
    *(Example(f"tiny_cpu/{name}.yaml", stage, 2, "model.yaml") for name, stage in (
        ("pretrain", "pretrain"), ("sft", "sft"), ("reward_model", "reward_model"), ("dpo", "dpo"), ("config", "grpo"),
    )),
    Example("qwen2.5_0.5b_cpu/config.yaml", "grpo", 1, "qwen2.5-0.5b"),
    Example("qwen2.5_0.5b_1gpu/config.yaml", "grpo", 1, "qwen2.5-0.5b"),
    Example("qwen2.5_7b_8xh100/config.yaml", "grpo", 4, "qwen2.5-7b"),
    Example("qwen3_4b_4xa800/config.yaml", "grpo", 2, "qwen3-4b"),
    *(Example(f"longwriter_zero_32b_64xh100/{name}.yaml", stage, world, "qwen2.5-32b") for name, stage, world in (
        ("config", "grpo", 32), ("1_base_nothink", "grpo", 32), ("2_base_think", "grpo", 32),
        ("5_longwriter_zero", "grpo", 32), ("4_pretrain", "pretrain", 64), ("sft", "sft", 64),
    )),
)  # fmt: skip
"""Every config of examples/ that trains. The chain's GRPO steps train on 4 nodes of 8 GPUs, its other steps on 8."""


def example_cases(examples: Iterable[Example] = EXAMPLES) -> list[Case]:
    """Returns the cases of the examples; of several that differ in nothing that a rank does, one that names the others."""
    found: dict[str, tuple[Case, list[str]]] = {}
    for example in examples:
        for case in example.cases():
            found.setdefault(what_it_does(case), (case, []))[1].append(example.path.rpartition("/")[2])
    return [
        replace(case, name=f"{case.name} (and {', '.join(others)})" if others else case.name)
        for case, (_, *others) in found.values()
    ]


def what_it_does(case: Case) -> str:
    """Returns what tells two cases apart that differ in what a rank does."""
    tree = {name: case.config[name] for name in _SIZES if name in case.config}
    training = dict(tree["training"])
    training.pop("steps")
    if case.stage == "checkpoint":  # the state alone
        tree, training = {"model": tree["model"], "parallel": tree["parallel"]}, {"precision": training["precision"]}
    temperature, prompt = case.config["rollout"]["temperature"], case.config["data"]["max_prompt_tokens"]
    return repr((case.stage, case.world, case.rank, case.sequence, temperature, prompt, tree, training))
