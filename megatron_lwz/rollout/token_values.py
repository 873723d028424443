"""What the trainer computed for single tokens of a step's rollouts (`logging.token_values`): a file per rank that holds some.

A file has `entropy` and `difference`, [n] fp16, and `segments` [S, 4] int64: group, rollout, position of the segment's first
token in prompt and response, number of tokens. The segments' values follow each other. It needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from megatron_lwz.errors import DataError
from megatron_lwz.writing import naming, replacing

Floats = npt.NDArray[np.float32]
_NAMES = ("entropy", "difference")


@dataclass(frozen=True)
class TokenValues:
    """Values of a rollout's response tokens, [T] fp32; NaN where the files have none."""

    entropy: Floats
    """Entropy of the trainer's distribution at each token, in nats, at the update that trained on it."""
    difference: Floats
    """Log-prob of the trainer, before it changed with this batch, less that of the engine."""


def file_of(folder: Path, rank: int) -> Path:
    """Returns the file of a rank in the folder of a step."""
    return folder / f"rank_{rank:05d}.safetensors"


def write(file: Path, segments: npt.NDArray[np.int64], entropy: Floats, difference: Floats) -> None:
    """Writes a rank's file, whole or not at all. Values beyond fp16 become infinite. Raises FileSystemError."""
    with np.errstate(over="ignore"):
        halves = {"entropy": entropy.astype(np.float16), "difference": difference.astype(np.float16)}
    with naming(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, private=True) as stream:
        stream.write(save({"segments": np.ascontiguousarray(segments), **halves}))


def read(folder: Path, group: int, rollout: int, *, prompt_tokens: int, tokens: int) -> TokenValues | None:
    """Returns the values of a rollout's `tokens` response tokens, None if no file has any. Raises DataError.

    Of a step that was repeated the newer files count.
    """
    values = np.full((len(_NAMES), tokens), np.nan, np.float32)
    for path in sorted(folder.glob("rank_*.safetensors"), key=_age):
        for start, found in _segments(path, group, rollout):
            place = start - prompt_tokens
            if place < 0 or place + found.shape[1] > tokens:
                raise DataError(
                    path, f"values of rollout {group}-{rollout} do not fit its {tokens} tokens: remove {path.name}"
                )
            values[:, place : place + found.shape[1]] = found
    return None if np.isnan(values).all() else TokenValues(*values)


def _segments(path: Path, group: int, rollout: int) -> Iterator[tuple[int, Floats]]:
    """Yields (start, [2, n] values) of each segment of the rollout."""
    try:
        with safe_open(path, framework="np") as file:
            segments = file.get_tensor("segments")
            ends = segments[:, 3].cumsum()
            for row in np.flatnonzero((segments[:, 0] == group) & (segments[:, 1] == rollout)):
                low, high = int(ends[row] - segments[row, 3]), int(ends[row])
                yield (
                    int(segments[row, 2]),
                    np.stack([file.get_slice(name)[low:high] for name in _NAMES]).astype(np.float32),
                )
    except (SafetensorError, OSError, ValueError, IndexError) as error:
        raise DataError(path, f"cannot be read ({' '.join(str(error).split())[:200]}): remove it") from error


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
