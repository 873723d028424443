"""Named reward components, each with a validity mask; `composite.build_rewards` makes the list of a run."""
