"""Names of metrics as pages show them."""

from __future__ import annotations

LABELS = {
    "format_valid": "well-formed",
    "length_in_range": "in the asked range",
    "near_duplicates": "near-duplicate paragraphs",
    "copied": "copied from the instruction",
    "rollout/truncated": "truncated",
    "rollout/sameness": "4-grams shared by siblings",
    "rollout/mean_length": "all rollouts",
    "rollout/mean_length_untruncated": "not truncated",
    "rollout/think_length_tokens": "thinking",
    "rollout/mean_length_units": "answer",
    "rollout/think_length": "thinking",
    "tokens_per_second": "tokens per second",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "kl": "KL",
    "rollout/violators": "break a rule",
    "clip_fraction_low": "clipped below",
    "clip_fraction_high": "clipped above",
    "curriculum/stage": "stage",
    "curriculum/pool_size": "prompts of the stage",
    "curriculum/skipped": "of these resting",
    "curriculum/success": "rollouts that succeed",
    "curriculum/gate": "what the stage ends by",
    "curriculum/max_new_tokens": "limit of a response",
    "seconds": "seconds per evaluation",
    "steps_behind": "updates made meanwhile",
    "quality/unjudged": "answers without ratings",
}
"""Metric without `eval/` → name. Metrics that are not listed keep their own."""
