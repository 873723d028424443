"""Files of rows as other people's programs write them: forms that every reader must read, and lines that none can."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
MARK = b"\xef\xbb\xbf"


def lines(rows: Rows) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def array(rows: Rows) -> bytes:
    """A JSON array over several lines."""
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def parquet(rows: Rows) -> bytes:
    """A Parquet file. Keys that a row lacks become null."""
    import pyarrow.parquet

    target = io.BytesIO()
    keys = dict.fromkeys(key for row in rows for key in row)
    table = pyarrow.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows])
    pyarrow.parquet.write_table(table, target)
    return target.getvalue()


FORMS: Mapping[str, Callable[[Rows], bytes]] = {
    "lines": lines,
    "byte order mark": lambda rows: MARK + lines(rows),
    "carriage returns": lambda rows: lines(rows).replace(b"\n", b"\r\n"),
    "mark, blank lines, no last line end": lambda rows: MARK + b"\n" + lines(rows).replace(b"\n", b"\n\n").rstrip(),
    "two files in one": lambda rows: MARK + lines(rows[:1]) + MARK + lines(rows[1:]),
    "gzip": lambda rows: gzip.compress(lines(rows), mtime=0),
    "array": array,
    "array with mark": lambda rows: MARK + array(rows),
    "array in gzip": lambda rows: gzip.compress(MARK + array(rows), mtime=0),
    "parquet": parquet,
}
"""Form → the same rows as the bytes of a file."""

BROKEN: Mapping[str, tuple[bytes, str]] = {
    "half a pair": (b'{"more": {"deep": ["\\ud83d"]}}', "'more.deep[0]' holds half a surrogate pair"),
    "half a pair, key": (b'{"\\udc00": 1}', "a key holds half a surrogate pair"),
    "not UTF-8": (b'{"more": "caf\xe9"}', "not UTF-8 (byte 0xe9"),
    "UTF-8 of half a pair": (b'{"more": "\xed\xa0\xbd"}', "not UTF-8 (byte 0xed"),
    "nested beyond Python": (b'{"more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "nested deeply": (b'{"more": ' + b'{"a":' * 300 + b"1" + b"}" * 301, "nested too deeply"),
    "list": (b'["text"]', "must be a JSON object, not a list"),
    "text": (b'"text"', "must be a JSON object, not a text"),
    "number": (b"NaN", "must be a JSON object, not a number"),
    "torn": (b'{"more": "te', "not valid JSON"),
    "two rows": (b'{"more": 1} {"more": 2}', "not valid JSON (Extra data"),
    "Python": (b"{'more': None}", "not valid JSON"),
    "endless number": (b'{"more": ' + b"9" * 5000 + b"}", "not valid JSON"),
}
"""Fault → (a line that cannot be read, what the error says about it)."""

UNREADABLE: Mapping[str, tuple[Callable[[Rows], bytes], str]] = {
    "UTF-16": (lambda rows: lines(rows).decode().encode("utf-16"), "is UTF-16, not UTF-8"),
    "UTF-16 in gzip": (
        lambda rows: gzip.compress(lines(rows).decode().encode("utf-16"), mtime=0),
        "is UTF-16, not UTF-8",
    ),
    "zstd": (lambda rows: b"\x28\xb5\x2f\xfd\x04\x00" + lines(rows), "is compressed with zstd"),
    "torn gzip": (lambda rows: gzip.compress(lines(rows), mtime=0)[:-12], "cannot be read"),
    "torn parquet": (lambda rows: parquet(rows)[:-9], "not a Parquet file"),
    "torn array": (lambda rows: array(rows)[:-4], "not valid JSON"),
    "two arrays": (lambda rows: array(rows) + b"\n" + array(rows), "something follows the array"),
    "one object over lines": (lambda rows: json.dumps(rows[0], indent=1).encode(), "one object over several lines"),
}
"""Fault → (rows as a file that cannot be read as a whole, what the error says about it)."""
