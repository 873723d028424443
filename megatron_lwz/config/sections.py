"""Every setting, once: its type, default, unit and source. Grades A–D after a source: A primary artefact … D derived.

"Open" marks what the paper does not say; the default there is our choice (docs/recipe.md explains it).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class RunSection(Section):
    """Where a run lives and how it repeats."""

    dir: str = Field("runs/default", description="run folder; everything the run writes is under it")
    name: str = Field("", description="shown in reports; empty = the folder's name")
    seed: int = Field(1234, ge=0, description="seeds weights, data order and sampling")
    resume: Literal["auto", "never", "must"] = Field(
        "auto",
        description="auto: continue if the folder holds a checkpoint; never: refuse a used folder; must: fail without one",
    )


class Architecture(Section):
    """The numbers of a Qwen2.5 decoder (names as in Hugging Face's config.json)."""

    num_hidden_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    vocab_size: int = Field(gt=0, description="true vocabulary; padding rows are added by us and masked everywhere")
    max_position_embeddings: int = Field(32768, gt=0)
    rope_theta: float = Field(1_000_000.0, gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0)
    tie_word_embeddings: bool = False
    head_dim: int | None = Field(None, gt=0, description="null: hidden_size / num_attention_heads")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of random initial weights")


class ModelSection(Section):
    """The policy. Give one of `hf`, `architecture` or `preset`; weights come from `hf`, `checkpoint.load` or a random init."""

    hf: str | None = Field(None, description="Hugging Face folder: config.json, *.safetensors, tokenizer files")
    architecture: Architecture | None = Field(None, description="the numbers themselves")
    preset: str | None = Field(None, description="a Qwen2.5 size by name: qwen2.5-0.5b … qwen2.5-72b")
    tokenizer: str | None = Field(None, description="folder with tokenizer.json; null: `hf`")
    vocab_padding: int = Field(
        128,
        gt=0,
        description="vocabulary rows are padded to a multiple of this; independent of parallel.tensor, so checkpoints reshard",
    )
    attention: Literal["auto", "transformer_engine", "flash", "torch"] = Field(
        "auto", description="auto: Transformer Engine if installed with a GPU, else flash-attn, else torch"
    )


class ParallelSection(Section):
    """How the ranks are split; data parallel is what remains."""

    tensor: int = Field(1, gt=0)
    pipeline: int = Field(1, gt=0)
    context: int = Field(1, gt=0)
    virtual_pipeline: int | None = Field(
        None, gt=1, description="model chunks per pipeline rank (interleaved schedule)"
    )
    sequence: bool = Field(True, description="sequence parallel norms and dropouts; only used with tensor > 1")
    distributed_optimizer: bool = Field(True, description="shard optimizer state over data-parallel ranks")
    overlap: bool = Field(False, description="overlap gradient reduction with the backward pass")
    timeout_minutes: float = Field(
        30.0, gt=0, description="collective timeout; waiting for rollouts never sits in a collective"
    )


class TrainingSection(Section):
    """Length of the run and size of a step."""

    steps: int = Field(150, gt=0, description="optimizer steps (RL: rollout batches); paper: 150 (B)")
    prompts_per_step: int = Field(32, gt=0, description="RL: prompts per rollout batch; open in the paper")
    updates_per_batch: int = Field(
        1, gt=0, description="RL: optimizer updates per rollout batch; open; 1 skips the old-log-prob pass"
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


class DataSection(Section):
    """What is read."""

    prompts: str | None = Field(None, description="JSONL of prompt rows")
    held_out_prompts: str | None = Field(None, description="JSONL of prompt rows used only for evaluation")
    corpus: tuple[str, ...] = Field(
        (), description="pretraining: a manifest of tools/prepare_corpus.py, or JSONL files with a `text` key"
    )
    instructions: tuple[str, ...] = Field(
        (), description="SFT: JSONL files of messages, conversations, prompt + response or instruction + output"
    )
    validation: dict[str, tuple[str, ...]] = Field(
        {},
        description="pretraining, SFT: source → JSONL files in the stage's format, for the loss every evaluation.interval",
    )
    shuffle: bool = Field(True, description="shuffle each epoch (seeded); the order does not depend on the layout")
    template: Literal["paper", "bare"] = Field(
        "paper",
        description="paper: instruction paragraph and role markers (A); bare: the markers alone, for tiny models",
    )
    max_prompt_tokens: int = Field(2048, gt=0, description="longer prompts are dropped and counted")


class RolloutSection(Section):
    """Sampling and the engines."""

    engine: Literal["embedded", "vllm"] = Field(
        "embedded", description="embedded: started by the run itself; vllm: give `urls`"
    )
    urls: tuple[str, ...] = Field((), description="engines already running, e.g. http://127.0.0.1:8000")
    api_key_env: str = Field("LWZ_ENGINE_TOKEN", description="environment variable that holds the engines' token")
    temperature: float = Field(0.8, gt=0, description="paper: 0.8 (B)")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1.0,
        description="paper: 1.0 (B); below 1 the behaviour log-prob is not the policy's, and the loss must correct it",
    )
    max_new_tokens: int = Field(14_000, gt=0, description="paper: 14,000 (B)")
    stop: tuple[str, ...] = Field(
        ("</answer>", "<|user|>", "<|用户|>"), description="stop strings; the model card's (A)"
    )
    max_staleness: int = Field(0, ge=0, description="weight versions a consumed group may lag behind; 0 = synchronous")
    concurrency: int = Field(128, gt=0, description="rollouts in flight per engine")
    request_timeout: float = Field(600.0, gt=0, description="seconds without any token before a request is retried")
    retries: int = Field(5, ge=0, description="attempts per rollout after a failure, each from its last durable token")
    commit_interval: float = Field(0.5, gt=0, description="seconds between durable journal commits")
    network_journal: bool = Field(False, description="run folder on NFS or Lustre: the journal takes an exclusive lock")
    engine_threads: int = Field(0, ge=0, description="CPU threads of the embedded engine; 0 = all cores")


class LengthReward(Section):
    """The paper's piecewise length reward (section 3.1)."""

    weight: float = Field(1.0, ge=0, description="paper: equal weights (B)")
    unit: Literal["words", "characters", "tokens"] = Field(
        "words", description="words = CJK characters + alphabetic words, as LongBench-Write counts; open"
    )
    maximum: int = Field(16_000, gt=0, description="L_max: length at which the over-length slope reaches 0; open")
    relative_maximum: float | None = Field(
        None, gt=1, description="L_max = this times the prompt's upper bound, instead of `maximum` for all; open"
    )
    clip: bool = Field(True, description="clip to [0, 1]; unclipped it goes negative beyond L_max; open")
    count_thinking: bool = Field(False, description="count the think segment too; open")
    shape: Literal["paper", "longbench"] = Field(
        "paper",
        description="paper: its piecewise formula; longbench: LongBench-Write's S_l, which falls faster below the range than above it and knows no L_max",
    )
    under_power: float = Field(
        1.0, gt=0, description="power of the reward below the range; above 1 is stricter; 1 = paper"
    )
    over_power: float = Field(1.0, gt=0, description="the same above the range; unequal powers make it asymmetric")
    use: Literal["component", "rescale"] = Field(
        "component",
        description="component: one of those averaged (paper, B); rescale: the other rewards are multiplied by it instead (GR3)",
    )


class FormatReward(Section):
    """One think segment, one answer segment, no near-duplicate paragraphs (section 3.1)."""

    weight: float = Field(1.0, ge=0, description="paper: equal weights (B)")
    duplicate_penalty: Fraction = Field(
        0.5, description="subtracted times the share of near-duplicate paragraphs; open"
    )
    duplicate_threshold: Fraction = Field(
        0.6, description="Jaccard similarity from which two paragraphs are near-duplicates; open"
    )
    shingle: int = Field(3, gt=0, description="n-gram size: words, or characters in CJK text; open")
    minimum_shingles: int = Field(8, gt=0, description="shorter paragraphs are not compared; open")


class RewardSection(Section):
    """Components and how they become one advantage."""

    length: LengthReward = LengthReward()
    format: FormatReward = FormatReward()
    functions: tuple[str, ...] = Field((), description="extra components: package.module:function")
    combine: Literal["advantages", "rewards"] = Field(
        "advantages",
        description="advantages: normalise each component in its group, then average (paper, B); rewards: average first",
    )
    normalizer: Literal["zscore", "range", "none"] = Field(
        "zscore", description="zscore: (r − mean)/std (B); range: scaled to [−1, 1] in the group (C); none: r − mean"
    )
    shuffle: bool = Field(
        False, description="control experiment: permute scores among all rollouts of a step; nothing should be learned"
    )


class GrpoSection(Section):
    """The loss. Equation numbers: docs/recipe.md."""

    group_size: int = Field(32, gt=1, description="G; paper: 32 (C)")
    clip_low: float = Field(0.2, ge=0, description="ratio ≥ 1 − clip_low; paper: 0.2 (C)")
    clip_high: float = Field(0.2, ge=0, description="ratio ≤ 1 + clip_high; paper: 0.2 (C)")
    dual_clip: float | None = Field(None, gt=1, description="bound on the loss of negative advantages; null = off")
    kl_coefficient: float = Field(0.0, ge=0, description="0 needs no reference model; paper: 0 (A)")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="k1 only with kl_placement: reward")
    kl_importance: bool = Field(
        True, description="weight the loss's KL by policy/behaviour: the reverse KL's gradient, also off policy; open"
    )
    kl_placement: Literal["loss", "reward"] = Field("loss", description="reward: subtract from the advantage, as k1")
    aggregation: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="token: mean over all tokens; sequence: mean of sequence means; constant: sum / constant_length; open",
    )
    constant_length: int = Field(14_000, gt=0, description="divisor per sequence of aggregation: constant, in tokens")
    ratio: Literal["token", "sequence"] = Field(
        "token", description="sequence: geometric-mean ratio of the sequence (GSPO); open"
    )
    truncated: Literal["mask", "penalty", "keep"] = Field(
        "mask",
        description="rollouts cut at the token limit: out of the loss and the group statistics, −truncation_penalty, or as they are; open",
    )
    truncation_penalty: float = Field(
        0.5, ge=0, description="subtracted from every component of a truncated rollout (truncated: penalty)"
    )
    std_floor: float = Field(1e-6, gt=0, description="added to the group's standard deviation; open")
    zero_variance: Literal["keep", "drop"] = Field(
        "drop", description="groups whose advantages are all 0: keep in the denominator or drop; open"
    )
    entropy_coefficient: float = Field(0.0, description="bonus on the policy's entropy")
    mismatch: Literal["none", "token", "sequence"] = Field(
        "token", description="importance weight trainer/engine: per token or the sequence's geometric mean"
    )
    mismatch_mode: Literal["truncate", "mask"] = Field(
        "truncate", description="truncate the weight at mismatch_cap, or mask tokens beyond it"
    )
    mismatch_cap: float = Field(2.0, gt=1, description="C; mask keeps weights in [1/C, C]")

    def is_token_level(self, *, old_is_policy: bool) -> bool:
        """Whether a token's loss depends on that token alone, so that its gradient can be taken in the forward pass.

        A sequence's ratio does not, except where old is the policy itself: then it is 1.
        """
        return self.mismatch != "sequence" and (self.ratio == "token" or old_is_policy)


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


class KernelsSection(Section):
    """Which implementation of our ops runs."""

    backend: Literal["auto", "reference", "chunked", "cpp", "triton", "cuda"] = Field(
        "auto",
        description="auto: triton on a GPU, cpp on a CPU, chunked (plain torch) without them; an explicit choice that cannot run raises",
    )
    layers: Literal["auto", "torch", "triton"] = Field(
        "auto",
        description="RMSNorm, rotary embedding and SwiGLU of layers without Transformer Engine; auto: triton on a GPU, else torch",
    )
    workspace_mib: int = Field(256, gt=0, description="bound of the log-prob op's logits workspace, MiB")
    cache_mib: int = Field(
        256, ge=0, description="bound of the logits kept for the backward pass of losses over whole sequences, MiB"
    )
    cross_check_interval: int = Field(
        0, ge=0, description="every how many steps a few rows are compared with the reference; 0 = never"
    )


class WeightSyncSection(Section):
    """Trainer to engines."""

    transport: Literal["disk"] = Field("disk", description="disk: safetensors under the run folder")
    verify_interval: int = Field(
        20, ge=0, description="compare checksums after the first push and every N; 0 = first only"
    )


class JudgeSection(Section):
    """A language model that judges texts, behind any OpenAI-compatible server."""

    url: str | None = Field(None, description="server, e.g. http://127.0.0.1:8000/v1")
    model: str = Field("", description="name that the server knows the model by")
    api: Literal["chat", "completions"] = Field(
        "chat", description="route; completions: for servers without chat, like the embedded engine"
    )
    api_key_env: str = Field("LWZ_JUDGE_KEY", description="environment variable that holds the server's key")
    temperature: float = Field(0.0, ge=0, description="an evaluation command sets its benchmark's own unless given")
    top_p: float = Field(1.0, gt=0, le=1.0)
    max_tokens: int = Field(2048, gt=0, description="tokens of one reply")
    body: dict[str, Any] = Field(
        {}, description="more keys of the request, as they are; null leaves one out, e.g. body.temperature=null"
    )
    concurrency: int = Field(16, gt=0, description="questions under way at once")
    timeout: float = Field(300.0, gt=0, description="seconds for one reply")
    retries: int = Field(5, ge=0, description="attempts per question after failures in a row")
    backoff: float = Field(0.5, gt=0, description="seconds before the first retry; doubles, at most 60 times this")
    malformed_retries: int = Field(
        2, ge=0, description="times that a reply without a readable verdict is asked for again"
    )
    max_requests: int = Field(0, ge=0, description="requests per process; 0 = no bound")
    max_total_tokens: int = Field(0, ge=0, description="prompt and reply tokens per process; 0 = no bound")
    cache: str | None = Field(
        None, description="SQLite file of replies; null: in memory (evaluation: under its output folder)"
    )


class EvaluationSection(Section):
    """RL: held-out prompts, scored with the same rewards. Pretraining and SFT: the loss on data.validation."""

    interval: int = Field(
        0, ge=0, description="steps between evaluations; 0 = before the first and after the last step only"
    )
    samples: int = Field(1, gt=0, description="rollouts per held-out prompt")
    sequences: int = Field(256, gt=0, description="pretraining, SFT: sequences per validation source, from its start")


class LoggingSection(Section):
    """What is shown and written besides metrics.jsonl."""

    tensorboard: bool = True
    rollouts_in_report: int = Field(2, ge=0, description="rollouts to read in report.html")
