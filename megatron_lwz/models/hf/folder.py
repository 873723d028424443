"""A Hugging Face weight folder, read lazily: headers first, then only the requested slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_lwz.errors import CheckpointError, DataError
from megatron_lwz.models.hf.checksum import SUMS_FILE, digests_of, read_sums
from megatron_lwz.models.hf.name_map import EMBEDDING, HEAD, Shape
from megatron_lwz.models.hf.tensors import is_finite, not_finite
from megatron_lwz.reading import read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_BELONGS = "use the config.json that came with the weights, or copy the folder again"
_DTYPES = ("BF16", "F16", "F32")
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"  # a buffer that old exports saved; it follows from rope_theta


class _File:
    """An open safetensors file. Every tensor gets a mapping of its own, which ends with the tensor.

    With one mapping for all, the pages of all tensors that were read would count as memory of the process.
    """

    def __init__(self, path: Path) -> None:
        self._held = path.open("rb")

    def mapped(self) -> Any:
        """Returns a reader of the file as it was when it was opened, also where another has taken its name since."""
        return safe_open(f"/dev/fd/{self._held.fileno()}", framework="pt")


class HfFolder:
    """`model.safetensors`, or shards with their index. Opening reads headers only; raises CheckpointError.

    Pickled weights (`*.bin`, `*.pt`) are refused: reading them can run code. A folder from which transformers and vLLM
    would read different weights is refused too.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.place = str(path)
        self._files: dict[str, _File] = {}
        self._file_of: dict[str, str] = {}  # tensor name → file name
        listed = self._read_index() if (self.path / INDEX).is_file() else None
        self._refuse_ambiguous(listed)
        for file in sorted(set(listed.values())) if listed is not None else [self._single_file()]:
            self._open(file)
        if listed is not None:
            self._compare_with_index(listed)

    def names(self) -> list[str]:
        """Returns the names of all tensors in the files."""
        return sorted(self._file_of)

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Checks that the folder holds exactly these tensors. Raises CheckpointError that names the first mismatch."""
        for name, shape in shapes.items():
            if name not in self._file_of:
                raise self._error(f"tensor {name} is missing; expected shape {list(shape)}; {_BELONGS}")
            found = self._slice(name)
            if tuple(found.get_shape()) != shape:
                raise self._error(
                    f"tensor {name} has shape {found.get_shape()}, config.json asks for {list(shape)}; {_BELONGS}"
                )
            if found.get_dtype() not in _DTYPES:
                raise self._error(f"tensor {name} has type {found.get_dtype()}; only {', '.join(_DTYPES)} can be read")
        for name in self._file_of.keys() - shapes.keys():
            if not name.endswith(_IGNORED_SUFFIX) and not self._is_tied_copy(name):
                raise self._error(f"tensor {name} is not part of the model that config.json describes")

    def fault(self, part: int = 0, parts: int = 1) -> str | None:
        """Compares the tensors with the checksums in the folder, if an export left some there.

        Returns what is wrong, None if nothing is. Only every `parts`-th tensor is read, from the one numbered `part` on,
        so that ranks can divide the work. Raises CheckpointError if the checksums themselves are damaged.
        """
        sums = read_sums(self.path)
        if sums is None:
            return None
        advice = f"copy the folder again; or delete {SUMS_FILE}, if the weights were changed on purpose"
        if missing := sorted(sums.keys() ^ self._file_of.keys()):
            return f"tensor {missing[0]} is not in both the files and {SUMS_FILE}: {advice}"
        names = self.names()[part::parts]
        found = digests_of((name, self._slice(name)[:]) for name in names)
        for name in names:
            if found[name] != sums[name]:
                return f"tensor {name} in {self._file_of[name]} is not as it was written: {advice}"
        return None

    def poisoned(self, names: Sequence[str], dtype: torch.dtype) -> str | None:
        """Returns what is wrong if one of these tensors is NaN or infinite, or would be in `dtype`; None if none is."""
        for name in names:
            if not is_finite(self._slice(name)[:], dtype):
                return not_finite(name)
        return None

    def read(self, name: str, shape: Shape, split: int | None = None, bounds: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Returns the tensor, or its rows (split 0) or columns (split 1) [start, stop), as stored, on the CPU."""
        found = self._slice(name)
        start, stop = bounds
        if split is None:
            return found[:]
        if start == stop:  # a share that consists of padding only
            return torch.empty([0 if dim == split else extent for dim, extent in enumerate(shape)])
        return found[start:stop] if split == 0 else found[:, start:stop]

    def dtype(self, name: str) -> str:
        """Returns the stored dtype of the tensor: BF16, F16 or F32."""
        return self._slice(name).get_dtype()

    def _slice(self, name: str) -> Any:
        return self._files[self._file_of[name]].mapped().get_slice(name)

    def _is_tied_copy(self, name: str) -> bool:
        """Whether the tensor is a copy of the tied embedding, which some exports save.

        Raises CheckpointError if it differs.
        """
        if name != HEAD or EMBEDDING not in self._file_of:
            return False
        head, embedding = self._slice(HEAD), self._slice(EMBEDDING)
        if head.get_shape() != embedding.get_shape():
            return False
        if torch.equal(head[:], embedding[:]):
            return True
        raise self._error(f"tensor {HEAD} differs from {EMBEDDING}, but config.json says tie_word_embeddings: true")

    def _single_file(self) -> str:
        if (self.path / SINGLE).is_file():
            return SINGLE
        if not self.path.is_dir():
            raise self._error("no such folder: check the path")
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in self.path.glob(pattern))
        if pickled:
            raise self._error(
                f"{pickled[0]} is a pickle, which can run code when read; "
                "save the model as safetensors (transformers: save_pretrained) and use that folder"
            )
        raise self._error(f"neither {SINGLE} nor {INDEX} is in this folder: name a folder with weights")

    def _refuse_ambiguous(self, listed: Mapping[str, str] | None) -> None:
        """Raises CheckpointError if readers would disagree about the weights of this folder."""
        if (self.path / ADAPTER).is_file():
            raise self._error(f"holds {ADAPTER}: merge the adapter into the model (peft: merge_and_unload), save that")
        if not (self.path / SINGLE).is_file():
            return
        others = sorted({*listed.values()} - {SINGLE}) if listed is not None else []
        if others:
            raise self._error(
                f"holds {SINGLE}, which transformers reads, and {INDEX} of {others[0]} …, which vLLM reads: "
                f"delete what is out of date, {SINGLE} or the index and its files"
            )
        further = sorted(path.name for path in self.path.glob("*.safetensors") if path.name != SINGLE)
        if further and listed is None:
            raise self._error(
                f"holds {further[0]} beside {SINGLE}: transformers leaves it out, vLLM reads it too; move it away"
            )

    def _read_index(self) -> dict[str, str]:
        try:
            weight_map = read_object(self.path / INDEX)["weight_map"]
            listed = {str(name): str(file) for name, file in weight_map.items()}
        except (DataError, KeyError, AttributeError) as error:
            reason = str(error) if isinstance(error, DataError) else repr(error)
            raise self._error(f"{INDEX} is not an index of safetensors files ({reason})") from error
        if not listed:
            raise self._error(f"{INDEX} lists no tensor")
        for file in listed.values():
            if Path(file).name != file or not file.endswith(".safetensors") or len(file) > 255:
                raise self._error(
                    f"{INDEX} names {file[:80]!r}; only files in the folder itself are read, *.safetensors"
                )
        return listed

    def _open(self, file: str) -> None:
        if not (self.path / file).is_file():
            raise self._error(f"file {file} is missing, but {INDEX} lists it; copy the folder again")
        try:
            opened = _File(self.path / file)
            reader = opened.mapped()
        except (SafetensorError, OSError) as error:
            raise self._error(f"file {file} is damaged or truncated ({error}); copy it again") from error
        self._files[file] = opened
        for name in reader.keys():  # noqa: SIM118 (a safetensors reader, not a dict)
            if name in self._file_of:
                raise self._error(f"tensor {name} is in both {self._file_of[name]} and {file}")
            self._file_of[name] = file

    def _compare_with_index(self, listed: Mapping[str, str]) -> None:
        for name, file in listed.items():
            if self._file_of.get(name) != file:
                raise self._error(
                    f"tensor {name} is missing from {file}, where {INDEX} lists it: copy the folder again"
                )
        for name, file in self._file_of.items():
            if name not in listed:
                raise self._error(f"tensor {name} in {file} is not listed in {INDEX}")

    def _error(self, advice: str) -> CheckpointError:
        return CheckpointError(self.path, advice)
