"""Measurements of a written text: its length, its think/answer structure, its near-duplicate paragraphs."""
