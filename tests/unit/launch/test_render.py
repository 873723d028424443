"""What is rendered: scripts that shellcheck passes, directives, manifests that fit Kubernetes' schemas, and what is refused."""

import json
import re

import kubernetes_validate
import pytest
import yaml

from megatron_lwz.errors import ConfigError
from megatron_lwz.launch import kubernetes, skypilot, slurm
from megatron_lwz.launch.targets import TARGETS
from tests.unit.launch.descriptions import HOSTILE, config, launch, shellcheck, vllm

SCHEMAS = "1.34"
SECRETS = ["LWZ_ENGINE_TOKEN", "JUDGE_KEY"]
EVERYTHING = {
    "nodes": 4, "time": "23h", "max_restarts": 2, "partition": "gpu", "account": "a-1", "secrets": SECRETS,
    "environment": {"NCCL_SOCKET_IFNAME": "eth0", "TEXT": "".join(HOSTILE)}, "setup": "my setup.sh", "mounts": ["/my data"],
}  # fmt: skip


def script_of(target):
    text = TARGETS[target].render(launch(vllm(EVERYTHING), target))
    if target == "kubernetes":
        return next(yaml.safe_load_all(text))["data"]["node.sh"]
    return yaml.safe_load(text)["run"] if target == "skypilot" else text


@pytest.mark.parametrize("target", TARGETS)
def test_scripts_pass_shellcheck_and_say_what_they_are(target):
    text = script_of(target)
    assert shellcheck(text) == ""
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text and "Written by lwz launch" in text


def directives(text):
    return re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)


def test_the_directives_of_one_job():
    assert directives(slurm.render(launch(vllm(dict(EVERYTHING)), "slurm"))) == [
        "--job-name=try", "--nodes=5", "--ntasks-per-node=1", "--gpus-per-node=8", "--time=0-23:00:00", "--signal=USR1@1800",
        "--partition=gpu", "--account=a-1", "--exclusive", "--requeue", "--open-mode=append",
    ]  # fmt: skip


def test_a_heterogeneous_job_has_two_parts():
    engines = {"slurm_options": ["--partition=l40s", "--constraint=big"]}
    found = directives(slurm.render(launch(vllm({**EVERYTHING, "engines": engines}), "slurm")))
    where = found.index("hetjob")
    assert "--nodes=4" in found[:where] and "--partition=gpu" in found[:where] and "--requeue" in found[:where]
    assert found[where + 1 :] == [
        "--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=8", "--time=0-23:00:00", "--signal=USR1@1800", "--account=a-1",
        "--partition=l40s", "--constraint=big",
    ]  # fmt: skip


@pytest.mark.parametrize("given", [vllm(dict(EVERYTHING)), config({"gpus_per_node": 0, "ranks_per_node": 2})])
def test_manifests_fit_the_schemas_of_kubernetes(given):
    made = list(yaml.safe_load_all(kubernetes.render(launch(given, "kubernetes"))))
    assert [manifest["kind"] for manifest in made][:3] == ["ConfigMap", "Service", "Job"]
    for manifest in made:
        kubernetes_validate.validate(manifest, SCHEMAS, strict=True)
    job = made[2]
    job["spec"]["completionModes"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError):  # the schema would see a key that is none
        kubernetes_validate.validate(job, SCHEMAS, strict=True)


def test_a_pod_has_what_its_script_relies_on():
    made = {
        (m["kind"], m["metadata"]["name"]): m
        for m in kubernetes.manifests(launch(vllm(dict(EVERYTHING)), "kubernetes"))
    }
    job, engines = made["Job", "try"]["spec"], made["StatefulSet", "try-engines"]["spec"]
    assert (job["completions"], job["parallelism"], engines["replicas"]) == (4, 4, 1)
    for spec, service in ((job["template"], "try"), (engines["template"], "try-engines")):
        assert spec["spec"]["subdomain"] == service
        assert made["Service", service]["spec"]["selector"] == spec["metadata"]["labels"]
        (container,) = spec["spec"]["containers"]
        assert container["command"] == ["bash", "/etc/lwz-launch/node.sh"]
        env = {entry["name"]: entry for entry in container["env"]}
        assert env["JUDGE_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "lwz", "key": "JUDGE_KEY"}
        assert env["TEXT"]["value"].replace("$$", "$") == "".join(HOSTILE)
    text = made["ConfigMap", "try"]["data"]["node.sh"]
    assert "hosts=(try-0.try try-1.try try-2.try try-3.try try-engines-0.try-engines)" in text


def test_the_task_of_skypilot():
    task = yaml.safe_load(skypilot.render(launch(vllm(dict(EVERYTHING)), "skypilot")))
    assert task["num_nodes"] == 5 and task["resources"]["accelerators"] == "H100:8"
    assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 2, "recover_on_exit_codes": [75]}
    assert task["resources"]["image_id"] == "docker:registry/lwz:1" and task["volumes"] == {"/shared": "shared"}
    assert task["secrets"] == {"LWZ_ENGINE_TOKEN": None, "JUDGE_KEY": None}
    start = TARGETS["skypilot"].start(launch(vllm(dict(EVERYTHING)), "skypilot"))
    assert start == ["sky", "jobs", "launch", "--secret=LWZ_ENGINE_TOKEN", "--secret=JUDGE_KEY"]


def test_vllm_is_started_as_the_client_needs_it():
    line = launch(
        vllm({"engines": {"options": ["--enforce-eager"]}}, rollout={"concurrency": 64}), "slurm"
    ).engine_command()
    text = " ".join(line)
    for needed in (
        ".venv-vllm/bin/vllm serve models/Qwen2.5-7B", "--served-model-name policy", "--tensor-parallel-size 4",
        "--max-model-len 16048", "--max-num-seqs 64", "--logprobs-mode processed_logprobs", "--generation-config vllm",
        "--middleware megatron_lwz.rollout.vllm_guard.RequireToken", "--enforce-eager",
    ):  # fmt: skip
        assert needed in text, needed
    nccl = launch(vllm({}, weight_sync={"transport": "nccl"}), "slurm").engine_command()
    assert json.loads(nccl[nccl.index("--weight-transfer-config") + 1]) == {"backend": "nccl"}


REFUSED = {
    "launch.ranks_per_node": config({"gpus_per_node": 0}),
    "launch.ranks_per_node' = 9": config({"ranks_per_node": 9}),
    "launch.signal_before": config({"time": "30m"}),
    "launch.engines.per_node": config({"engines": {"nodes": 1}}),
    "launch.engines.per_node' = 1": config({"stage": "pretrain", "engines": {"per_node": 1, "nodes": 1}}),
    "launch.engines.nodes": vllm({"nodes": 2, "engines": {"nodes": 0}}),
    "launch.engines.per_node' = 3": vllm({"engines": {"per_node": 3}}),
    "launch.engines.gpus": config({"engines": {"per_node": 1, "nodes": 1, "gpus": 2}}),
    "launch.engines.gpus' = 4": vllm({"gpus_per_node": 0, "ranks_per_node": 1}),
    "launch.engines.max_model_len": vllm({"engines": {"max_model_len": 16000}}),
    "launch.engines.model": vllm({}, model={"hf": None, "preset": "qwen2.5-7b"}),
    "rollout.engines_file": vllm({}, rollout={"engines_file": "x"}),
    "rollout.colocated": vllm({}, rollout={"colocated": True}),
    "launch.secrets": vllm({"secrets": []}),
    "launch.secrets' = ''": config({"secrets": [""]}),
    "launch.port": vllm({"ranks_per_node": 4, "port": 8000, "engines": {"nodes": 0, "per_node": 1}}),
    "launch.secrets_file": config({"secrets_file": "x"}),
    "rollout.urls": config({}, rollout={"engine": "vllm"}),
}  # fmt: skip


@pytest.mark.parametrize(("key", "given"), REFUSED.items(), ids=REFUSED)
def test_a_description_that_cannot_be_is_one_line_that_names_its_key(key, given):
    with pytest.raises(ConfigError, match=re.escape(key)):
        launch(given, "skypilot")


def test_containers_need_a_folder_and_kubernetes_an_image():
    for target in ("kubernetes", "skypilot"):
        with pytest.raises(ConfigError, match=r"launch\.folder"):
            launch(config({"folder": None}), target)
    with pytest.raises(ConfigError, match=r"launch\.image"):
        kubernetes.render(launch(config({"image": None}), "kubernetes"))


def test_no_secret_has_a_place_in_what_is_rendered(monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, "very-secret-value")
    for target, kind in TARGETS.items():
        assert "very-secret-value" not in kind.render(launch(vllm(dict(EVERYTHING)), target))
