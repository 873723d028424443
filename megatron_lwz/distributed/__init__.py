"""Ranks, process groups and data exchange: start-up, the CPU platform for Megatron-Core, context-parallel indices."""
