"""A small sentence encoder on the CPU: the mean of the last hidden states of any Hugging Face encoder folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from megatron_lwz.errors import ConfigError


class SentenceEncoder:
    """Texts → unit vectors. Reads safetensors only, and runs no code from the folder."""

    def __init__(self, folder: str, *, key: str, longest: int = 512) -> None:
        """`key` names the setting in errors; texts are cut at `longest` tokens. Raises ConfigError."""
        if not (Path(folder) / "config.json").is_file():
            raise ConfigError(key, folder, "no config.json in this folder: name a Hugging Face folder")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                key, folder, f"is no encoder that transformers can load ({_first_line(error)})"
            ) from error
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token
        if self._tokenizer.pad_token is None:
            raise ConfigError(key, folder, "its tokenizer has no padding token")
        self._model = model.eval()
        self._longest = longest

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns [N, D] fp32, rows of length 1."""
        batch = self._tokenizer(
            list(texts),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self._longest,
            split_special_tokens=True,  # control tokens that a text spells out are text
        )
        known = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        hidden = self._model(**known).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean.float(), dim=-1)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
