"""The run's own server is kept running (orchestrator/reward_server.py)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.orchestrator.reward_server import RESTARTS, kept_running
from tests.support.waiting import wait_for

ANSWERS = """
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
print("it begins", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


class Servers:
    """Makes the server and its successors, and keeps them all."""

    def __init__(self, log_path: Path) -> None:
        self.log_path, self.port, self.made, self.script = log_path, free_port(), list[ServerProcess](), ANSWERS

    def make(self, _predecessor: ServerProcess | None = None) -> ServerProcess:
        server = ServerProcess(
            [sys.executable, "-c", self.script, str(self.port)], url=f"http://127.0.0.1:{self.port}", token=None,
            env=dict(os.environ), log_path=self.log_path,
        )  # fmt: skip
        self.made.append(server)
        return server


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(tmp_path / "log")


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_ended_or_is_stuck_is_started_again_at_the_same_address(
    servers: Servers, fault: signal.Signals
) -> None:
    first = servers.make()
    first.start()
    first.wait_ready()
    with kept_running(first, servers.make, check_seconds=0.02, answer_seconds=0.2):
        os.kill(first.pid or 0, fault)
        wait_for(lambda: len(servers.made) > 1 and servers.made[-1].healthy(), seconds=60)
        assert not first.alive() and len(servers.made) == 2
    assert not any(server.alive() for server in servers.made)


def test_one_that_ends_at_once_is_given_up(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    first = servers.make()
    first.start()
    first.wait_ready()
    servers.script = "print('no memory')"
    with kept_running(first, servers.make, check_seconds=0.02):
        os.kill(first.pid or 0, signal.SIGKILL)
        wait_for(lambda: "it is given up" in caplog.text, seconds=60)
    assert len(servers.made) == 1 + RESTARTS
    assert f"has ended {RESTARTS + 1} times in a row" in caplog.text and "no memory" in caplog.text
