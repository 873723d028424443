"""What the last start of a run was, and whether the next one may differ from it as it does."""

from __future__ import annotations

import logging
from typing import get_args

from megatron_lwz.config import KEPT, Change, Config, Stage, changes, covers, kept_key, load_config
from megatron_lwz.data.manifest import tokenizer_checksum
from megatron_lwz.errors import ConfigError, LwzError
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.attempts import last_attempt

log = logging.getLogger(__name__)

_TOKENIZER = "model.tokenizer"


class LastStart:
    """The last start of the run in a folder that began, compared with `config`, which is to start now.

    `stage`: the stage that the folder belongs to, None if that is unknown. `changes`: what differs, empty for a first
    start. `tokenizer`: SHA-256 of the tokenizer of `config`, None without one.
    """

    def __init__(self, run: RunPaths, config: Config) -> None:
        self._run, self._config = run, config
        row, old = last_attempt(run.attempts), self._old_config()
        self.stage = row["stage"] if row.get("stage") in get_args(Stage) else _guessed(run, old)
        self.tokenizer = tokenizer_of(config)
        self.changes = changes(old, config) if old is not None else []
        known = row.get("tokenizer") or (tokenizer_of(old) if old is not None else None)
        self._same_tokenizer = known is not None and known == self.tokenizer
        """Whether its content is known to be the same, wherever it lies."""
        if known and self.tokenizer and not self._same_tokenizer and _TOKENIZER not in [c.key for c in self.changes]:
            texts = (f"tokenizer.json {checksum[:12]}" for checksum in (known, self.tokenizer))
            self.changes.append(Change(_TOKENIZER, *texts))

    def check_stage(self, stage: Stage) -> None:
        """Raises ConfigError if the folder is a run of another stage."""
        if self.stage not in (None, stage):
            advice = f"holds a run of the stage {self.stage}, and this is {stage}: choose another folder"
            raise ConfigError("run.dir", self._config.run.dir, advice)

    def check_kept(self, stage: Stage) -> None:
        """Raises ConfigError for a changed key that a run keeps and that `run.allow_change` does not name."""
        found = [change for change in self.changes if self._refused(change, stage)]
        if not found:
            return
        first, names = found[0], ",".join(change.key for change in found)
        also = f"; also changed: {', '.join(map(str, found[1:]))}" if found[1:] else ""
        why = KEPT[str(kept_key(first.key))].why
        advice = (
            f"the run in {self._run.root} keeps {first.old!r} ({why}): set it back, choose another run.dir, "
            f"or allow it with run.allow_change={names}{also}"
        )
        raise ConfigError(first.key, first.new, advice)

    def _refused(self, change: Change, stage: Stage) -> bool:
        name = kept_key(change.key)
        if name is None or stage not in KEPT[name].stages:
            return False
        if name == _TOKENIZER and self._same_tokenizer:
            return False
        return not any(covers(allowed, change.key) for allowed in self._config.run.allow_change)

    def _old_config(self) -> Config | None:
        if not self._run.config.is_file():
            return None
        try:
            return load_config(self._run.config)
        except LwzError as error:
            log.warning("what changed since the last start is unknown: %s", error)
            return None


def tokenizer_of(config: Config) -> str | None:
    """Returns the SHA-256 of the config's tokenizer, None if there is none."""
    try:
        return tokenizer_checksum(config.tokenizer_dir())
    except (LwzError, OSError):
        return None


def _guessed(run: RunPaths, old: Config | None) -> Stage | None:
    """Returns the stage of a folder whose last start did not record it: only GRPO then wrote a log of starts."""
    if run.journal.exists() or run.attempts.exists():
        return "grpo"
    if run.corpus.exists():
        return "pretrain"
    return "reward_model" if old is not None and old.model.head == "scalar" else None
