"""What files and addresses hold reaches a message without line breaks, terminal controls and passwords."""

from __future__ import annotations

import pytest

from megatron_lwz.config import validate
from megatron_lwz.errors import ConfigError, DataError, EngineError, LwzError
from megatron_lwz.http.session import is_address


@pytest.mark.parametrize("mark", ["\n", "\r", "\x1b[2J", "\x9b2J", "\u202e", "\u2028", "\x00", "\ud800"])
@pytest.mark.parametrize(
    "make",
    [LwzError, lambda text: DataError(f"{text}.jsonl", text, line=3), lambda text: EngineError("http://a", text),
     lambda text: ConfigError(text, text, text)],
    ids=["LwzError", "DataError", "EngineError", "ConfigError"],
)  # fmt: skip
def test_controls_are_escapes(make, mark):
    message = str(make(f"a{mark}b"))
    assert message.isprintable() and "a" in message and "写" in str(make("写"))


@pytest.mark.parametrize(
    "key", ["judge.url", "reward.writing.url", "reward.overlap.url", "rollout.urls", "evaluation.urls"]
)
def test_an_address_with_a_password_is_refused_and_not_repeated(key):
    tree: dict = {}
    *sections, last = key.split(".")
    at = tree
    for section in sections:
        at = at.setdefault(section, {})
    at[last] = "http://me:hunter2@host:80/v1"
    with pytest.raises(ConfigError, match="password") as caught:
        validate(tree)
    assert "hunter2" not in str(caught.value) and "= '***': holds a user or password" in str(caught.value)


def test_addresses():
    assert is_address("http://a:1/x@y") and is_address("https://[::1]:8")
    assert not any(map(is_address, ("http://a:b@c", "http://[::1", "ftp://a", "a:1", "")))
