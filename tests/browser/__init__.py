"""`lwz ui` in a real browser."""
