"""Prepares a corpus: texts of several sources → deduplicated, split and tokenised indexed datasets and a manifest."""
