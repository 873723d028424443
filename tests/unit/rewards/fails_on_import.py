"""A user's module with a fault of its own."""

1 / 0  # noqa: B018
