"""The rotary embedding in a Hugging Face `config.json`, for reading and for writing.

The base of the angles may stand in `rope_theta`, `rope_scaling` and `rope_parameters`. Of the ways to scale RoPE, YaRN is
understood. The older `rope_scaling` and `rope_parameters` (transformers 5) then hold the same table.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from megatron_lwz.config.hf_reader import HfReader, is_one_of
from megatron_lwz.config.model import Architecture, Yarn
from megatron_lwz.errors import DataError

ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")

_THETA = 10_000.0
"""transformers' default for `rope_theta`."""
_ORIGINAL = "original_max_position_embeddings"
_KINDS = ("rope_type", "type")
_COMMON = {*_KINDS, "rope_theta", "partial_rotary_factor"}
_SUPPORTED = {"default": _COMMON, "yarn": {*_COMMON, *Yarn.model_fields, "truncate"}}


def read_rope(found: HfReader, positions: int) -> tuple[float, Yarn | None]:
    """Returns the base of the rotary angles and YaRN's numbers, as transformers reads them.

    `positions` is `max_position_embeddings`. Raises DataError where places contradict each other, and for another way
    to scale.
    """
    given = {"rope_theta": found.number("rope_theta", _THETA)} if "rope_theta" in found.raw else {}
    tables: dict[str, dict[str, Any]] = {}
    for name in ("rope_scaling", "rope_parameters"):
        table = found.raw.get(name)
        if table is None or table == {}:
            continue
        if not isinstance(table, dict):
            raise found.error(name, "must be an object or null")
        _check_table(found, name, table)
        tables[name] = table
        if "rope_theta" in table:
            given[f"{name}.rope_theta"] = found.finite(name, table["rope_theta"])
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{key} = {value:g}" for key, value in given.items())
        raise DataError(found.path, f"{listed}: they contradict each other; keep the one the model was trained with")
    scalings = [_yarn(found, name, table, positions) for name, table in tables.items()]
    if len(tables) == 2:
        _check_both(found, tables, scalings)
    return next(iter(given.values()), _THETA), scalings[0] if scalings else None


def written_rope(arch: Architecture) -> dict[str, Any]:
    """Returns the keys of config.json for the architecture's rotary embedding.

    `rope_theta` is written in both ways: on its own (transformers 4, vLLM) and in `rope_parameters` (transformers 5).
    """
    if arch.rope_scaling is None:
        return {
            "rope_theta": arch.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": arch.rope_theta},
        }
    table = {"rope_type": "yarn"} | arch.rope_scaling.model_dump(exclude_none=True)
    parameters = table | {"rope_theta": arch.rope_theta}
    return {"rope_theta": arch.rope_theta, "rope_scaling": {"type": "yarn"} | parameters, "rope_parameters": parameters}


def _check_table(found: HfReader, name: str, table: dict[str, Any]) -> None:
    """Raises DataError for a way to scale, or a number of it, that is not understood."""
    kind = _kind(found, name, table)
    if not is_one_of(table.get("partial_rotary_factor"), (1, None)):
        raise found.error(name, "RoPE turns whole heads only (partial_rotary_factor 1)")
    if not is_one_of(table.get("truncate"), (True, None)):
        raise found.error(name, "YaRN's bounds are whole dimensions only (truncate true)")
    unknown = table.keys() - _SUPPORTED[kind]
    if unknown:
        known = "only rope_type 'default' and rope_theta are" if kind == "default" else "not of YaRN's numbers here"
        raise found.error(name, f"{min(unknown)!r} is not supported: {known}")


def _kind(found: HfReader, name: str, table: dict[str, Any]) -> str:
    kinds = {str(table[key]) for key in _KINDS if table.get(key) is not None}
    if unknown := kinds - _SUPPORTED.keys():
        advice = f"RoPE scaling {min(unknown)!r} is not supported: use the config.json without it"
        raise found.error(name, advice)
    if len(kinds) > 1:
        raise found.error(name, f"rope_type and type contradict each other ({', '.join(sorted(kinds))})")
    return next(iter(kinds), "default")


def _yarn(found: HfReader, name: str, table: dict[str, Any], positions: int) -> Yarn | None:
    """Returns YaRN's numbers of a table; None for RoPE as it is. What is missing has transformers' value."""
    if _kind(found, name, table) != "yarn":
        return None
    values = {key: found.finite(name, table[key]) for key in Yarn.model_fields if table.get(key) is not None}
    if "factor" not in values:
        raise found.error(name, "YaRN needs 'factor': how many times longer texts may be than in the pretraining")
    original = values.get(_ORIGINAL, positions)
    if (
        _ORIGINAL in found.raw and found.whole(_ORIGINAL) != original
    ):  # versions of transformers differ in what they take
        raise found.error(_ORIGINAL, f"differs from the {original:g} of {name}: keep the one the model was made with")
    if values["factor"] < 1 or original < 1 or original != int(original) or min(values.values()) <= 0:
        raise found.error(
            name, "YaRN's factor must be at least 1, its original length a whole number, all others above 0"
        )
    try:
        return Yarn(**values | {_ORIGINAL: int(original)})
    except ValidationError as error:
        first = error.errors()[0]
        raise found.error(name, f"{first['loc'][0]}: {first['msg']}") from error


def _check_both(found: HfReader, tables: dict[str, dict[str, Any]], scalings: list[Yarn | None]) -> None:
    """Raises DataError unless both tables say the same: transformers reads one of them alone."""
    bases = [("rope_theta" in table) for table in tables.values()]
    if bases[0] != bases[1] or scalings[0] != scalings[1]:
        advice = "differs from rope_parameters, which transformers then leaves out: remove one of the two"
        raise found.error("rope_scaling", advice)
