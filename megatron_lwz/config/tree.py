"""The config tree: one root, validated as a whole. Constraints between sections are checked here."""

from __future__ import annotations

from pathlib import Path

from megatron_lwz.config import sections as s
from megatron_lwz.config.hf_config import read_hf_architecture
from megatron_lwz.config.presets import PRESETS
from megatron_lwz.errors import ConfigError


class Config(s.Section):
    """All settings of a run. Stages read the sections they need, so one file serves every stage of a recipe."""

    run: s.RunSection = s.RunSection()
    model: s.ModelSection = s.ModelSection()
    parallel: s.ParallelSection = s.ParallelSection()
    training: s.TrainingSection = s.TrainingSection()
    data: s.DataSection = s.DataSection()
    rollout: s.RolloutSection = s.RolloutSection()
    reward: s.RewardSection = s.RewardSection()
    judge: s.JudgeSection = s.JudgeSection()
    grpo: s.GrpoSection = s.GrpoSection()
    sft: s.SftSection = s.SftSection()
    reward_model: s.RewardModelSection = s.RewardModelSection()
    dpo: s.DpoSection = s.DpoSection()
    lora: s.LoraSection = s.LoraSection()
    optimizer: s.OptimizerSection = s.OptimizerSection()
    checkpoint: s.CheckpointSection = s.CheckpointSection()
    kernels: s.KernelsSection = s.KernelsSection()
    weight_sync: s.WeightSyncSection = s.WeightSyncSection()
    evaluation: s.EvaluationSection = s.EvaluationSection()
    logging: s.LoggingSection = s.LoggingSection()
    launch: s.LaunchSection = s.LaunchSection()

    def architecture(self) -> s.Architecture:
        """Returns the decoder's architecture, from `model.architecture`, `model.preset` or the Hugging Face config.

        Raises ConfigError.
        """
        found, head = self._architecture(), self.model.head
        return found if head is None else found.model_copy(update={"head": head})

    def adapter(self) -> s.LoraSection | None:
        """Returns the settings of the policy's LoRA adapter, None without one. Reward models have none."""
        return self.lora if self.lora.rank and self.architecture().head == "language" else None

    def log_prob_passes(self) -> list[s.Architecture]:
        """Returns the models of GRPO's forward passes before an update: for old log-probs, and the frozen model's.

        Raises LwzError if the teacher's folder cannot be read.
        """
        own = self.architecture()
        passes = [own] if self.training.updates_per_batch > 1 else []
        if self.grpo.kl_coefficient > 0 and self.grpo.teacher_server.url is None:
            passes.append(own if self.grpo.teacher is None else read_hf_architecture(Path(self.grpo.teacher)))
        return passes

    def _architecture(self) -> s.Architecture:
        model = self.model
        given = [key for key in ("hf", "architecture", "preset") if getattr(model, key) is not None]
        if len(given) != 1:
            raise ConfigError("model", given, "give exactly one of model.hf, model.architecture, model.preset")
        if model.architecture is not None:
            return model.architecture
        if model.preset is not None:
            if model.preset not in PRESETS:
                raise ConfigError("model.preset", model.preset, f"choose one of {', '.join(PRESETS)}")
            return PRESETS[model.preset]
        return read_hf_architecture(Path(str(model.hf)))

    def tokenizer_dir(self) -> Path:
        """Returns the folder with tokenizer.json. Raises ConfigError without model.tokenizer and model.hf."""
        folder = self.model.tokenizer or self.model.hf
        if folder is None:
            raise ConfigError("model.tokenizer", None, "name the folder that holds tokenizer.json")
        if not (Path(folder) / "tokenizer.json").is_file():
            raise ConfigError(
                "model.tokenizer", folder, "no tokenizer.json in this folder: name the folder of a tokenizer"
            )
        return Path(folder)

    def check_layout(self, world_size: int) -> None:
        """Checks that this config's layout fits the model and `world_size` ranks. Raises ConfigError."""
        p, a = self.parallel, self.architecture()
        ranks = p.tensor * p.pipeline * p.context
        if a.num_attention_heads % p.tensor:
            raise ConfigError(
                "parallel.tensor", p.tensor, f"must divide the model's {a.num_attention_heads} attention heads"
            )
        if a.num_key_value_heads % p.tensor:
            raise ConfigError(
                "parallel.tensor", p.tensor, f"must divide the model's {a.num_key_value_heads} key-value heads"
            )
        if a.intermediate_size % p.tensor:
            raise ConfigError("parallel.tensor", p.tensor, f"must divide intermediate_size {a.intermediate_size}")
        if a.num_attention_heads % a.num_key_value_heads:
            raise ConfigError(
                "model",
                a.num_key_value_heads,
                f"num_key_value_heads must divide {a.num_attention_heads} attention heads",
            )
        if self.model.vocab_padding % p.tensor:
            raise ConfigError(
                "model.vocab_padding", self.model.vocab_padding, f"must be a multiple of parallel.tensor {p.tensor}"
            )
        chunks = p.pipeline * (p.virtual_pipeline or 1)
        if a.num_hidden_layers % chunks:
            raise ConfigError(
                "parallel.pipeline",
                p.pipeline,
                f"{chunks} pipeline chunks must divide the {a.num_hidden_layers} layers",
            )
        if p.virtual_pipeline and p.pipeline == 1:
            raise ConfigError("parallel.virtual_pipeline", p.virtual_pipeline, "needs parallel.pipeline > 1")
        if world_size % ranks:
            raise ConfigError(
                "parallel",
                f"tensor × pipeline × context = {ranks}",
                f"must divide the {world_size} ranks torchrun started",
            )

    @property
    def longest_rollout(self) -> int:
        """Tokens of the longest prompt with the longest response."""
        return self.data.max_prompt_tokens + self.rollout.max_new_tokens

    def check_grpo(self) -> None:
        """Checks what the GRPO stage needs beyond single fields. Raises ConfigError."""
        if self.data.prompts is None:
            raise ConfigError("data.prompts", None, "name the JSONL file of prompts")
        self.grpo.check()
        if self.grpo.kl_placement == "loss" and self.grpo.kl_coefficient > 0 and self.grpo.kl_estimator == "k1":
            raise ConfigError(
                "grpo.kl_estimator",
                "k1",
                "its gradient in the loss has expectation 0: use k2 or k3, or kl_placement: reward",
            )
        if self.rollout.engine == "vllm" and not self.rollout.elsewhere:
            raise ConfigError(
                "rollout.urls", [], "engine vllm needs the URLs of running servers, or rollout.engines_file"
            )
        if self.rollout.urls and self.rollout.engines_file is not None:
            advice = "lists the engines that rollout.urls lists too: leave one of them out"
            raise ConfigError("rollout.engines_file", self.rollout.engines_file, advice)
        corrected = self.grpo.mismatch != "none" or self.grpo.loss_function is not None  # which may read `behaviour`
        if self.rollout.top_p < 1 and not corrected:
            raise ConfigError(
                "rollout.top_p",
                self.rollout.top_p,
                "below 1 the engine samples another distribution: set grpo.mismatch",
            )
        longest = self.longest_rollout
        if self.training.tokens_per_micro_batch < longest:
            raise ConfigError(
                "training.tokens_per_micro_batch",
                self.training.tokens_per_micro_batch,
                f"must hold the longest rollout: data.max_prompt_tokens + rollout.max_new_tokens = {longest}",
            )
        self.data.curriculum.check(self.rollout.max_new_tokens, [name for _, name, _ in self.reward.components()])
        self._check_lora()
        self._check_staleness()
        self._check_accumulation()
        self._check_weight_sync()
        self._check_evaluation()
        sequences = self.training.prompts_per_step * self.grpo.group_size
        if sequences % self.training.updates_per_batch:
            raise ConfigError(
                "training.updates_per_batch",
                self.training.updates_per_batch,
                f"must divide the {sequences} rollouts of a step",
            )

    def _check_lora(self) -> None:
        """Checks that the base is what the run begins with, and that rounding is corrected for. Raises ConfigError."""
        if not self.lora.rank:
            return
        if self.training.precision == "bf16" and self.grpo.mismatch == "none" and self.grpo.loss_function is None:
            advice = "the engines' weights, merged in bf16, lose small updates: set grpo.mismatch, or precision fp32"
            raise ConfigError("lora.rank", self.lora.rank, advice)
        of_the_base = self.grpo.kl_coefficient > 0 and not self.grpo.taught
        if of_the_base and self.checkpoint.load is not None:
            advice = (
                "the KL term compares with the model without a LoRA adapter: merge this one into it "
                "(lwz convert export), and name that folder in model.hf"
            )
            raise ConfigError("checkpoint.load", self.checkpoint.load, advice)

    def _check_accumulation(self) -> None:
        """Checks the settings under which training may begin on a part of a step's batch. Raises ConfigError."""
        t, reason = self.training, None
        if t.accumulate_groups >= t.prompts_per_step:
            reason = f"must be below training.prompts_per_step = {t.prompts_per_step}, or 0 to wait for the whole batch"
        elif t.updates_per_batch > 1:
            reason = "several updates need the whole batch's log-probs first: set training.updates_per_batch: 1, or 0"
        elif self.reward.shuffle:
            reason = "reward.shuffle permutes the scores of the whole batch: set it to false, or 0"
        elif self.rollout.colocated:
            reason = (
                "engines that share the trainer's GPUs cannot write while it trains: set rollout.colocated: false, or 0"
            )
        if t.accumulate_groups and reason:
            raise ConfigError("training.accumulate_groups", t.accumulate_groups, reason)

    def _check_staleness(self) -> None:
        """Checks what asynchronous rollouts need beyond single fields. Raises ConfigError."""
        stale, ahead = self.rollout.max_staleness, self.rollout.over_sampling
        if stale > 0 and self.grpo.mismatch == "none" and self.grpo.loss_function is None:
            advice = "older weights wrote a part of what is trained on: set grpo.mismatch"
            raise ConfigError("rollout.max_staleness", stale, advice)
        if ahead is not None and ahead > stale:
            advice = f"what is carried over is stale: at most rollout.max_staleness = {stale} batches"
            raise ConfigError("rollout.over_sampling", ahead, advice)

    def _check_weight_sync(self) -> None:
        """Checks the weight sync, and what GPUs shared with engines need, beyond single fields. Raises ConfigError."""
        r, transport = self.rollout, self.weight_sync.transport
        if transport == "nccl" and r.engine != "vllm":
            raise ConfigError("weight_sync.transport", transport, "needs rollout.engine: vllm; use disk")
        if not r.colocated:
            return
        if transport == "nccl":
            advice = "two NCCL ranks cannot share a GPU, and rollout.colocated is on; use disk"
            raise ConfigError("weight_sync.transport", transport, advice)
        if r.max_staleness > 0:
            advice = "engines that share the trainer's GPUs cannot write while it trains: set rollout.colocated: false"
            raise ConfigError("rollout.max_staleness", r.max_staleness, advice)
        if self.data.held_out_prompts is not None and self.evaluation.concurrent and not self.evaluation.urls:
            advice = "rollout.colocated leaves no GPU for another engine beside training: set it to false"
            raise ConfigError("evaluation.concurrent", True, advice)

    def _check_evaluation(self) -> None:
        """Checks what the evaluation during training needs beyond single fields. Raises ConfigError."""
        e = self.evaluation
        held_out = self.data.held_out_prompts is not None
        if held_out and e.concurrent and self.rollout.elsewhere and not e.urls:
            advice = "evaluations beside training need running engines of their own, or evaluation.concurrent: false"
            raise ConfigError("evaluation.urls", [], advice)
        shared = sorted(set(e.urls) & set(self.rollout.urls))
        if shared:
            raise ConfigError("evaluation.urls", shared[0], "is in rollout.urls: the two need different weights")
        if e.quality and not (self.judge.url and self.judge.model):
            raise ConfigError("evaluation.quality", True, "needs judge.url and judge.model")
        every = self.checkpoint.interval
        if self.checkpoint.best_metric is None:
            return
        if not self.checkpoint.best_metric.startswith("eval/"):
            advice = "is no metric of evaluation.jsonl: their names begin with eval/, e.g. eval/reward/length"
            raise ConfigError("checkpoint.best_metric", self.checkpoint.best_metric, advice)
        if not held_out:
            raise ConfigError("checkpoint.best_metric", self.checkpoint.best_metric, "needs data.held_out_prompts")
        if e.interval > 0 and (every == 0 or e.interval % every):
            advice = (
                f"must be a multiple of checkpoint.interval = {every}: checkpoint.best_metric keeps what is evaluated"
            )
            raise ConfigError("evaluation.interval", e.interval, advice)
