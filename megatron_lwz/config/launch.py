"""How `lwz launch` starts a stage: nodes, engines, time, and what each scheduler must be told (docs/launch.md)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from megatron_lwz.config.base import CommaList, OneOrList, Paths, Section, UserPath, Variable, looks_secret
from megatron_lwz.config.moment import check_duration

Duration = Annotated[str, AfterValidator(check_duration)]
_OPTION = re.compile(r"--[a-z][a-z-]*(?:=[\w.,:;@%+*\[\]()/=-]+)?", re.ASCII)
_WORD = re.compile(r"\w[\w.,@+-]{0,199}", re.ASCII)
_IMAGE = re.compile(r"[\w][\w.:/@+#-]{0,400}", re.ASCII)
_DNS = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_ACCELERATOR = re.compile(r"[A-Za-z0-9][\w-]{0,60}", re.ASCII)
_NAME_OF_VARIABLE = re.compile(r"[A-Za-z_]\w{0,99}", re.ASCII)


def _option(text: str) -> str:
    if not _OPTION.fullmatch(text):
        raise ValueError("must be one option like --constraint=h100, without spaces and quotes")
    return text


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError("must be a name of letters, digits and .,@+-_")
    return text


def _image(text: str) -> str:
    if not _IMAGE.fullmatch(text):
        raise ValueError("must be the name of an image, like registry/name:tag")
    return text


def _dns(text: str) -> str:
    if not _DNS.fullmatch(text):
        raise ValueError("must be a name of lower-case letters, digits, '-' and '.'")
    return text


def _accelerator(text: str) -> str:
    if not _ACCELERATOR.fullmatch(text):
        raise ValueError("must be the name of an accelerator, like H100")
    return text


def _variables(given: dict[str, str]) -> dict[str, str]:
    """Refuses names that are none, and what looks like a secret: the scripts hold these values."""
    use = {"use": "name the variable in launch.secrets"}
    for name, value in given.items():
        if not _NAME_OF_VARIABLE.fullmatch(name):
            raise ValueError(f"'{name:.100}' is no name of an environment variable")
        if looks_secret(name, value):
            raise PydanticCustomError("secret", f"'{name:.100}' would stand in the script: {{use}}", use)
        if "\0" in value:
            raise ValueError(f"{name}: a variable cannot hold a NUL character")
    return given


def _arguments(given: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses keys: every user of a machine can read the arguments of its processes."""
    for text in given:
        name, _, value = text.partition("=")
        if looks_secret(name, value or text):
            use = {"use": "export it as a variable that launch.secrets names"}
            raise PydanticCustomError("secret", f"'{name:.40}' would be an argument that others can read: {{use}}", use)
    return given


Port = Annotated[int, Field(gt=1023, lt=65_000)]
Word = Annotated[str, AfterValidator(_word)]
Image = Annotated[str, AfterValidator(_image)]
DnsName = Annotated[str, AfterValidator(_dns)]
Options = Annotated[tuple[Annotated[str, AfterValidator(_option)], ...], OneOrList]


class EnginesLaunch(Section):
    """Engines that the launch starts beside the trainer: vLLM, or `lwz serve-engine` with rollout.engine: embedded."""

    per_node: int = Field(
        0, ge=0, le=64, description="engines on each engine node; 0: none is started (see rollout.urls)"
    )
    nodes: int = Field(
        0,
        ge=0,
        description="nodes for engines alone; 0: they share the one trainer node, on the GPUs after the trainer's",
    )
    gpus: int = Field(1, ge=0, description="GPUs of one engine: vLLM's tensor-parallel size; 0: a CPU")
    model: UserPath | None = Field(None, description="Hugging Face folder that they start with; null: model.hf")
    command: UserPath = Field(
        ".venv-vllm/bin/vllm", description="vLLM's command, in its own environment; not used by the embedded engine"
    )
    port: Port = Field(8000, description="port of a node's first engine; the others have the following ones")
    max_model_len: int | None = Field(
        None, gt=0, description="tokens of prompt and response; null: data.max_prompt_tokens + rollout.max_new_tokens"
    )
    options: Annotated[tuple[str, ...], AfterValidator(_arguments)] = Field(
        (), description="further arguments of every engine"
    )
    start_within: Duration = Field("30m", description="time for all engines to answer, after which the launch fails")
    image: Image | None = Field(None, description="their container image; null: launch.image")
    slurm_options: Options = Field(
        (),
        description="#SBATCH options of the engines' nodes alone, e.g. --partition=l40s; not empty: a heterogeneous job",
    )


class KubernetesLaunch(Section):
    """What only Kubernetes needs."""

    namespace: DnsName | None = Field(None, description="namespace; null: kubectl's own")
    volume_claim: DnsName = Field("shared", description="PersistentVolumeClaim (ReadWriteMany) that every pod mounts")
    mount: UserPath = Field("/shared", description="where it is mounted; launch.folder must lie on it or in the image")
    secret: DnsName = Field("lwz", description="Secret that holds launch.secrets, one key for each variable")
    shared_memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi)$")] = Field(
        "16Gi", description="size of /dev/shm, through which NCCL's ranks of one node exchange data"
    )


class SkyPilotLaunch(Section):
    """What only SkyPilot needs."""

    accelerator: Annotated[str, AfterValidator(_accelerator)] = Field("H100", description="name of the GPU")
    volume: DnsName = Field("shared", description="SkyPilot volume that every node mounts; see docs/launch.md")
    mount: UserPath = Field("/shared", description="where it is mounted")


class LaunchSection(Section):
    """How `lwz launch` starts a stage (docs/launch.md). The stages themselves ignore this section."""

    stage: Literal["train_grpo", "train_sft", "train_reward_model", "train_dpo", "pretrain"] = Field(
        "train_grpo", description="module of megatron_lwz.cli that torchrun starts"
    )
    nodes: int = Field(1, gt=0, description="nodes that train")
    gpus_per_node: int = Field(8, ge=0, description="GPUs of every node; 0: a cluster of CPUs")
    ranks_per_node: int | None = Field(None, gt=0, description="ranks on a trainer node; null: gpus_per_node")
    engines: EnginesLaunch = EnginesLaunch()
    time: Duration | None = Field(
        None,
        description="time limit of one start, e.g. 23h; the run saves and ends in time, and is started again; null: none",
    )
    signal_before: Duration = Field(
        "30m", description="Slurm sends SIGUSR1 so long before the end: save and end after this step"
    )
    max_restarts: int = Field(3, ge=0, description="times that torchrun starts failed ranks again, on the same nodes")
    max_requeues: int = Field(100, ge=0, description="times that a job whose time was over goes back to the queue")
    partition: Word | None = Field(None, description="Slurm: partition")
    account: Word | None = Field(None, description="Slurm: account")
    slurm_options: Options = Field(("--exclusive",), description="Slurm: further #SBATCH options")
    image: Image | None = Field(None, description="container image; Slurm needs the plugin pyxis for it")
    mounts: Paths = Field(
        (), description="Slurm, with an image: folders that it sees besides launch.folder, at the same path"
    )
    folder: UserPath | None = Field(
        None, description="folder in which everything runs, the same on every node; null: where lwz launch runs"
    )
    setup: UserPath | None = Field(
        None, description="bash file that every node reads first: modules, virtual environment; its code is yours"
    )
    environment: Annotated[dict[str, str], AfterValidator(_variables)] = Field(
        {}, description="variables of all processes, e.g. NCCL's; they stand in the scripts, so no secrets"
    )
    secrets: Annotated[tuple[Variable, ...], CommaList] = Field(
        (), description="names of variables that hold keys and tokens; the scripts never hold their values"
    )
    secrets_file: UserPath | None = Field(
        None,
        description="file of NAME=value lines, readable by you alone, from which every node takes the secrets; null: they are in the environment of the start",
    )
    port: Port = Field(29_500, description="port of torchrun's rendezvous, on the first node")
    kubernetes: KubernetesLaunch = KubernetesLaunch()
    skypilot: SkyPilotLaunch = SkyPilotLaunch()

    @property
    def ranks(self) -> int:
        """Ranks on one trainer node."""
        return self.gpus_per_node if self.ranks_per_node is None else self.ranks_per_node
