"""The file that lists a run's engines. It is read again whenever it changes."""

from __future__ import annotations

from pathlib import Path

from megatron_lwz.errors import DataError, refusal
from megatron_lwz.http.session import is_address
from megatron_lwz.reading import read_text


class EngineList:
    """Reads the list of engines in `path`: one URL per line. Empty lines and text after a `#` are ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> tuple[str, ...] | None:
        """Returns the URLs, each once, in order. None if the file has not changed since the last call, valid or not.

        Raises DataError for a line that is no address, and for a file that cannot be read.
        """
        try:
            stat = self.path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return None
            text = read_text(self.path)
        except OSError as error:
            raise DataError(self.path, f"rollout.engines_file cannot be read {refusal(error)}") from error
        self._seen = seen
        urls: dict[str, None] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            url = line.split("#", 1)[0].strip().rstrip("/")
            if not url:
                continue
            if not is_address(url):
                raise DataError(self.path, f"{url[:80]!r} is no address: write http://host:port", line=number)
            urls[url] = None
        return tuple(urls)
