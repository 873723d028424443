"""No foreign text reaches a terminal as a command: errors, log lines and printed lines show control characters escaped."""

from __future__ import annotations

import logging
import sys

import pytest

from megatron_lwz import errors
from megatron_lwz.cli import common
from megatron_lwz.errors import ConfigError, DataError, EngineError, LwzError, conceal, concealed, printable
from megatron_lwz.http.session import HttpSession, quoted

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202ered\u2028\r\b\0\x7f"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\x9b31m\u202ered\u2028\r\x08\x00\x7f"


def test_control_characters_become_escapes_and_other_text_stays():
    assert printable(EVIL) == SHOWN
    plain = "写作 → é × 👩\u200d🚀 نویسه\u200cها"  # joiners belong to the writing
    assert printable(plain) == plain
    assert printable("a\tb\nc") == r"a\tb\nc" and printable("a\tb\nc", keep="\n\t") == "a\tb\nc"
    assert printable("half \ud800 a pair").isascii()


@pytest.mark.parametrize(
    "error", [EngineError("http://e", EVIL), DataError(EVIL, "x"), ConfigError("k", 1, EVIL), LwzError("a\n" + EVIL)]
)
def test_every_error_is_one_printable_line(error):
    assert str(error).isprintable() or "写" in str(error)
    assert r"\x1b[2J" in str(error) and "\n" not in str(error)


def test_a_key_that_a_server_quotes_is_not_shown(monkeypatch, capsys):
    monkeypatch.setattr(errors, "_secrets", set())
    HttpSession("sk-0123456789")
    conceal("short")  # a word of other texts
    said = quoted(b"the key\n sk-0123456789 is wrong", 12)
    assert said == "the key ***" and concealed("shorter") == "shorter"

    def main(_arguments):
        logging.getLogger("megatron_lwz.http").warning("said %s", "sk-0123456789")
        raise EngineError("http://e", "sk-0123456789 is wrong") from RuntimeError("sk-0123456789")

    for arguments in ([], ["--traceback"]):
        assert common.run(main, arguments) == 2
        shown = capsys.readouterr().err
        assert "sk-0123456789" not in shown and "said ***" in shown and "*** is wrong" in shown


def test_nothing_that_a_command_shows_has_a_live_control_character(capsys):
    def main(_arguments):
        log = logging.getLogger("megatron_lwz.rollout")
        log.info("said %s", EVIL)
        log.warning("said %s", EVIL)
        try:
            raise RuntimeError(EVIL)
        except RuntimeError:
            log.exception("failed")
        common.console().print(f"said {EVIL}", markup=False)
        raise EngineError("http://e", EVIL) from RuntimeError(EVIL)

    for arguments in ([], ["--traceback"]):
        assert common.run(main, arguments) == 2
        shown = capsys.readouterr()
        for text in shown:
            assert r"\x1b[2J" in text and not set(text) & set(EVIL) - set("".join(filter(str.isprintable, EVIL)))
    assert "Traceback" in shown.err and sys.exc_info() == (None, None, None)
