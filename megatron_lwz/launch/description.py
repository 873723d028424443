"""What is to be started: the description of a config, checked as a whole, and the values that its scripts hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from megatron_lwz.config import Config
from megatron_lwz.config.moment import seconds_of
from megatron_lwz.config.sections import LaunchSection
from megatron_lwz.errors import ConfigError
from megatron_lwz.launch.quoting import array, name_of, quoted
from megatron_lwz.run_paths import RunPaths

Target = Literal["torchrun", "slurm", "kubernetes", "skypilot"]
_AWAY = ("kubernetes", "skypilot")
"""Targets whose machines are not like the one on which `lwz launch` runs."""
GUARD = "megatron_lwz.rollout.vllm_guard.RequireToken"
_PLACE = "http://engine:8000"
"""Stands for the addresses that a launch gives to the run."""


@dataclass(frozen=True)
class Launch:
    """A checked description. `arguments`: CONFIG and overrides, as the stage gets them; `folder`: where all run."""

    config: Config
    arguments: tuple[str, ...]
    folder: str

    @property
    def section(self) -> LaunchSection:
        """The description itself."""
        return self.config.launch

    @cached_property
    def name(self) -> str:
        """The name of the job, after the run folder."""
        return name_of(Path(self.config.run.dir).name)

    @property
    def separate(self) -> bool:
        """Whether engines have nodes of their own."""
        return self.section.engines.nodes > 0

    @property
    def engines_per_node(self) -> int:
        """Engines on each node that has any; 0: the launch starts none."""
        return self.section.engines.per_node

    @property
    def all_nodes(self) -> int:
        """Nodes of trainer and engines."""
        return self.section.nodes + self.section.engines.nodes

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """The variables that every node needs."""
        return tuple(dict.fromkeys(self.section.secrets))

    @property
    def token(self) -> str:
        """The variable with the engines' token."""
        return self.config.rollout.api_key_env or "LWZ_ENGINE_TOKEN"

    def settings(self) -> str:
        """Returns the assignments at the top of every script. Each is one line, whatever the values hold."""
        return "".join(f"{name}={value}\n" for name, value in self._settings())

    def _settings(self) -> Iterator[tuple[str, str]]:
        s, e = self.section, self.section.engines
        run = RunPaths(self.config.run.dir)
        yield "folder", quoted(self.folder)
        yield "setup", quoted(s.setup or "")
        yield "summary", quoted(str(run.summary))
        yield "state", quoted(str(run.root) + ".launch")
        yield "stage", quoted(s.stage)
        yield "arguments", array(self.arguments)
        yield "nodes", str(s.nodes)
        yield "ranks", str(s.ranks)
        yield "gpus", str(s.gpus_per_node)
        yield "restarts", str(s.max_restarts)
        yield "port", str(s.port)
        yield "seconds", str(0 if s.time is None else seconds_of(s.time))
        yield "save_by", quoted(self.config.run.must_save_by or "")
        yield "variables", array(f"{name}={value}" for name, value in s.environment.items())
        yield "secrets", array(self.secrets)
        yield "secrets_file", quoted(s.secrets_file or "")
        yield "token", quoted(self.token)
        yield "engine_nodes", str(e.nodes)
        yield "engines", str(e.per_node)
        yield "engine", array(self.engine_command() if e.per_node else ())
        yield "engine_gpus", str(e.gpus)
        yield "engine_port", str(e.port)
        yield "engine_seconds", str(seconds_of(e.start_within))

    def engine_command(self) -> list[str]:
        """Returns how an engine is started, without --host and --port. docs/vllm.md says why each option is there."""
        config, e = self.config, self.section.engines
        model, length, streams = self._engine_model(), str(self.engine_length()), str(config.rollout.concurrency)
        if config.rollout.engine == "embedded":
            line = ["lwz", "serve-engine", "--model", model, "--served-model-name", "policy"]
            line += ["--dtype", config.training.precision, "--weights-dir", config.run.dir]
            line += ["--max-length", length, "--slots", streams, "--threads", str(config.rollout.engine_threads)]
            return [*line, *e.options]
        dtype = {"bf16": "bfloat16", "fp32": "float32"}[config.training.precision]
        line = [e.command, "serve", model, "--served-model-name", "policy", "--dtype", dtype]
        line += ["--tensor-parallel-size", str(max(1, e.gpus)), "--max-model-len", length, "--max-num-seqs", streams]
        line += ["--logprobs-mode", "processed_logprobs" if config.rollout.top_p == 1 else "raw_logprobs"]
        line += ["--generation-config", "vllm", "--enable-prefix-caching", "--middleware", GUARD]
        line += ["--disable-uvicorn-access-log"]
        if config.weight_sync.transport == "nccl":
            line += ["--weight-transfer-config", '{"backend": "nccl"}']
        return [*line, *e.options]

    def engine_length(self) -> int:
        """Returns the tokens that an engine takes. Raises ConfigError if rollouts may be longer."""
        longest = self.config.data.max_prompt_tokens + self.config.rollout.max_new_tokens
        given = self.section.engines.max_model_len
        if given is not None and given < longest:
            advice = f"rollouts have up to data.max_prompt_tokens + rollout.max_new_tokens = {longest} tokens: raise it"
            raise ConfigError("launch.engines.max_model_len", given, advice)
        return given or longest

    def _engine_model(self) -> str:
        model = self.section.engines.model or self.config.model.hf
        if model is None:
            raise ConfigError("launch.engines.model", None, "name the Hugging Face folder that the engines start with")
        return model


def describe(config: Config, arguments: Sequence[str], target: Target, here: Path) -> Launch:
    """Returns what `arguments` (CONFIG and overrides, read as `config`) describe for a target. Raises ConfigError.

    `here`: where everything runs if the config does not say it and the target runs on machines like this one.
    """
    folder = config.launch.folder
    if folder is None and target in _AWAY:
        raise ConfigError("launch.folder", None, f"name the folder on {target}'s machines in which everything runs")
    if config.launch.secrets_file is not None and target in _AWAY:
        advice = f"{target} keeps secrets itself (docs/launch.md): null"
        raise ConfigError("launch.secrets_file", config.launch.secrets_file, advice)
    launch = Launch(config, tuple(arguments), str(here) if folder is None else folder)
    _check_sizes(config.launch)
    if "" in config.launch.secrets:
        raise ConfigError("launch.secrets", "", "name a variable, or leave the entry out")
    if config.launch.engines.per_node:
        launch.engine_command()
        _check_engines(config)
        _check_token(launch, target)
    if config.launch.stage == "train_grpo":
        with_engines(config).check_grpo()
    return launch


def with_engines(config: Config) -> Config:
    """Returns the config as the run gets it: with addresses of engines, if the launch starts any."""
    if not config.launch.engines.per_node:
        return config
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"urls": (_PLACE,)})})


def _check_sizes(s: LaunchSection) -> None:
    e = s.engines
    if s.ranks == 0:
        raise ConfigError("launch.ranks_per_node", None, "say how many ranks a node has: launch.gpus_per_node is 0")
    if s.gpus_per_node and s.ranks > s.gpus_per_node:
        raise ConfigError("launch.ranks_per_node", s.ranks, f"a node has {s.gpus_per_node} GPUs (launch.gpus_per_node)")
    if s.time is not None and seconds_of(s.signal_before) >= seconds_of(s.time):
        raise ConfigError("launch.signal_before", s.signal_before, f"must be below launch.time = {s.time}")
    if not e.per_node:
        if e.nodes:
            raise ConfigError("launch.engines.per_node", 0, f"say how many engines each of the {e.nodes} nodes has")
        return
    if s.stage != "train_grpo":
        raise ConfigError("launch.engines.per_node", e.per_node, f"{s.stage} needs no engines: 0")
    if not e.nodes and s.nodes > 1:
        advice = "engines share the trainer's node only where there is one: give them nodes of their own"
        raise ConfigError("launch.engines.nodes", 0, advice)
    left = s.gpus_per_node - (0 if e.nodes else s.ranks)
    if s.gpus_per_node and e.per_node * e.gpus > left:
        advice = (
            f"{e.per_node} engines of {e.gpus} GPUs (launch.engines.gpus) need more than the {left} GPUs of the node"
        )
        raise ConfigError("launch.engines.per_node", e.per_node, advice)
    if not s.gpus_per_node and e.gpus:
        raise ConfigError("launch.engines.gpus", e.gpus, "the nodes have no GPUs (launch.gpus_per_node): 0")
    last = e.port + e.per_node - 1
    if not e.nodes and e.port <= s.port <= last:
        raise ConfigError("launch.port", s.port, f"is a port of an engine on the same node ({e.port} to {last})")


def _check_engines(config: Config) -> None:
    e, r = config.launch.engines, config.rollout
    if r.engines_file is not None:
        advice = f"the launch starts engines (launch.engines.per_node = {e.per_node}) and gives the run their addresses"
        raise ConfigError("rollout.engines_file", r.engines_file, f"{advice}: null")
    if r.colocated:
        advice = "such engines share the trainer's GPUs: start them yourself, with launch.engines.per_node: 0"
        raise ConfigError("rollout.colocated", True, advice)
    if r.engine == "embedded" and e.gpus > 1:
        raise ConfigError("launch.engines.gpus", e.gpus, "the embedded engine uses one GPU: 1, or rollout.engine: vllm")


def _check_token(launch: Launch, target: Target) -> None:
    """A script that runs on one machine, or a Slurm job, makes a token; what starts on many must be given one."""
    alone = target == "slurm" or (target == "torchrun" and launch.all_nodes == 1)
    if not alone and launch.token not in launch.secrets:
        advice = f"must name {launch.token}, the engines' token: trainer and engines start on different nodes"
        raise ConfigError("launch.secrets", list(launch.secrets), advice)
