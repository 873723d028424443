"""Every example loads, validates, and fits the model and the ranks that its run.sh starts."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from megatron_lwz.config import load_config
from megatron_lwz.config.tree import Config
from megatron_lwz.data.corpora.spec import read_spec
from megatron_lwz.data.prompts import read_prompts
from megatron_lwz.data.start_check import check_longest_rollout, check_longest_text
from megatron_lwz.data.templates import detect_language
from megatron_lwz.data.text.length_request import find_length_request
from megatron_lwz.launch.description import describe
from megatron_lwz.rollout.vllm_guard import RequireToken
from megatron_lwz.training.pretrain import check_pretrain
from megatron_lwz.training.sft import check_sft

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PRESETS = {
    "qwen2.5_0.5b_cpu": "qwen2.5-0.5b",
    "qwen2.5_0.5b_1gpu": "qwen2.5-0.5b",
    "qwen2.5_7b_8xh100": "qwen2.5-7b",
    "qwen3_4b_4xa800": "qwen3-4b",
    "longwriter_zero_32b_64xh100": "qwen2.5-32b",
}
CONFIGS = sorted(EXAMPLES.glob("*/config.yaml"))
CHAIN = EXAMPLES / "longwriter_zero_32b_64xh100"
GRPO = ("1_base_nothink", "2_base_think", "5_longwriter_zero")
TRAINED = (*GRPO, "4_pretrain", "sft")


def world_size(script: str) -> int:
    """Ranks of the training stage as run.sh declares them, or the config whose `launch` it starts."""
    if started := re.search(r"lwz launch torchrun (\S+)", script):
        section = load_config(EXAMPLES.parent / started.group(1)).launch
        return section.nodes * section.ranks
    declared = {key: int(value) for key, value in re.findall(r"^TRAINER_(NODES|GPUS)=(\d+)$", script, re.MULTILINE)}
    if declared:
        return declared["NODES"] * declared["GPUS"]
    started = re.search(r"--nproc-per-node (\d+) -m megatron_lwz\.cli\.train_grpo", script)
    return int(started.group(1)) if started else 1


def all_scripts(folder: Path) -> str:
    """run.sh, or that of the chain's main step with what it sources."""
    scripts = ("cluster.sh", "5_longwriter_zero.sh") if folder == CHAIN else ("run.sh",)
    return "\n".join((folder / name).read_text() for name in scripts)


def with_known_architecture(path: Path) -> Config:
    """The example's config, its Hugging Face folder replaced by the numbers of the same model."""
    name = path.parent.name
    if name in PRESETS:
        return load_config(path, ["model.hf=null", f"model.preset={PRESETS[name]}"])
    config = load_config(path)
    model = load_config(path.parent / "model.yaml").model
    return config.model_copy(update={"model": model})


def test_all_promised_examples_are_there():
    assert {path.parent.name for path in CONFIGS} == {*PRESETS, "tiny_cpu"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_the_config_fits_the_model_and_the_ranks_of_its_run_script(path):
    ranks = world_size(all_scripts(path.parent))
    config = with_known_architecture(path)
    config.check_layout(ranks)
    config.check_grpo()
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    assert longest <= config.training.tokens_per_micro_batch, "the longest rollout must fit a micro-batch"
    check_longest_rollout(config)


@pytest.mark.parametrize(
    "path",
    [*(EXAMPLES / name / "config.yaml" for name in PRESETS), *(CHAIN / f"{name}.yaml" for name in TRAINED)],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_an_example_names_only_what_differs_from_the_defaults(path):
    plain = yaml.safe_load(path.read_text())
    defaults = Config().model_dump(mode="json")
    for section, values in plain.items():
        if isinstance(values, dict):
            repeated = [key for key, value in values.items() if defaults[section].get(key) == value]
            assert repeated == [], f"{section}: {repeated} are the defaults"


def test_the_prompts_for_a_real_policy_on_a_cpu_ask_for_short_texts_in_two_languages():
    folder = EXAMPLES / "qwen2.5_0.5b_cpu"
    train, held_out = read_prompts(folder / "prompts.jsonl"), read_prompts(folder / "held_out.jsonl")
    assert (len(train), len(held_out)) == (64, 24)
    for prompts in (train, held_out):
        assert sum(detect_language(prompt.text) == "chinese" for prompt in prompts) * 2 == len(prompts)
        for prompt in prompts:
            assert 60 <= prompt.length.lower < prompt.length.upper <= 200
            asked = find_length_request(prompt.text)
            assert (asked.lower, asked.upper) == (prompt.length.lower, prompt.length.upper), prompt.text
    subjects = [re.sub(r"\d+", "", prompt.text) for prompt in (*train, *held_out)]
    assert len(set(subjects)) == 88


@pytest.mark.parametrize("name", TRAINED)
def test_every_step_of_the_chain_loads_and_fits_its_ranks(name):
    script = (CHAIN / "cluster.sh").read_text() + (CHAIN / f"{name}.sh").read_text()
    config = load_config(CHAIN / f"{name}.yaml", ["model.hf=null", "model.preset=qwen2.5-32b"])
    config.check_layout(world_size(script))
    assert config.launch.nodes * config.launch.ranks == world_size(script), "lwz launch starts as many"
    {"4_pretrain": check_pretrain, "sft": check_sft}.get(name, Config.check_grpo)(config)
    (check_longest_rollout if name in GRPO else check_longest_text)(config)
    stage = {"4_pretrain": "pretrain", "sft": "train_sft"}.get(name, "train_grpo")
    assert f'train {stage} "$STEPS/{name}.yaml"' in script and config.launch.stage == stage


def test_the_chain_is_the_papers():
    """Each step begins where the one before it in the paper ended, and its sizes are the paper's."""
    steps = {name: load_config(CHAIN / f"{name}.yaml") for name in TRAINED}
    nothink, think, final = (steps[name] for name in GRPO)
    assert (
        nothink.data.prompt_template == "direct" and think.data.prompt_template == final.data.prompt_template == "think"
    )
    base = nothink.model.hf
    assert base == think.model.hf == steps["4_pretrain"].model.hf == steps["sft"].model.hf
    assert final.model.hf == steps["4_pretrain"].run.dir + "/hf"
    spec = read_spec(CHAIN / "3_corpus.yaml")
    (thoughts,) = [source for source in spec.sources if source.format == "journal"]
    root = EXAMPLES.parent
    assert Path(thoughts.paths[0]).resolve() == (root / think.run.dir).resolve() and thoughts.weight == 0.01
    assert Path(spec.tokenizer).resolve() == (root / base).resolve()
    (corpus,) = steps["4_pretrain"].data.corpus
    assert f"--out {Path(corpus).parent} " in (CHAIN / "3_distil.sh").read_text()
    training = steps["4_pretrain"].training
    assert (training.sequences_per_step, training.sequence_length) == (512, 32768)
    assert training.steps * 512 * 32768 == pytest.approx(30e9, rel=0.01)
    for config in (nothink, think, final):
        assert (config.training.steps, config.grpo.group_size, config.rollout.max_new_tokens) == (150, 32, 14_000)
    sft = steps["sft"]
    assert (sft.optimizer.lr, sft.sft.epochs, sft.optimizer.weight_decay, sft.optimizer.warmup_fraction) == (
        1e-5, 4, 0.1, 0.03,
    )  # fmt: skip
    order = re.search(r"^steps=\((.*)\)$", (CHAIN / "run.sh").read_text(), re.MULTILINE).group(1).split()
    assert order == sorted(order) and all((CHAIN / f"{step}.sh").is_file() for step in order)


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*/*.sh")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_parse_and_stop_at_the_first_failure(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert "set -euo pipefail" in script.read_text() or script.name == "cluster.sh", "its steps set it"


@pytest.mark.parametrize("name", ["qwen2.5_7b_8xh100", "qwen3_4b_4xa800", "longwriter_zero_32b_64xh100"])
def test_engines_of_the_launch_fit_the_run(name):
    config = load_config(EXAMPLES / name)
    launch = describe(config, [str(EXAMPLES / name)], "slurm", EXAMPLES.parent)
    assert launch.engine_length() == 16384 and len(config.rollout.urls) in (1, config.launch.engines.per_node)


def test_vllm_is_started_as_the_client_needs_it():
    """By the script of the chain; tests/unit/launch looks at what `lwz launch` starts."""
    script = all_scripts(CHAIN)
    config = load_config(CHAIN)
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    assert int(re.search(r"--max-model-len (\d+)", script).group(1)) >= longest
    assert int(re.search(r"--max-num-seqs (\d+)", script).group(1)) == config.rollout.concurrency
    assert "PYTHONPATH=$PWD" in script and f"--middleware {RequireToken.__module__}.RequireToken" in script
    for needed in ("VLLM_SERVER_DEV_MODE=1", "VLLM_API_KEY=$LWZ_ENGINE_TOKEN", "--served-model-name policy"):
        assert needed in script
    for needed in ("--logprobs-mode processed_logprobs", "--generation-config vllm", "--enable-prefix-caching"):
        assert needed in script
    assert config.rollout.engine == "vllm" and config.rollout.top_p == 1.0


def test_the_engines_that_slurm_gives_reach_the_config():
    urls = "[http://node-5:8000,http://node-5.cluster:8001]"  # as cluster.sh writes them
    config = load_config(EXAMPLES / "longwriter_zero_32b_64xh100", [f"rollout.urls={urls}"])
    assert config.rollout.urls == ("http://node-5:8000", "http://node-5.cluster:8001")
