"""The errors a user can cause. Each is one line: what is wrong (key or file), the value, and what to do."""

from __future__ import annotations

from pathlib import Path


class LwzError(Exception):
    """Base of every error that a user can mend. `cli` prints it as one line and exits with status 2."""


class ConfigError(LwzError):
    """A config key holds something that cannot run."""

    def __init__(self, key: str, value: object, advice: str) -> None:
        super().__init__(f"config key '{key}' = {value!r}: {advice}")
        self.key = key


class DataError(LwzError):
    """A row or file of data that cannot be read. `line` counts from 1."""

    def __init__(self, path: Path | str, advice: str, *, line: int | None = None) -> None:
        where = f"{path}, line {line}" if line is not None else str(path)
        super().__init__(f"{where}: {advice}")


class CheckpointError(LwzError):
    """A checkpoint or weight folder that cannot be used."""

    def __init__(self, path: Path | str, advice: str) -> None:
        super().__init__(f"checkpoint {path}: {advice}")


class EngineError(LwzError):
    """An inference engine, judge or reward server that does not answer as its contract says."""

    def __init__(self, url: str, advice: str) -> None:
        super().__init__(f"engine {url}: {advice}")
        self.advice = advice


class EnvironmentSetupError(LwzError):
    """The machine, launcher or an installed package cannot run what the config asks for."""
