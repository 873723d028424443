"""TRL's side of bench_grpo.py: runs in an environment with TRL and without this project. Its argument is a JSON file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def share_of_odd_ids(prompt: Any, rollouts: Sequence[Any]) -> list[float]:
    """The reward of both sides, here for our rollouts: the texts of a random policy already differ in it."""
    return [share(rollout.tokens) for rollout in rollouts]


def share(tokens: Sequence[int]) -> float:
    """Returns the share of odd token ids."""
    return sum(token % 2 for token in tokens) / len(tokens)


def main(path: Path) -> None:
    """Trains, and writes one line of metrics per step to the file `metrics`."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    settings = json.loads(path.read_text())
    out = Path(settings["out"])
    prompts = [json.loads(line)["prompt"] for line in Path(settings["prompts"]).read_text().splitlines()]
    cuda = settings["device"] == "cuda"
    rollouts: dict[str, float] = {}

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            begun, worked = time.perf_counter(), time.process_time()
            output = super()._generate_and_score_completions(inputs)
            rollouts["seconds/rollout"] = time.perf_counter() - begun
            rollouts["cpu/rollout"] = time.process_time() - worked
            rollouts["rollout/tokens"] = int(output["completion_mask"].sum())
            return output

    class Writer(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            with Path(settings["metrics"]).open("a") as file:
                file.write(json.dumps(rollouts) + "\n")

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [share(tokens) for tokens in completion_ids]

    config = GRPOConfig(
        output_dir=str(out / "run"), max_steps=settings["steps"], seed=0,
        per_device_train_batch_size=settings["rows"], gradient_accumulation_steps=settings["batch"] // settings["rows"],
        num_generations=settings["group"], max_completion_length=settings["length"], temperature=1.0,
        beta=0.0, learning_rate=1e-6, weight_decay=0.0, gradient_checkpointing=False,
        use_cpu=not cuda, bf16=cuda, model_init_kwargs={"dtype": "bfloat16" if cuda else "float32"},
        report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    Timed(
        model=settings["policy"],
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(settings["policy"], padding_side="left"),
        callbacks=[Writer()],
    ).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
