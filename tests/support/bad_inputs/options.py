"""Options of the command line, addresses, ports, tokens, and functions of the user."""

from __future__ import annotations

from tests.support.bad_inputs.place import Bad
from tests.support.bad_inputs.spoils import rows

_RUN = "{}/config.yaml run.dir={}/out"
_ENGINE = "lwz serve-engine --model {}/hf --port 0"
_GENERATE = "lwz evaluate generate {}/prompts.jsonl --output {}/out.jsonl"


def _grpo(setting: str, names: str, value: str, remedy: str) -> Bad:
    return Bad(f"train_grpo {_RUN} {setting}", names, value, remedy)


OPTIONS = (
    Bad("lwz trian", "lwz", "'trian'", "serve-engine, serve-reward"),
    Bad("lwz evaluate poetry", "lwz evaluate", "'poetry'", "choose one of generate"),
    Bad(f"train_grpo {_RUN} --frobnicate", "--frobnicate", "unrecognized", "usage: "),
    Bad("lwz launch pbs {}/config.yaml", "TARGET", "'pbs'", "choose from"),
    Bad("lwz launch slurm {}/config.yaml launch.partition=a;b", "launch.partition", "a;b", "must be a name"),
    Bad("lwz launch slurm {}/config.yaml launch.engines.nodes=2", "launch.engines.per_node", "0", "say how many"),
    Bad("lwz launch kubernetes {}/config.yaml", "launch.folder", "None", "name the folder"),
    Bad(f"train_grpo {_RUN} --profile steps=5-3", "--profile", "steps=5-3", "as in steps=3-5"),
    Bad("lwz report", "RUN_DIR", "required", "usage: "),
    Bad("convert_hf", "command", "required", "usage: "),
    Bad("convert_hf transmute", "command", "'transmute'", "choose from"),
    Bad("convert_hf import --hf {}/hf --out {}/out --tensor 0", "--tensor", "0", "must be at least 1"),
    Bad("convert_hf import --hf {}/hf --out {}/out --tensor two", "--tensor", "'two'", "no whole number"),
    Bad("convert_hf import --hf {}/hf --out {}/out --tensor 3", "parallel.tensor", "3", "must divide"),
    Bad("convert_hf export --checkpoint {}/checkpoint --out {}/out --dtype fp8", "--dtype", "'fp8'", "choose from"),
    Bad(
        "score {}/checkpoint --input {}/tokens.jsonl --output {}/o --temperature 0",
        "--temperature",
        "0",
        "must be a finite number above 0",
    ),
    Bad(
        "score {}/checkpoint --input {}/tokens.jsonl --output {}/o --temperature nan", "--temperature", "nan", "finite"
    ),
    Bad("make_preference_pairs --out {}/out", "--documents", "--pairs", "give --documents, --pairs or --from-run"),
    Bad("make_preference_pairs --pairs {}/pairs.jsonl --out {}/out --held-out 1", "--held-out", "1", "below 1"),
    Bad("make_preference_pairs --pairs {}/pairs.jsonl --out {}/out --kinds magic", "--kinds", "'magic'", "choose from"),
    Bad(
        "make_preference_pairs --pairs {}/train.jsonl --out {}",
        "{}/train.jsonl",
        "is one of the inputs",
        "name another output",
        rows("train.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"}),
    ),
    Bad("prepare_prompts --input {}/rows.jsonl --output {}/out.jsonl", "judge.url", "None", "or give --rules-only"),
    Bad(
        "prepare_prompts --input {}/rows.jsonl --output {}/hf --rules-only",
        "--output {}/hf",
        "is a folder",
        "name a file",
    ),
    Bad(
        "prepare_prompts --input {}/rows.jsonl --output {}/rows.jsonl --rules-only",
        "{}/rows.jsonl",
        "is one of the inputs",
        "name another output",
    ),
    Bad(
        "prepare_prompts --input {}/gone --output {}/out.jsonl --rules-only",
        "{}/gone",
        "no such file or folder",
        "check the path",
    ),
    Bad(
        "prepare_prompts --input {}/rows.jsonl --output {}/out.jsonl --rules-only --copy-threshold 2",
        "--copy-threshold",
        "2",
        "at most 1",
    ),
    Bad(_GENERATE, "--url", "--model", "one engine writes the responses"),
    Bad(_GENERATE + " --url http://127.0.0.1:9", "--served-model", "missing", "the name that the server knows"),
    Bad(_GENERATE + " --model {}/gone", "{}/gone", "no such folder", "name a Hugging Face folder"),
    Bad(_GENERATE + " --model {}/hf --max-tokens 9999", "--max-tokens", "9999", "lower it"),
    Bad(_GENERATE + " --model {}/hf --preset best", "--preset", "'best'", "choose from"),
    Bad(_GENERATE + " --model {}/hf --temperature -1", "--temperature", "-1", "at least 0"),
    Bad(
        "lwz evaluate text {}/responses.jsonl --output {}/prompts.jsonl",
        "--output {}/prompts.jsonl",
        "File exists",
        "is a file, name a folder",
    ),
    Bad("lwz evaluate compare {}/gone --output {}/out", "{}/gone", "no evaluation here", "expected one of"),
    Bad("lwz evaluate compare {}/hf {}/hf --output {}/out", "{}/hf", "no evaluation here", "expected one of"),
    Bad(
        "lwz evaluate arena-write --prompts {}/prompts.jsonl --responses {}/responses.jsonl --output {}/out",
        "{}/responses.jsonl",
        "'p5'",
        "are these its responses?",
    ),
    Bad(
        "lwz evaluate writing-bench --benchmark {}/gone --responses {}/responses.jsonl --output {}/out",
        "{}/gone",
        "no benchmark_all.jsonl",
        "name the folder of WritingBench",
    ),
    Bad(
        "lwz evaluate curve {}/responses.jsonl --output {}/out",
        "{}/responses.jsonl",
        "none of its 1 texts has 25 words",
        "ask for other parts",
    ),
    Bad(
        "lwz evaluate curve {}/run --output {}/out --longform {}/hf", "{}/hf", "no longform", "name a copy of EQ-bench"
    ),
    Bad(
        "lwz evaluate hello-bench --benchmark {}/hf --responses {}/responses.jsonl --output {}/out",
        "{}/hf",
        "no open_ended_qa.jsonl",
        "name the folder of HelloBench",
    ),
    Bad(
        "lwz evaluate longgen-bench --dataset {}/prompts.jsonl --responses {}/responses.jsonl --output {}/out",
        "{}/prompts.jsonl, line 1",
        "not a prompt of LongGenBench",
        "checks_once",
    ),
    Bad(
        "lwz evaluate constory --evaluation {}/pairs.jsonl --output {}/out",
        "{}/pairs.jsonl, line 2",
        "no column 'id'",
        "there are",
    ),
)
ADDRESSES = (
    _grpo("rollout.urls=[127.0.0.1:8000]", "rollout.urls.0", "'127.0.0.1:8000'", "write http://host:port"),
    _grpo(
        "rollout.urls=http://a:b@127.0.0.1:9",
        "rollout.urls.0",
        "holds a user or password",
        "give its name in api_key_env",
    ),
    _grpo("judge.url=http://h/v1?key=abc", "judge.url", "= '***'", "give its name in api_key_env"),
    _grpo("judge.api_key_env=sk-1234567890abcdef1234", "judge.api_key_env", "= '***'", "export the key as a variable"),
    _grpo("judge.api_key_env=hf_1234567890abcdef1234", "judge.api_key_env", "= '***'", "export the key as a variable"),
    _grpo("judge.body.api_key=abc", "judge.body", "'api_key' would be kept", "give its name in api_key_env"),
    Bad(
        _GENERATE + " --url http://h --served-model m --api-key-env sk-abc",
        "--api-key-env",
        "is no name",
        "export the key",
    ),
    _grpo("judge.url=ftp://127.0.0.1", "judge.url", "'ftp://127.0.0.1'", "write http://host:port"),
    _grpo(
        "rollout.urls=http://127.0.0.1:9",
        "engine http://127.0.0.1:9: ",
        "no connection",
        "is it running, and is its address right?",
    ),
    _grpo(
        "rollout.urls=http://127.0.0.1:99999", "rollout.urls.0", "'http://127.0.0.1:99999'", "write http://host:port"
    ),
    _grpo("rollout.engines_file={}/gone", "{}/gone", "No such file", "check the path"),
    _grpo(
        "evaluation.concurrent=true rollout.urls=http://127.0.0.1:9",
        "evaluation.urls",
        "[]",
        "or evaluation.concurrent: false",
    ),
    Bad(_ENGINE.replace("0", "99999"), "--port", "99999", "must be at most 65535"),
    Bad(_ENGINE.replace("0", "-1"), "--port", "-1", "must be at least 0"),
    Bad(_ENGINE.replace("0", "http"), "--port", "'http'", "no whole number"),
    Bad(_ENGINE + " --host 0.0.0.0", "--host", "0.0.0.0", "set LWZ_ENGINE_TOKEN, or listen on 127.0.0.1"),
    Bad(
        "LWZ_ENGINE_TOKEN=t " + _ENGINE + " --host no.such.host.invalid",
        "no.such.host.invalid:0",
        "cannot listen",
        "choose an address of this machine",
    ),
    Bad(
        "LWZ_ENGINE_TOKEN=t " + _ENGINE + " --host 203.0.113.7",
        "203.0.113.7:0",
        "cannot listen",
        "choose an address of this machine",
    ),
    Bad(
        "lwz serve-reward --model {}/hf --port 0 --host 0.0.0.0",
        "--host",
        "0.0.0.0",
        "set LWZ_REWARD_TOKEN, or listen on 127.0.0.1",
    ),
    Bad(_ENGINE + " --slots 0", "--slots", "0", "must be at least 1"),
    Bad(_ENGINE + " --threads -2", "--threads", "-2", "must be at least 0"),
)
FUNCTIONS = (
    _grpo("reward.functions=[no.such:function]", "reward.functions", "'no.such:function'", "PYTHONPATH"),
    _grpo("reward.functions=[math]", "reward.functions", "'math'", "package.module:function"),
    _grpo("reward.functions=[math:nothing]", "reward.functions", "'math:nothing'", "PYTHONPATH"),
    _grpo("reward.functions=[math:pi]", "reward.functions", "'math:pi'", "name one as package.module:function"),
    _grpo(
        "reward.advantage_function=no.such:function", "reward.advantage_function", "'no.such:function'", "PYTHONPATH"
    ),
    _grpo("grpo.loss_function=no.such:loss", "grpo.loss_function", "'no.such:loss'", "PYTHONPATH"),
    _grpo(
        "grpo.loss_function=tests.support.user_losses:scalar",
        "grpo.loss_function",
        "shape []",
        "return one value per token",
    ),
)
TABLE = (*OPTIONS, *ADDRESSES, *FUNCTIONS)
