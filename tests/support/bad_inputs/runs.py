"""Run folders: settings that changed, records, journals, checkpoints; and the commands that read runs."""

from __future__ import annotations

from tests.support.bad_inputs.place import Bad
from tests.support.bad_inputs.spoils import append, both, cut, flip, folder, mode, put, remove

_GO_ON = "train_grpo {}/config.yaml run.dir={}/begun"
_REPLAY = "lwz replay {}/run --step 2"
_REPORT = "lwz report {}/run"
_RESCORE = "lwz rescore {}/run"
FOLDERS = (
    Bad("train_grpo {}/config.yaml run.dir=/proc/run", "run.dir", "'/proc/run'", "choose another one"),
    Bad("train_grpo {}/config.yaml run.dir={}/prompts.jsonl", "run.dir", "'{}/prompts.jsonl'", "choose another one"),
    Bad("train_grpo {}/config.yaml run.dir={}/prompts.jsonl/run", "run.dir", "prompts.jsonl/run", "choose another one"),
    Bad(
        "train_grpo {}/config.yaml run.dir={}/out run.resume=must",
        "run.resume",
        "no checkpoint under {}/out",
        "start with resume: auto",
    ),
    Bad(
        "train_grpo {}/config.yaml run.dir={}/begun run.resume=never", "run.resume", "'never'", "choose another run.dir"
    ),
    Bad(
        "train_grpo {}/config.yaml run.dir={}/readonly",
        "'{}/readonly'",
        "Permission denied",
        "choose another one",
        both(folder("readonly"), mode("readonly", 0o555)),
    ),
)
RECORDS = (
    Bad(_GO_ON, "{}/begun/checkpoints/step_00000002", "without optimizer state", "name it in checkpoint.load instead"),
    Bad(
        _GO_ON,
        "{}/begun/metrics.jsonl, line 2",
        "not valid JSON",
        "correct it",
        put("begun/metrics.jsonl", b'{"step": 1}\nxx\n{"step": 2}\n'),
    ),
    Bad(
        _GO_ON,
        "{}/begun/checkpoints",
        "'mine' is no checkpoint's name",
        "write the name of a whole one",
        put("begun/checkpoints/latest", b"mine"),
    ),
    Bad(
        _GO_ON,
        "{}/begun/checkpoints",
        "__0_0.distcp",
        "restore one from a copy",
        flip("begun/checkpoints/step_00000002/__0_0.distcp", -9),
    ),
    Bad(
        _GO_ON,
        "{}/begun/checkpoints/best",
        "names no checkpoint",
        "remove it",
        put("begun/checkpoints/best", b"nothing"),
    ),
    Bad(
        _GO_ON,
        "run.seed",
        "= 1234: the run in {}/begun keeps 5",
        "set it back",
        put("begun/config.yaml", b"run: {seed: 5}"),
    ),
    Bad(_REPORT.replace("/run", "/gone"), "{}/gone/config.yaml", "No such file", "check the path"),
    Bad(_REPORT.replace("/run", "/hf"), "{}/hf/config.yaml", "No such file", "check the path"),
    Bad(
        _REPORT,
        "{}/run/metrics.jsonl, line 5",
        "not valid JSON",
        "correct it",
        append("run/metrics.jsonl", b"xx\n{}\n"),
    ),
    Bad(
        _REPORT,
        "{}/run/metrics.jsonl, line 1",
        "not a row of metrics",
        "a whole number under 'step'",
        put("run/metrics.jsonl", b'{"loss": 1}\n'),
    ),
    Bad(_REPORT, "{}/run/config.yaml, line 2", "not valid YAML", "correct it", put("run/config.yaml", b"run: [")),
    Bad(
        _REPORT,
        "{}/run/evaluation.jsonl, line 1",
        "not valid JSON",
        "correct it",
        put("run/evaluation.jsonl", b'xx\n{"step": 1}\n'),
    ),
    Bad(
        "lwz evaluate text {}/run --output {}/out --step 99",
        "{}/run/journal.sqlite",
        "no step 99",
        "there are training steps at 1, 2, 3, 4",
    ),
)
JOURNALS = (
    Bad(_REPLAY.replace("/run", "/hf"), "{}/hf", "holds no journal.sqlite", "name the folder of a GRPO run"),
    Bad(
        _RESCORE,
        "{}/run/journal.sqlite",
        "file is not a database",
        "restore the file from a copy",
        put("run/journal.sqlite", b"no journal at all" * 99),
    ),
    Bad(
        _RESCORE, "{}/run/journal.sqlite", "malformed", "restore the file from a copy", cut("run/journal.sqlite", 5000)
    ),
    Bad(
        "lwz evaluate text {}/run --output {}/out",
        "{}/run/journal.sqlite",
        "malformed",
        "restore the file from a copy",
        cut("run/journal.sqlite", 5000),
    ),
    Bad(_REPLAY, "config key 'model'", "[]", "give exactly one of model.hf"),
    Bad(_REPLAY.replace("2", "0"), "--step", "0", "must be at least 1"),
    Bad(_REPLAY + " --output {}/run/x", "--output", "{}/run/x", "name another folder"),
    Bad(_REPLAY + " --output {}/config.yaml", "--output {}/config.yaml", "is a file", "name a folder"),
    Bad(_REPLAY + " training.stepz=1", "training.stepz", "1", "did you mean 'steps'?"),
    Bad(
        _RESCORE,
        "{}/run/journal.sqlite",
        "no journal there",
        "name the folder of a GRPO run",
        remove("run/journal.sqlite"),
    ),
    Bad(
        _RESCORE,
        "{}/run/journal.sqlite",
        "not a rollout journal",
        "restore the file from a copy",
        put("run/journal.sqlite", b""),
    ),
    Bad(
        _RESCORE,
        "{}/run/journal.sqlite",
        "no journal there",
        "name the folder of a GRPO run",
        both(remove("run/journal.sqlite"), folder("run/journal.sqlite")),
    ),
    Bad(_RESCORE + " training.steps=3", "training.steps", "'3'", "leave it out"),
    Bad(_RESCORE + " --steps x", "--steps", "'x'", "write A-B"),
    Bad(_RESCORE + " --steps 90-99", "{}/run/journal.sqlite", "90 to 99", "choose other --steps"),
    Bad(_RESCORE + " --limit 0", "--limit", "0", "must be at least 1"),
    Bad(_RESCORE + " --json {}/gone/x.json", "--json {}/gone/x.json", "there is no folder", "make it"),
    Bad(_RESCORE + " --csv {}/hf", "--csv {}/hf", "is a folder", "name a file"),
    Bad(_RESCORE + " reward.functions=[no.such:function]", "reward.functions", "'no.such:function'", "PYTHONPATH"),
)
TABLE = (*FOLDERS, *RECORDS, *JOURNALS)
