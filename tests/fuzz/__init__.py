"""Fuzzing of every parser of outside data. `make fuzz` runs it for long, the suite for seconds."""
