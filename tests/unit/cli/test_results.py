"""The table of a finished run reads the summary, and says in one line what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_lwz.cli.results import show_results
from megatron_lwz.errors import DataError


def test_the_table_shows_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").write_text('\ufeff{"first": {"format_valid": 0.25}, "last": {"format_valid": 0.75}}')
    show_results(tmp_path)
    line = next(line for line in capsys.readouterr().out.splitlines() if "valid format" in line)
    assert "0.25" in line and "0.75" in line


@pytest.mark.parametrize("data", [b"{", b"[]", b"{}", b'{"first": 1, "last": 2}', b"\xff\xfe", b"[" * 100_000, None])
def test_what_is_no_summary_is_said(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "summary.json").write_bytes(data)
    with pytest.raises(DataError, match=r"summary\.json") as caught:
        show_results(tmp_path)
    assert "\n" not in str(caught.value)
