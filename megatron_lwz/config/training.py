"""A run and its steps: length, optimizer, checkpoints, the stages' own choices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Fraction, Section


class RunSection(Section):
    """Where a run lives and how it repeats."""

    dir: str = Field("runs/default", description="run folder; everything the run writes is under it")
    name: str = Field("", description="shown in reports; empty = the folder's name")
    seed: int = Field(1234, ge=0, description="seeds weights, data order and sampling")
    resume: Literal["auto", "never", "must"] = Field(
        "auto",
        description="auto: continue if the folder holds a checkpoint; never: refuse a used folder; must: fail without one",
    )


class TrainingSection(Section):
    """Length of the run and size of a step."""

    steps: int = Field(150, gt=0, description="optimizer steps (RL: rollout batches); paper: 150 (B)")
    prompts_per_step: int = Field(32, gt=0, description="RL: prompts per rollout batch; open in the paper")
    updates_per_batch: int = Field(
        1, gt=0, description="RL: optimizer updates per rollout batch; open; 1 skips the old-log-prob pass"
    )
    accumulate_groups: int = Field(
        0,
        ge=0,
        description="RL: log-prob passes and gradients begin when so many more groups of the step are ready, before its batch is complete; 0 = wait for all",
    )
    sequences_per_step: int = Field(
        512, gt=0, description="global batch; pretraining: packed sequences, paper: 512 (B); SFT: conversations"
    )
    ramp_from: int | None = Field(
        None, gt=0, description="batch-size ramp: sequences of the first step, rising evenly; null = no ramp"
    )
    ramp_steps: int = Field(0, ge=0, description="step from which the batch has sequences_per_step sequences")
    sequence_length: int = Field(
        32768, gt=0, description="pretraining: tokens per packed sequence, paper: 32K (B); SFT: longest conversation"
    )
    tokens_per_micro_batch: int = Field(
        16384, gt=0, description="cap of a packed micro-batch, in tokens per context-parallel group"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="parameters and activations; gradients and masters are fp32"
    )
    recompute: Literal["none", "selective", "full"] = Field("none", description="activation recompute")
    z_loss: float = Field(
        0.0, ge=0, description="pretraining, SFT: coefficient of the squared log-sum-exp of a token's logits; 0 = off"
    )
    peak_flops: float | None = Field(
        None, gt=0, description="a device's peak FLOP/s in this precision, for `mfu`; null = not reported"
    )
    skip_budget: int = Field(
        5,
        ge=0,
        description="pretraining, SFT: steps of a run that may be skipped (not finite, or a spike) before it stops",
    )
    loss_spike: float | None = Field(
        None, gt=1, description="skip a step whose loss is over this many times the recent median; null = off"
    )
    grad_norm_spike: float | None = Field(
        None, gt=1, description="the same for the gradient norm before clipping; null = off"
    )
    spike_window: int = Field(32, gt=0, description="taken steps that the median is of; nothing is a spike before")


class SftSection(Section):
    """Supervised fine-tuning: what of a conversation is trained, and how much it counts."""

    epochs: float | None = Field(
        None, gt=0, description="passes over the conversations, in place of training.steps; SFT baseline: 4 (A)"
    )
    turns: Literal["all", "last"] = Field("all", description="replies that are trained: every one, or only the last")
    weighting: Literal["token", "sequence"] = Field(
        "token", description="token: every trained token of a step counts the same; sequence: every conversation does"
    )
    long_rows: Literal["drop", "truncate"] = Field(
        "drop", description="conversations over training.sequence_length: left out, or cut (then without end of text)"
    )
    wrap_answer: bool = Field(
        True, description="put a reply that has no <answer> into the tags that the templates ask for"
    )
    separator: str = Field(" ", description="between the assistant's marker and the reply; trained with the reply")


class OptimizerSection(Section):
    """Adam with decoupled weight decay, and its schedule."""

    lr: float = Field(1e-6, gt=0, description="peak learning rate; open for RL; SFT 1e-5 (A)")
    min_lr: float = Field(0.0, ge=0, description="end of the decay")
    schedule: Literal["constant", "cosine", "linear", "wsd"] = Field(
        "constant", description="after warm-up; wsd: constant, then linear to min_lr over the last decay_steps"
    )
    warmup_steps: int = Field(0, ge=0, description="linear warm-up, in training steps; open")
    warmup_fraction: Fraction = Field(
        0.0, description="warm-up as a share of the steps, where warmup_steps is 0; SFT 0.03 (A)"
    )
    decay_steps: int = Field(0, ge=0, description="schedule wsd: steps of the decay at the end; 0 = still stable")
    weight_decay: float = Field(0.1, ge=0, description="SFT 0.1 (A); open for RL")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    clip_grad: float = Field(1.0, ge=0, description="global gradient norm; 0 = off")


class CheckpointSection(Section):
    """Saving and starting points."""

    load: str | None = Field(
        None, description="checkpoint folder whose weights the run starts from (optimizer not taken)"
    )
    interval: int = Field(10, ge=0, description="steps between checkpoints; 0 = only at the end")
    keep: int = Field(2, gt=0, description="newest checkpoints kept")
    best_metric: str | None = Field(
        None,
        description="RL: a metric of evaluation.jsonl, e.g. eval/reward/length: the checkpoint where it is best is kept besides; null = none",
    )
    best_direction: Literal["max", "min"] = Field("max", description="which values of best_metric are better")
    asynchronous: bool = Field(
        True, description="copy the state into host memory and write it while training goes on; false: training waits"
    )


class LoggingSection(Section):
    """What is shown and written besides metrics.jsonl."""

    tensorboard: bool = True
    rollouts_in_report: int = Field(2, ge=0, description="rollouts to read in report.html")
    length_buckets: tuple[int, ...] = Field(
        (),
        description="RL: edges, in tokens of a response, between which the gradient's share is logged; empty: quarters of rollout.max_new_tokens",
    )
