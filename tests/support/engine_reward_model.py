"""A tiny reward model to serve: the engine's model with a scalar head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_lwz.data.preferences.rendering import Rendering, save_rendering
from tests.support.engine_model import write_engine_model

LONGEST = 2048


def write_reward_model(folder: Path, *, max_length: int = LONGEST) -> Any:
    """A classifier by transformers with our rendering beside it; returns the model."""
    from transformers import Qwen2ForSequenceClassification

    write_engine_model(folder, max_length=max_length)
    model = Qwen2ForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(3))
    model.save_pretrained(folder)
    save_rendering(folder, Rendering("markers", False, "<|endoftext|>"))
    return model
