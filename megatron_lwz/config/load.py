"""YAML + command line → Config. Precedence: defaults → `base` file → YAML → `section.key=value`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from megatron_lwz.config.base import user_path
from megatron_lwz.config.tree import Config
from megatron_lwz.decoding import refuse_deep_yaml
from megatron_lwz.errors import ConfigError, DataError
from megatron_lwz.reading import read_text
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.writing import write_text

_NUMBER, _WHOLE, _TEXT = "must be a number", "must be a whole number", "must be a text: put it in quotes"
_LIST, _KEYS = "must be a list, e.g. [a, b]; [] for none", "must be a section of keys and values"
_ADVICE = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": _KEYS,
    "finite_number": "must be a finite number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": "is too large",
    "int_type": _WHOLE,
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "list_type": _LIST,
    "literal_error": "must be {expected}",
    "missing": "is required here",
    "model_attributes_type": _KEYS,
    "model_type": _KEYS,
    "string_type": _TEXT,
    "too_short": "must have at least {min_length} of them",
    "tuple_type": _LIST,
    "value_error": "{error}",
}
"""pydantic's kind of error → advice. Other kinds keep pydantic's own message."""


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads CONFIG (a YAML file, or a folder that holds config.yaml; None: the defaults) and applies dotted overrides.

    A top-level `base: other.yaml` (relative to the file) is read first. `${config_dir}` is the file's folder.
    Raises ConfigError or DataError, each naming the key or file.
    """
    file = Path(path or "the command line")
    if file.is_dir():
        file = RunPaths(file).config
    merged = _read_tree(file) if path is not None else OmegaConf.create({})
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not all(key.split(".")) or "." not in key:
            raise ConfigError(key, text, "an override reads section.key=value")
        try:
            refuse_deep_yaml(text[len(key) + 1 :])
            merged = _merge(merged, OmegaConf.from_dotlist([text]))
        except UnicodeEncodeError as error:
            raise ConfigError(key, text, "is not UTF-8: use a UTF-8 locale, e.g. LC_ALL=C.UTF-8") from error
        except (
            OmegaConfBaseException,
            yaml.YAMLError,
            RecursionError,
            ValueError,  # huge numbers
            LookupError,  # OmegaConf's own, for unbalanced brackets in a key
        ) as error:
            raise ConfigError(key, f"{text:.200}", f"cannot be read as section.key=value ({_reason(error)})") from error
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        advice = "write the value itself, or one of the keys and variables that there are"
        raise DataError(file, f"a ${{…}} leads nowhere ({_reason(error)}): {advice}") from error
    assert isinstance(plain, dict)
    plain.pop("config_dir", None)
    return validate({str(key): value for key, value in plain.items()})


def validate(tree: dict[str, Any]) -> Config:
    """Checks a plain tree against `Config`. Raises ConfigError for the first fault."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        key, value, advice = first_fault(error, Config)
        raise ConfigError(key or "config", value, advice) from error


def first_fault(error: ValidationError, root: type[BaseModel]) -> tuple[str, Any, str]:
    """Returns key, value and advice of the first fault that pydantic found in a tree of `root`."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    known = _ADVICE.get(first["type"])
    advice = known.format(**first.get("ctx", {})) if known is not None else first["msg"]
    if first["type"] == "extra_forbidden":
        advice = "unknown key" + _suggestion(first["loc"], root)
    elif first["type"] == "string_type" and first.get("input") is None:
        advice = "must be a text, nothing is given"
    return key, "***" if first["type"] == "secret" else first.get("input"), advice


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved tree, whole or not at all, as YAML that `load_config` reads back to an equal Config."""
    write_text(path, as_yaml(config.model_dump(mode="json")))


def as_yaml(tree: dict[str, Any]) -> str:
    """Returns the YAML text of a plain tree, keys in their order."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _read_tree(file: Path, above: tuple[Path, ...] = ()) -> DictConfig:
    """Reads a file and the `base` files under it. `above`: the files whose `base` led here."""
    text = read_text(file)
    try:
        refuse_deep_yaml(text)
        tree: Any = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except AssertionError:  # OmegaConf's own, for a file that is one number or date
        tree = None
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:  # ValueError: huge numbers
        mark = getattr(error, "problem_mark", None)
        raise DataError(
            file, f"not valid YAML ({_reason(error)}): correct it", line=mark.line + 1 if mark else None
        ) from error
    if not isinstance(tree, DictConfig):
        raise DataError(file, "must hold sections like 'run:' and 'model:', not a list or a single value")
    try:
        base = tree.pop("base", None)
    except OmegaConfBaseException as error:
        raise DataError(file, f"base: {_reason(error)}; write the path itself") from error
    tree["config_dir"] = str(file.parent)
    if base is None:
        return tree
    try:
        under = file.parent / user_path(str(base))
    except ValueError as error:
        raise DataError(file, f"base: {error}") from error
    above = (*above, file.resolve())
    if under.resolve() in above:
        raise DataError(file, f"base: {base} leads back to this file: the files are each other's base")
    return _merge(_read_tree(under, above), tree)


def _merge(under: DictConfig, over: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(under, over)
    assert isinstance(merged, DictConfig)
    return merged


def _suggestion(location: Sequence[int | str], root: type[BaseModel]) -> str:
    """`, did you mean '…'?` for a misspelt key, searched among the siblings of its section."""
    model = root
    for part in location[:-1]:
        if isinstance(part, int):  # an entry of a list of sections, which the loop has already entered
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not found:
            return ""
        model = found[0]
    close = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1)
    return f", did you mean '{close[0]}'?" if close else f"; known here: {', '.join(model.model_fields)}"


def _reason(error: BaseException) -> str:
    """Returns what is wrong in one line. YAML's own first line only says what was being read."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    problem = getattr(error, "problem", None)
    if problem == "found character that cannot start any token":
        return "a tab, % or @ where a value or key should begin: indent with spaces, put such texts in quotes"
    return " ".join(str(problem).split()) if problem else (str(error).splitlines() or [type(error).__name__])[0]
