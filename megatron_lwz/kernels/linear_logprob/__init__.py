"""linear_logprob."""
