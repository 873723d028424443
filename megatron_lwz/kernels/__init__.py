"""Operators that decide speed and memory: one signature each, several implementations, chosen once per run."""
