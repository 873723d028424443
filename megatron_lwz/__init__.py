"""Megatron-LWZ: reinforcement learning that teaches Qwen2.5 to write very long texts (LongWriter-Zero, arXiv 2506.18841).

The names of `__all__` are the public Python API, which docs/api.md describes. Each is imported when it is first used:
`import megatron_lwz` alone loads neither torch nor anything else. No name needs Megatron-Core.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "config": ("Config", "load_config", "validate"),
    "errors": ("ConfigError", "DataError", "LwzError"),
    "types": (
        "ComponentScore",
        "FinishReason",
        "Group",
        "LengthRange",
        "Prompt",
        "RewardColumns",
        "Rollout",
        "TokenDelta",
        "WeightVersion",
    ),
    "data.prompts": ("read_prompts",),
    "data.text.grammar": ("parse_response",),
    "data.text.length": ("count_units",),
    "data.tokenizer": ("Tokenizer",),
    "rollout.drafts": ("Draft", "GroupDraft"),
    "rollout.journal": ("Journal",),
    "rollout.journal_reader": ("JournalReader",),
    "rewards.composite": ("build_rewards",),
    "rewards.length": ("length_reward",),
    "orchestrator.experience": ("Advantages", "advantages_of"),
    "algorithms.grpo": ("LossInputs", "average_metrics", "grpo_loss"),
    "kernels.dispatch": ("set_backend",),
    "kernels.linear_logprob": ("linear_logprob",),
    "metrics": ("read_metrics",),
    "report.build": ("build_report",),
}
"""Module → its public names. `__init__.pyi` says the same to type checkers; a test holds them together."""

_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Imports a public name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
