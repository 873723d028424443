"""One frozen, validated tree of settings: YAML, a base file, and dotted overrides."""

from megatron_lwz.config.changes import Change, changes
from megatron_lwz.config.hf_config import read_hf_architecture
from megatron_lwz.config.kept import KEPT, Stage, covers, kept_key
from megatron_lwz.config.load import load_config, save_config, validate
from megatron_lwz.config.readers import readers, unread, unread_note
from megatron_lwz.config.sections import Architecture
from megatron_lwz.config.tree import Config

__all__ = [
    "KEPT",
    "Architecture",
    "Change",
    "Config",
    "Stage",
    "changes",
    "covers",
    "kept_key",
    "load_config",
    "read_hf_architecture",
    "readers",
    "save_config",
    "unread",
    "unread_note",
    "validate",
]
