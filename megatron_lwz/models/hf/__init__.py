"""Import and export of Hugging Face folders: one name table, lazy loading, streaming export, checksums."""

from megatron_lwz.models.hf.export import checksum_folder, checksum_policy, export_policy
from megatron_lwz.models.hf.load import HfFolder, NewHead, RandomInit, TensorSource, load_policy

__all__ = [
    "HfFolder",
    "NewHead",
    "RandomInit",
    "TensorSource",
    "checksum_folder",
    "checksum_policy",
    "export_policy",
    "load_policy",
]
