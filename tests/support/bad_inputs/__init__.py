"""A table of what users get wrong: one file per kind of input, and the place in which each is tried."""
