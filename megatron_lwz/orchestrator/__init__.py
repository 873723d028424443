"""Rank 0's rollout service: engines, journal, rewards, batches and held-out evaluations, in the trainer's process or its own.

No Megatron here: a process that imports this room trains nothing.
"""
