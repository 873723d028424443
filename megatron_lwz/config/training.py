"""The settings of a run and its steps: length, optimizer, checkpoints, and settings of single stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from megatron_lwz.config.base import CommaList, Fraction, Section, UserPath
from megatron_lwz.config.kept import check_names
from megatron_lwz.config.moment import check_moment
from megatron_lwz.config.trackers import MlflowSection, TrackioSection, WandbSection


class RunSection(Section):
    """Folder, name and seed of a run."""

    dir: UserPath = Field("runs/default", description="run folder; the run writes only under it")
    name: str = Field("", description="name in reports; empty = the folder's name")
    seed: int = Field(1234, ge=0, description="seed of weights, data order and sampling")
    resume: Literal["auto", "never", "must"] = Field(
        "auto",
        description="auto: continue if the folder holds a checkpoint; never: refuse a used folder; must: fail without one",
    )
    must_save_by: Annotated[str, AfterValidator(check_moment)] | None = Field(
        None,
        description="by when a checkpoint must be complete; the run saves and ends in time, and the same command goes on: a duration from the start (`3h50m`), a date (`2027-01-31T18:00:00Z`), or `slurm`, the end of the job's time; null = no limit (docs/reliability.md)",
    )
    allow_change: Annotated[tuple[str, ...], CommaList] = Field(
        (),
        description="kept keys (see below), or sections of them, that this start may change in a run that has begun, e.g. `run.seed`; each start that changes one must name it",
    )

    @field_validator("allow_change")
    @classmethod
    def _refuse_what_allows_nothing(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        check_names(given)
        return given


class TrainingSection(Section):
    """Length of the run and size of a step."""

    steps: int = Field(150, gt=0, description="optimizer steps (RL: rollout batches); paper: 150 (B)")
    prompts_per_step: int = Field(32, gt=0, description="RL: prompts per rollout batch; open in the paper")
    updates_per_batch: int = Field(
        1,
        gt=0,
        description="RL: optimizer updates per rollout batch; with 1, the pass for old log-probs is skipped; open",
    )
    accumulate_groups: int = Field(
        0,
        ge=0,
        description="RL: start log-prob passes and gradients whenever this many more groups of the step are ready, before the batch is complete; 0 = wait for the whole batch",
    )
    sequences_per_step: int = Field(
        512, gt=0, description="global batch; pretraining: packed sequences, paper: 512 (B); SFT: conversations"
    )
    ramp_from: int | None = Field(
        None, gt=0, description="batch-size ramp: sequences of the first step, increasing evenly; null = no ramp"
    )
    ramp_steps: int = Field(0, ge=0, description="step at which the batch-size ramp reaches sequences_per_step")
    sequence_length: int = Field(
        32768, gt=0, description="pretraining: tokens per packed sequence, paper: 32K (B); SFT: longest conversation"
    )
    tokens_per_micro_batch: int = Field(
        16384, gt=0, description="maximum size of a packed micro-batch, in tokens per context-parallel group"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "bf16",
        description="dtype of parameters and activations; gradients and master weights are fp32. If it is not given, a CPU without instructions for bf16 trains in fp32",
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="activation recomputation in the backward pass"
    )
    z_loss: float = Field(
        0.0, ge=0, description="pretraining, SFT: coefficient of the squared log-sum-exp of a token's logits; 0 = off"
    )
    peak_flops: float | None = Field(
        None,
        gt=0,
        description="a device's peak FLOP/s in this precision, for the metric `mfu`; null = of the card's data sheet for bf16 on a known card, else not reported",
    )
    skip_budget: int = Field(
        5,
        ge=0,
        description="maximum skipped steps of a run (loss or gradient not finite, or a spike) before it stops; RL: each of updates_per_batch counts",
    )
    loss_spike: float | None = Field(
        None,
        gt=1,
        description="pretraining, SFT, reward model: skip a step whose loss exceeds this multiple of the recent median; null = off",
    )
    grad_norm_spike: float | None = Field(
        None,
        gt=1,
        description="skip a step whose gradient norm before clipping exceeds this multiple of the recent median; null = off",
    )
    spike_window: int = Field(
        32,
        gt=0,
        description="number of recent, not skipped steps in the median; until there are this many, no step is a spike",
    )


class SftSection(Section):
    """Supervised fine-tuning: which parts of a conversation are trained, and with which weight."""

    epochs: float | None = Field(
        None, gt=0, description="passes over the conversations; replaces training.steps; SFT baseline: 4 (A)"
    )
    turns: Literal["all", "last"] = Field("all", description="replies that are trained: all of them, or only the last")
    weighting: Literal["token", "sequence"] = Field(
        "token",
        description="token: every trained token of a step has the same weight; sequence: every conversation has the same weight",
    )
    long_rows: Literal["drop", "truncate"] = Field(
        "drop",
        description="conversations longer than training.sequence_length: drop: left out; truncate: cut, then without end-of-text token",
    )
    wrap_answer: bool = Field(True, description="wrap a reply without <answer> in the tags that the templates ask for")
    separator: str = Field(" ", description="text between the assistant's marker and the reply; trained with the reply")


class OptimizerSection(Section):
    """Adam with decoupled weight decay, and its learning-rate schedule."""

    lr: float = Field(1e-6, gt=0, description="peak learning rate; open for RL; SFT 1e-5 (A)")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the decay")
    schedule: Literal["constant", "cosine", "linear", "wsd"] = Field(
        "constant", description="schedule after warm-up; wsd: constant, then linear to min_lr over the last decay_steps"
    )
    warmup_steps: int = Field(0, ge=0, description="linear warm-up, in training steps; open")
    warmup_fraction: Fraction = Field(
        0.0, description="warm-up as a share of the steps, used where warmup_steps is 0; SFT 0.03 (A)"
    )
    decay_steps: int = Field(
        0,
        ge=0,
        description="schedule wsd: number of decay steps at the end; 0 = no decay yet, still in the stable phase",
    )
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay; SFT 0.1 (A); open for RL")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam: decay of the mean of gradients")
    beta2: float = Field(0.95, ge=0, lt=1, description="Adam: decay of the mean of their squares")
    eps: float = Field(1e-8, gt=0, description="Adam: added to the root of the mean square")
    clip_grad: float = Field(1.0, ge=0, description="maximum global gradient norm; 0 = off")


class CheckpointSection(Section):
    """Checkpoints: saving, and the initial weights."""

    load: UserPath | None = Field(
        None, description="checkpoint folder with the initial weights (the optimizer state is not loaded)"
    )
    interval: int = Field(10, ge=0, description="steps between checkpoints; 0 = only at the end")
    keep: int = Field(2, gt=0, description="number of newest checkpoints kept")
    best_metric: str | None = Field(
        None,
        description="RL: a metric of evaluation.jsonl, e.g. eval/reward/length; the checkpoint with its best value is kept in addition; null = none",
    )
    best_direction: Literal["max", "min"] = Field(
        "max", description="whether larger (max) or smaller (min) values of best_metric are better"
    )
    asynchronous: bool = Field(
        True,
        description="copy the state into host memory and write it while training continues; false, and where there is no room for "
        "the copy: training waits",
    )
    verify: Literal["full", "sizes"] = Field(
        "full",
        description="check of a checkpoint's files before it is loaded: full: sizes and SHA-256, each rank reads its part of the files once more; sizes: sizes alone (docs/reliability.md)",
    )


ProgressForm = Literal["auto", "live", "lines", "json"]
"""How the console shows the progress of a run."""


class LoggingSection(Section):
    """Logging and reports in addition to metrics.jsonl."""

    tensorboard: bool = Field(
        True, description="write the metrics for TensorBoard too, under tensorboard/ of the run folder"
    )
    progress: ProgressForm = Field(
        "auto",
        description="what the console shows meanwhile: live: a screen that is drawn again and again; lines: a line per step, and every 30 s; json: the same as JSON objects; auto: live on a terminal, else lines",
    )
    rollouts_in_report: int = Field(
        2, ge=0, description="number of rollouts shown in full in report.html, from the last steps and from the first"
    )
    report_megabytes: float = Field(
        4.0, ge=0, description="largest size of the rollouts that report.html holds to be searched, in MB; 0 = none"
    )
    token_values: int = Field(
        0,
        ge=0,
        description="RL: steps between those whose values per token (entropy, log-prob of the trainer less that of the engine) are written for the bands of lwz ui, 4 bytes per token; 0 = never",
    )
    length_buckets: Annotated[tuple[int, ...], CommaList] = Field(
        (),
        description="RL: edges of length buckets, in response tokens, for logging each bucket's share of the gradient; empty: quarters of rollout.max_new_tokens",
    )
    wandb: WandbSection = WandbSection()
    trackio: TrackioSection = TrackioSection()
    mlflow: MlflowSection = MlflowSection()
