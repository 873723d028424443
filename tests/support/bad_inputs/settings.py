"""Settings: unknown, of another type, out of range, in contradiction, missing; and config files that cannot be read."""

from __future__ import annotations

from pathlib import Path

from tests.support.bad_inputs.place import Bad
from tests.support.bad_inputs.spoils import append, mode, put, remove

_RUN = "{}/config.yaml run.dir={}/out"


def _grpo(setting: str, names: str, value: str, remedy: str) -> Bad:
    return Bad(f"train_grpo {_RUN} {setting}", f"config key '{names}'", value, remedy)


def _file(content: bytes, names: str, value: str, remedy: str) -> Bad:
    return Bad("train_grpo {}/bad.yaml", names, value, remedy, put("bad.yaml", content))


def _loop(place: Path) -> None:
    (place / "bad.yaml").write_text("base: other.yaml\n")
    (place / "other.yaml").write_text("base: bad.yaml\n")


KEYS = (
    _grpo("training.stepz=3", "training.stepz", "= 3", "unknown key, did you mean 'steps'?"),
    _grpo("trainin.steps=3", "trainin", "'steps': 3", "did you mean 'training'?"),
    _grpo("logging.zzzz=1", "logging.zzzz", "= 1", "known here: "),
    _grpo("nonsense", "nonsense", "'nonsense'", "an override reads section.key=value"),
    _grpo("training.=3", "training.", "'training.=3'", "an override reads section.key=value"),
    _grpo("training.steps=[3", "training.steps", "'training.steps=[3'", "cannot be read as section.key=value"),
    _grpo("run.allow_change=run.sed", "run.allow_change", "'run.sed'", "is no key that a run keeps: these are"),
)
TYPES = (
    _grpo("training.steps=many", "training.steps", "'many'", "must be a whole number"),
    _grpo("training.steps=1.5", "training.steps", "1.5", "must be a whole number"),
    _grpo("training.steps=true", "training.steps", "True", "must be a number, not true"),
    _grpo("optimizer.lr=fast", "optimizer.lr", "'fast'", "must be a number"),
    _grpo("rollout.colocated=maybe", "rollout.colocated", "'maybe'", "must be true or false"),
    _grpo("run.name=3", "run.name", "3", "put it in quotes"),
    _grpo("judge.body=3", "judge.body", "3", "must be a section of keys and values"),
    _grpo("rollout.urls=3", "rollout.urls.0", "3", "must be a text"),
    _grpo("grpo.objective=ppo", "grpo.objective", "'ppo'", "must be 'clip' or 'cispo'"),
    _grpo("training.precision=fp8", "training.precision", "'fp8'", "must be 'fp32' or 'bf16'"),
    _grpo("run.must_save_by=soon", "run.must_save_by", "'soon'", "give a duration"),
)
RANGES = (
    _grpo("grpo.clip_low=-1", "grpo.clip_low", "-1", "must be at least 0"),
    _grpo("grpo.group_size=1", "grpo.group_size", "= 1", "must be greater than 1"),
    _grpo("rollout.temperature=0", "rollout.temperature", "= 0", "must be greater than 0"),
    _grpo("rollout.top_p=1.5", "rollout.top_p", "1.5", "must be at most 1"),
    _grpo("optimizer.beta1=1", "optimizer.beta1", "= 1", "must be less than 1"),
    _grpo("optimizer.lr=.inf", "optimizer.lr", "inf", "must be a finite number"),
    _grpo("optimizer.lr=1e39", "optimizer.lr", "1e+39", "fp32 holds numbers up to 3.4e38"),
    _grpo("run.seed=99999999999999999999", "run.seed", "99999999999999999999", "at most 9223372036854775807"),
    _grpo("run.must_save_by=2001-01-01T00:00:00Z", "run.must_save_by", "2001-01-01", "give a later one"),
)
CONTRADICTIONS = (
    _grpo("parallel.tensor=3", "parallel.tensor", "= 3", "must divide the model's 4 attention heads"),
    _grpo("parallel.tensor=2", "parallel", "context = 2", "must divide the 1 ranks"),
    _grpo("parallel.pipeline=3", "parallel.pipeline", "= 3", "must divide the 2 layers"),
    _grpo("model.preset=qwen2.5-7b", "model", "['architecture', 'preset']", "give exactly one of"),
    _grpo("training.tokens_per_micro_batch=80", "training.tokens_per_micro_batch", "80", "must hold the longest rollout"),
    _grpo("rollout.over_sampling=1", "rollout.over_sampling", "1", "at most rollout.max_staleness = 0"),
    _grpo("rollout.max_staleness=1 grpo.mismatch=none", "rollout.max_staleness", "1", "set grpo.mismatch"),
    _grpo("training.updates_per_batch=3", "training.updates_per_batch", "3", "must divide the 8 rollouts"),
    _grpo("training.accumulate_groups=2", "training.accumulate_groups", "2", "must be below training.prompts_per_step"),
    _grpo("rollout.engine=vllm", "rollout.urls", "[]", "needs the URLs of running servers"),
    _grpo("weight_sync.transport=nccl", "weight_sync.transport", "'nccl'", "use disk"),
    _grpo('--dry-run shapes data.curriculum.stages=[{"name":"a","gate":{"metric":"","max_steps":10}},{"name":"b"}]',
          "data.curriculum.stages.0.gate.metric", "= ''", "write success or one of its components, length, format"),
    _grpo("checkpoint.best_metric=eval/reward/length evaluation.interval=3", "evaluation.interval", "3",
          "must be a multiple of checkpoint.interval = 2"),
    _grpo("evaluation.quality=true", "evaluation.quality", "True", "needs judge.url and judge.model"),
    _grpo("grpo.kl_coefficient=0.1 grpo.kl_estimator=k1", "grpo.kl_estimator", "'k1'", "use k2 or k3"),
    Bad(f"train_grpo {_RUN} reward.length.maximum=40", "{}/prompts.jsonl, line 1", "up to 50", "reward.length.maximum must be larger"),
    Bad(f"train_sft {_RUN} data.instructions={{}}/rows.jsonl training.sequence_length=99999", "training.sequence_length",
        "99999", "training.tokens_per_micro_batch"),
)  # fmt: skip
MISSING = (
    _grpo("data.prompts=null", "data.prompts", "None", "name the JSONL file of prompts"),
    _grpo("model.architecture=null", "model", "[]", "give exactly one of"),
    _grpo("model.tokenizer=null", "model.tokenizer", "None", "name the folder that holds tokenizer.json"),
    _grpo("model.preset=qwen9 model.architecture=null", "model.preset", "'qwen9'", "choose one of qwen2.5-"),
    Bad(f"train_sft {_RUN}", "config key 'data.instructions'", "[]", "name the files of instruction rows"),
    Bad(f"train_reward_model {_RUN}", "config key 'reward_model.pairs'", "[]", "name files of preference pairs"),
    Bad(f"train_dpo {_RUN}", "config key 'dpo.pairs'", "[]", "name files of preference pairs"),
    Bad(
        f"train_dpo {_RUN} training.sequence_length=64 dpo.pairs={{}}/nowhere.jsonl",
        "config key 'dpo.pairs'",
        "{}/nowhere.jsonl",
        "check the path",
    ),
    Bad(f"train_dpo {_RUN} dpo.beta=0", "config key 'dpo.beta'", "0", "greater than 0"),
    Bad(
        f"train_dpo {_RUN} dpo.pairs={{}}/rows.jsonl model.head=scalar",
        "config key 'model.head'",
        "'scalar'",
        "trains a policy",
    ),
    Bad(
        f"train_dpo {_RUN} dpo.pairs={{}}/rows.jsonl training.sequence_length=64 lora.rank=2 checkpoint.load={{}}/out",
        "config key 'checkpoint.load'",
        "{}/out",
        "merge this one into it",
    ),
    Bad(f"pretrain {_RUN}", "config key 'data.corpus'", "[]", "name the JSONL files"),
    _grpo("run.must_save_by=slurm", "run.must_save_by", "'slurm'", "give a duration or a date"),
    _grpo("run.dir=", "run.dir", "None", "must be a text, nothing is given"),
    _grpo("reward.functions=[{name:x}]", "reward.functions.0.path", "name:x", "is required here"),
    _grpo("reward.judges=[{kind:rubric}]", "reward.judges.0.kind", "kind:rubric", "is required here"),
)
FILES = (
    Bad("train_grpo {}/nowhere.yaml", "{}/nowhere.yaml", "No such file", "check the path"),
    Bad("train_grpo", "CONFIG", "are required", "usage: "),
    Bad("train_grpo {}", "{}/config.yaml", "No such file", "check the path", remove("config.yaml")),
    _file(b"run:\n  dir: [\n", "{}/bad.yaml, line 3", "not valid YAML", "correct it"),
    _file(b"run:\n\tdir: a\n", "{}/bad.yaml, line 2", "a tab", "indent with spaces"),
    _file(b"- a\n- b\n", "{}/bad.yaml", "not a list", "must hold sections like 'run:'"),
    _file(b"1e5", "{}/bad.yaml", "a single value", "must hold sections like 'run:'"),
    _file(b"run: {name: caf\xe9}\n", "{}/bad.yaml, line 1", "0xe9", "UTF-8"),
    _file(b"run: {seed: 1}\nrun: {seed: 2}\n", "{}/bad.yaml, line 2", "duplicate key run", "correct it"),
    _file(b"base: gone.yaml\n", "{}/gone.yaml", "No such file", "check the path"),
    _file(b"run: {name: '${oc.env:LWZ_NOT_SET}'}\n", "{}/bad.yaml", "LWZ_NOT_SET", "write the value itself"),
    _file(b"run: {name: '${no.key}'}\n", "{}/bad.yaml", "no.key", "write the value itself"),
    _file(b"run: !!python/object:os.system {}\n", "{}/bad.yaml, line 1", "python/object", "correct it"),
    Bad("train_grpo {}/bad.yaml", "{}/other.yaml", "bad.yaml", "the files are each other's base", _loop),
    Bad(
        "train_grpo {}/config.yaml",
        "{}/config.yaml, line 41",
        "duplicate key rollout",
        "correct it",
        append("config.yaml", b"rollout: {}\n"),
    ),
    Bad(
        "train_grpo {}/config.yaml",
        "{}/config.yaml",
        "Permission denied",
        "change its permissions",
        mode("config.yaml", 0),
    ),
)
TABLE = (*KEYS, *TYPES, *RANGES, *CONTRADICTIONS, *MISSING, *FILES)
