"""A GRPO run as discrete events: engines, rewards, trainer and weight sync, from numbers that are measured, planned or given.

No model, no clock of the machine, no torch: the same numbers and seed give the same run.
"""
