"""Rank 0's rollout service: engines, journal, rewards, batches and held-out evaluations.

It runs in the trainer's process or in a separate one. It does not import Megatron, so a process that imports this
package cannot train.
"""
