"""Starts a server as a child process, waits until it answers, and stops it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from megatron_lwz.errors import EngineError, refusal
from megatron_lwz.http.orphan import dying_with_us
from megatron_lwz.private_files import make_private

LOG_LINES_SHOWN = 5


class ServerProcess:
    """A server as a child process. It ends with the thread that started it, so start it from the main thread.

    `env` is the child's whole environment. Its output is appended to `log_path`. The child leads its own session, so
    Ctrl-C in the terminal reaches only the trainer, which then stops its servers in order.
    """

    def __init__(
        self, command: Sequence[str], *, url: str, token: str | None, env: Mapping[str, str], log_path: Path
    ) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self._command = list(command)
        self._env = dict(env)
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def port(self) -> int | None:
        """Port in the URL, None if it has none."""
        return urlsplit(self.url).port

    @property
    def pid(self) -> int | None:
        """Process id, None before `start`."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the command. Raises EngineError if it is running already or cannot be started."""
        if self.alive():
            raise EngineError(self.url, f"already started as process {self.pid}")
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        make_private(self._log_path)
        with self._log_path.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    dying_with_us(self._command),
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise EngineError(self.url, f"cannot start {self._command[0]} {refusal(error)}") from error

    def alive(self) -> bool:
        """Returns whether the process runs (it may not answer yet)."""
        return self._process is not None and self._process.poll() is None

    def wait_ready(self, timeout: float = 120.0, *, interval: float = 0.1) -> None:
        """Polls /health until it answers 200. Raises EngineError with the end of the log if the child dies or hangs."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.alive():
                code = self._process.returncode if self._process else None
                raise EngineError(self.url, f"the server ended with status {code}; {self.last_words()}")
            if self.healthy():
                return
            time.sleep(interval)
        raise EngineError(self.url, f"no answer within {timeout:.0f} s; {self.last_words()}")

    def healthy(self, timeout: float = 2.0) -> bool:
        """Returns whether /health answers 200 now."""
        try:
            with self._opener.open(f"{self.url}/health", timeout=timeout) as answer:
                return answer.status == 200
        except (OSError, ValueError):
            return False

    def stop(self, timeout: float = 10.0) -> None:
        """Sends SIGTERM to the server and its children, SIGKILL after `timeout` seconds. No effect if they ended."""
        if self._process is None:
            return
        for number, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, None)):
            # The session leader may have ended while its children live, so the group is signalled in any case.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
                if number == signal.SIGKILL:
                    return

    def last_words(self) -> str:
        """Returns the end of the server's log, in one line."""
        with self._log_path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 16384))
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        said = " | ".join(lines[-LOG_LINES_SHOWN:]) or "it said nothing"
        return f"last lines of {self._log_path}: {said}"
