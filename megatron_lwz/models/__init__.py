"""The policy on Megatron-Core: Qwen2.5 as a GPTModel whose last stage returns log-probs."""
