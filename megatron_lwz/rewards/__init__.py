"""Named reward components, each with a validity mask.

`composite.build_rewards` builds the list of a run's components.
"""
