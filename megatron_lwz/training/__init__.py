"""The training stages: state, step, optimizer, checkpoints, and one flat loop per stage.

Only this package knows the order.
"""
