"""What a user gets wrong, through the commands themselves: exit status 2, one line that says what and what to do, no damage.

The tables are in tests/support/bad_inputs, one file per kind of input.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_lwz.cli import common
from tests.support.bad_inputs import data, models, options, runs, settings
from tests.support.bad_inputs.place import Bad, Contents, as_any_user, contents, restore, write_good

TABLES = (settings, data, models, runs, options)
ENTRIES = [(table.__name__.rpartition(".")[2], bad) for table in TABLES for bad in table.TABLE]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    folder = tmp_path_factory.mktemp("good")
    write_good(folder)
    return folder, contents(folder)


@pytest.fixture
def place(good: tuple[Path, Contents]) -> Iterator[Path]:
    yield good[0]
    restore(*good)
    assert contents(good[0]) == good[1]


@pytest.fixture(autouse=True)
def no_stale_log() -> Iterator[None]:
    """Removes the log handlers of `common.run`, whose streams end with the test."""
    yield
    logging.getLogger("megatron_lwz").handlers.clear()


def test_they_differ() -> None:
    assert len({(bad.line, bad.names, bad.value) for _, bad in ENTRIES}) >= 200


@pytest.mark.parametrize(("kind", "bad"), ENTRIES, ids=[f"{kind}-{bad.value}" for kind, bad in ENTRIES])
def test_a_bad_input_is_one_line_that_says_what_to_do_and_damages_nothing(
    kind: str, bad: Bad, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad.spoil(place)
    before = contents(place)
    main, argv = bad.argv(place)
    for name, value in bad.variables.items():
        monkeypatch.setenv(name, value)
    with as_any_user():
        status = common.run(main, argv)
    said = capsys.readouterr().err.replace(str(place), "{}")
    assert status == common.USER_ERROR, said
    assert said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said, said
    for part in (bad.names, bad.value, bad.remedy):
        assert part in said, f"the message lacks {part!r}: {said}"
    assert contents(place) == before
