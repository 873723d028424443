"""The stages: state, step, optimizer, checkpoints, and one flat loop per stage. Only this room knows the order."""
