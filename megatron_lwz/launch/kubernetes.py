"""Manifests for kubectl: an Indexed Job of trainers, and a StatefulSet of engines, with the script in a ConfigMap.

The engines are a StatefulSet, not a Deployment: new weights go to each of them, so each needs an address that stays.
"""

from __future__ import annotations

from typing import Any

from megatron_lwz.errors import ConfigError
from megatron_lwz.launch.description import Launch
from megatron_lwz.launch.manifest import dump
from megatron_lwz.launch.quoting import array, without_references
from megatron_lwz.launch.script import script

PLACE = "/etc/lwz-launch"
"""Where pods see the script."""
FILE = "node.sh"
_FINISH_SECONDS = 60
"""Between SIGTERM and SIGKILL. A run that gets SIGTERM is over within 30 s (docs/reliability.md)."""


def render(launch: Launch) -> str:
    """Returns the manifests, as one YAML file."""
    return "---\n".join(dump(manifest) for manifest in manifests(launch))


def manifests(launch: Launch) -> list[dict[str, Any]]:
    """Returns the objects. Raises ConfigError without an image."""
    if launch.section.image is None:
        raise ConfigError("launch.image", None, "Kubernetes needs the container image that trains")
    found = [_script(launch), _service(launch, launch.name), _job(launch)]
    if launch.separate:
        found += [_service(launch, _engines(launch)), _stateful_set(launch)]
    return found


def hosts(launch: Launch) -> list[str]:
    """Returns the names of the pods in the cluster, trainers first."""
    name, engines = launch.name, _engines(launch)
    trainers = [f"{name}-{index}.{name}" for index in range(launch.section.nodes)]
    return trainers + [f"{engines}-{index}.{engines}" for index in range(launch.section.engines.nodes)]


def _engines(launch: Launch) -> str:
    return f"{launch.name}-engines"


def _about(launch: Launch, name: str) -> dict[str, Any]:
    about: dict[str, Any] = {"name": name, "labels": _labels(name)}
    if launch.section.kubernetes.namespace is not None:
        about["namespace"] = launch.section.kubernetes.namespace
    return about


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "megatron-lwz", "app.kubernetes.io/instance": name}


def _script(launch: Launch) -> dict[str, Any]:
    text = script(launch, "kubernetes", more=(("hosts", array(hosts(launch))),))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _about(launch, launch.name), "data": {FILE: text}}


def _service(launch: Launch, name: str) -> dict[str, Any]:
    """Without an address of its own: it gives every pod a name, also one that is not ready yet."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": _labels(name)}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _about(launch, name), "spec": spec}


def _job(launch: Launch) -> dict[str, Any]:
    s = launch.section
    rules = [
        {"action": "FailJob", "onExitCodes": {"containerName": "node", "operator": "In", "values": [2]}},
        {"action": "Ignore", "onExitCodes": {"containerName": "node", "operator": "In", "values": [75]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    spec = {
        "completionMode": "Indexed",
        "completions": s.nodes,
        "parallelism": s.nodes,
        "backoffLimit": s.nodes * (s.max_restarts + 1),
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": rules},
        "template": _pod(launch, launch.name, s.image, restart="Never"),
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _about(launch, launch.name), "spec": spec}


def _stateful_set(launch: Launch) -> dict[str, Any]:
    s, name = launch.section, _engines(launch)
    spec = {
        "replicas": s.engines.nodes,
        "serviceName": name,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": _labels(name)},
        "template": _pod(launch, name, s.engines.image or s.image, restart="Always"),
    }
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": _about(launch, name), "spec": spec}


def _pod(launch: Launch, name: str, image: str | None, *, restart: str) -> dict[str, Any]:
    s, k = launch.section, launch.section.kubernetes
    plain = [{"name": key, "value": without_references(value)} for key, value in s.environment.items()]
    secret = [{"name": key, "valueFrom": {"secretKeyRef": {"name": k.secret, "key": key}}} for key in launch.secrets]
    container: dict[str, Any] = {
        "name": "node",
        "image": image,
        "command": ["bash", f"{PLACE}/{FILE}"],
        "env": [*plain, *secret],
        "volumeMounts": [
            {"name": "script", "mountPath": PLACE, "readOnly": True},
            {"name": "shared", "mountPath": k.mount},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }
    if s.gpus_per_node:
        container["resources"] = {"limits": {"nvidia.com/gpu": s.gpus_per_node}}
    spec = {
        "restartPolicy": restart,
        "subdomain": name,
        "terminationGracePeriodSeconds": _FINISH_SECONDS,
        "containers": [container],
        "volumes": [
            {"name": "script", "configMap": {"name": launch.name}},
            {"name": "shared", "persistentVolumeClaim": {"claimName": k.volume_claim}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": k.shared_memory}},
        ],
    }
    return {"metadata": {"labels": _labels(name)}, "spec": spec}
