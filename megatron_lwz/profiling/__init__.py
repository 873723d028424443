"""What a run does when: spans of trainer, engines and rewards, operators of ranks, as one trace and its summary."""
