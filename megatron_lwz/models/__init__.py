"""The policy on Megatron-Core: Qwen2.5 and Qwen3 as a GPTModel whose last stage returns log-probs."""

from megatron_lwz.distributed import jit

jit.install()  # before a module of this room imports Megatron-Core
