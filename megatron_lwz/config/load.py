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

from megatron_lwz.config.tree import Config
from megatron_lwz.errors import ConfigError, DataError
from megatron_lwz.run_paths import RunPaths


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
        if not equals or "." not in key:
            raise ConfigError(key, text, "an override reads section.key=value")
        try:
            merged = _merge(merged, OmegaConf.from_dotlist([text]))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(key, text, f"cannot be read as section.key=value ({_first_line(error)})") from error
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise DataError(file, _first_line(error)) from error
    assert isinstance(plain, dict)
    plain.pop("config_dir", None)
    return validate({str(key): value for key, value in plain.items()})


def validate(tree: dict[str, Any]) -> Config:
    """Checks a plain tree against `Config`. Raises ConfigError for the first fault."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "config"
        advice = first["msg"]
        if first["type"] == "extra_forbidden":
            advice = "unknown key" + _suggestion(first["loc"])
        raise ConfigError(key, first.get("input"), advice) from error


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved tree as YAML that `load_config` reads back to an equal Config."""
    path.write_text(
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def _read_tree(file: Path) -> DictConfig:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(file, f"config file cannot be read ({_first_line(error)})") from error
    try:
        tree = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        raise DataError(file, f"not valid YAML ({_first_line(error)})", line=mark.line + 1 if mark else None) from error
    if not isinstance(tree, DictConfig):
        raise DataError(file, "must hold sections like 'run:' and 'model:', not a list or a single value")
    base = tree.pop("base", None)
    tree["config_dir"] = str(file.parent)
    if base is None:
        return tree
    return _merge(_read_tree(file.parent / str(base)), tree)


def _merge(under: DictConfig, over: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(under, over)
    assert isinstance(merged, DictConfig)
    return merged


def _suggestion(location: Sequence[int | str]) -> str:
    """`, did you mean '…'?` for a misspelt key, searched among the siblings of its section."""
    model: type[BaseModel] = Config
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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
