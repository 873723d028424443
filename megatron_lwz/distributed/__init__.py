"""Ranks, groups and exchange: torchrun start-up, the CPU platform for Megatron-Core, context-parallel indices."""
