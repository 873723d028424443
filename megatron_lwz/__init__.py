"""Megatron-LWZ: reinforcement learning that teaches Qwen2.5 to write very long texts (LongWriter-Zero, arXiv 2506.18841)."""

__version__ = "0.1.0"
