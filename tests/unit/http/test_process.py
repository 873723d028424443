from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lwz.errors import EngineError
from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess
from tests.support.waiting import wait_for

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def server(tmp_path: Path, code: str) -> ServerProcess:
    port = free_port()
    command = [sys.executable, "-c", code, str(port)]
    url = f"http://127.0.0.1:{port}"
    return ServerProcess(command, url=url, token=None, env=dict(os.environ), log_path=tmp_path / "logs" / "engine.log")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_server_starts_answers_and_stops(tmp_path):
    process = server(tmp_path, SERVER)
    assert not process.alive() and process.pid is None
    process.start()
    process.wait_ready(60)
    assert process.alive() and process.healthy()
    with pytest.raises(EngineError, match="already started"):
        process.start()
    pid = process.pid
    process.stop()
    assert not process.alive() and not process.healthy() and gone(pid)
    process.stop()


def test_a_server_that_dies_shows_its_last_words(tmp_path):
    process = server(tmp_path, "import sys; print('loading'); print(); sys.exit('no such model: ü')")
    process.start()
    with pytest.raises(EngineError, match=r"status 1; last lines of .*engine.log: loading \| no such model: ü$"):
        process.wait_ready(60)


def test_a_server_that_never_answers_is_named(tmp_path):
    process = server(tmp_path, "import time; time.sleep(60)")
    process.start()
    with pytest.raises(EngineError, match=r"no answer within 0 s; .*it said nothing"):
        process.wait_ready(0.3)
    process.stop()


def test_a_server_deaf_to_sigterm_is_killed(tmp_path):
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    process = server(tmp_path, code)
    process.start()
    wait_for(lambda: "deaf" in (tmp_path / "logs" / "engine.log").read_text())
    process.stop(timeout=0.2)
    assert not process.alive()


def test_children_of_the_server_stop_with_it(tmp_path):
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    process = server(tmp_path, code)
    process.start()
    log = tmp_path / "logs" / "engine.log"
    wait_for(lambda: log.read_text().endswith("\n"))
    process.stop()
    wait_for(lambda: gone(int(log.read_text())))


def test_a_missing_program_is_named(tmp_path):
    process = ServerProcess(
        ["/no/such/program"], url="http://127.0.0.1:9", token=None, env=dict(os.environ), log_path=tmp_path / "log"
    )
    process.start()
    with pytest.raises(EngineError, match="cannot start /no/such/program: No such file"):
        process.wait_ready(60)


def test_a_server_dies_with_a_killed_parent(tmp_path):
    script = f"""
import os, sys, time
from pathlib import Path
from megatron_lwz.http.process import ServerProcess
command = [sys.executable, "-c", "import time; time.sleep(60)"]
process = ServerProcess(command, url="http://127.0.0.1:9", token=None, env=dict(os.environ), log_path=Path({str(tmp_path / "log")!r}))
process.start()
time.sleep(0.5)
print(process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: gone(child))
