"""Where the end of a step waits for the GPU, and how often."""

from megatron_lwz.distributed import megatron_version

PER_STEP = {
    "megatron/core/optimizer/clip_grads.py:get_grad_norm_fp32": 1,
    "megatron_lwz/training/step.py:_reduce": 1,  # the metrics
    "megatron_lwz/training/step.py:finish": 1,  # the number of tokens, to the GPU
}
"""Place → waits."""
if megatron_version.release() < (0, 19):  # later releases divide on the device
    PER_STEP["megatron/core/distributed/finalize_model_grads.py:finalize_model_grads"] = 1  # the tokens, per chunk
