"""What every setting is: its type, default, bounds and meaning, read from the config classes."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from megatron_lwz.config.tree import Config

_BOUNDS = {"gt": "above {:g}", "ge": "at least {:g}", "lt": "below {:g}", "le": "at most {:g}"}


@dataclass(frozen=True)
class Setting:
    """One key of a section."""

    name: str
    """Its last part, e.g. `temperature`."""
    choices: tuple[str, ...]
    """The words that it may be; empty where it is not a choice."""
    kind: str
    """Its type, e.g. `float`, `list of str`; of no meaning for a choice."""
    default: Any
    """As the config holds it; REQUIRED without one."""
    bounds: str
    """E.g. `at least 0`; empty without."""
    meaning: str
    """Its description, with the source of the default."""


@dataclass(frozen=True)
class Settings:
    """One section: its own settings, without those of the sections in it."""

    key: str
    """Dotted, e.g. `reward.length`."""
    meaning: str
    settings: tuple[Setting, ...]


REQUIRED: Any = object()


def all_sections() -> Iterator[Settings]:
    """Yields every section in the order of the config, each before the sections in it."""
    for name, field in Config.model_fields.items():
        yield from _sections(name, _model(field))


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of a config file, as editors use it. It knows `base` and all keys."""
    schema = Config.model_json_schema()
    schema["title"] = "Megatron-LWZ config"
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["base"] = {
        "type": "string",
        "description": "a file, relative to this one, that is read before it",
    }
    return schema


def _sections(key: str, model: type[BaseModel]) -> Iterator[Settings]:
    own = tuple(
        _setting(name, field)
        for name, field in model.model_fields.items()
        if not isinstance(field.default, BaseModel)  # it has a section of its own
    )
    yield Settings(key, " ".join((model.__doc__ or "").split()), own)
    for name, field in model.model_fields.items():
        if _is_model(field):
            yield from _sections(f"{key}.{name}", _model(field))


def _setting(name: str, field: FieldInfo) -> Setting:
    default = REQUIRED if field.is_required() else field.default
    return Setting(name, _choices(field), _kind(field), default, _bounds(field), field.description or "")


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    return (field.annotation, *typing.get_args(field.annotation))


def _is_model(field: FieldInfo) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in _kinds(field))


def _model(field: FieldInfo) -> type[BaseModel]:
    return next(kind for kind in _kinds(field) if isinstance(kind, type) and issubclass(kind, BaseModel))


def _choices(field: FieldInfo) -> tuple[str, ...]:
    if typing.get_origin(field.annotation) is dict:
        return ()
    literal = next((kind for kind in _kinds(field) if typing.get_origin(kind) is typing.Literal), None)
    return tuple(str(value) for value in typing.get_args(literal))


def _kind(field: FieldInfo) -> str:
    annotation = field.annotation
    if typing.get_origin(annotation) is dict:
        return "mapping"
    names = [_name(kind) for kind in typing.get_args(annotation) if kind not in (type(None), ...)]
    if typing.get_origin(annotation) is tuple:
        return f"list of {names[0]}"
    return " or ".join(names) if names else _name(annotation)


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return "section" if isinstance(kind, type) and issubclass(kind, BaseModel) else getattr(kind, "__name__", str(kind))


def _bounds(field: FieldInfo) -> str:
    annotated = [kind for kind in _kinds(field) if typing.get_origin(kind) is typing.Annotated]
    found = [*field.metadata, *(mark for kind in annotated for mark in typing.get_args(kind)[1:])]
    flat = [mark for one in found for mark in (one.metadata if isinstance(one, FieldInfo) else (one,))]
    said = [text.format(getattr(mark, name)) for mark in flat for name, text in _BOUNDS.items() if hasattr(mark, name)]
    return ", ".join(dict.fromkeys(said))
