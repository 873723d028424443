"""Every example loads, validates, and fits the model and the ranks that its run.sh starts."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from megatron_lwz.config import load_config
from megatron_lwz.config.tree import Config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PRESETS = {
    "qwen2.5_0.5b_1gpu": "qwen2.5-0.5b",
    "qwen2.5_7b_8xh100": "qwen2.5-7b",
    "longwriter_zero_32b_64xh100": "qwen2.5-32b",
}
CONFIGS = sorted(EXAMPLES.glob("*/config.yaml"))


def world_size(script: str) -> int:
    """Ranks of the training stage as run.sh declares them."""
    declared = {key: int(value) for key, value in re.findall(r"^TRAINER_(NODES|GPUS)=(\d+)$", script, re.MULTILINE)}
    if declared:
        return declared["NODES"] * declared["GPUS"]
    return int(re.search(r"--nproc-per-node (\d+) -m megatron_lwz\.cli\.train_grpo", script).group(1))


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
    ranks = world_size((path.parent / "run.sh").read_text())
    config = with_known_architecture(path)
    config.check_layout(ranks)
    config.check_grpo()
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    assert longest <= config.training.tokens_per_micro_batch, "the longest rollout must fit a micro-batch"
    assert longest <= config.architecture().max_position_embeddings


@pytest.mark.parametrize(
    "path",
    [EXAMPLES / name / "config.yaml" for name in PRESETS],
    ids=lambda path: path.parent.name,
)
def test_an_example_names_only_what_differs_from_the_defaults(path):
    plain = yaml.safe_load(path.read_text())
    defaults = Config().model_dump(mode="json")
    for section, values in plain.items():
        if isinstance(values, dict):
            repeated = [key for key, value in values.items() if defaults[section].get(key) == value]
            assert repeated == [], f"{section}: {repeated} are the defaults"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*/run.sh")), ids=lambda path: path.parent.name)
def test_run_scripts_parse_and_stop_at_the_first_failure(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("name", ["qwen2.5_7b_8xh100", "longwriter_zero_32b_64xh100"])
def test_vllm_takes_the_longest_rollout_and_gives_log_probs_at_the_sampling_temperature(name):
    script = (EXAMPLES / name / "run.sh").read_text()
    config = load_config(EXAMPLES / name)
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    assert int(re.search(r"--max-model-len (\d+)", script).group(1)) >= longest
    for needed in ("VLLM_SERVER_DEV_MODE=1", "--served-model-name policy", "--logprobs-mode processed_logprobs"):
        assert needed in script
    assert config.rollout.engine == "vllm" and config.rollout.top_p == 1.0


def test_the_engines_that_slurm_gives_reach_the_config():
    urls = "[http://node-5:8000,http://node-5.cluster:8001]"  # as run.sh writes them
    config = load_config(EXAMPLES / "longwriter_zero_32b_64xh100", [f"rollout.urls={urls}"])
    assert config.rollout.urls == ("http://node-5:8000", "http://node-5.cluster:8001")
