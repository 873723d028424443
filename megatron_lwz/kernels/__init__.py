"""Operators that determine speed and memory.

Each has one signature and several implementations, chosen once per run.
"""
