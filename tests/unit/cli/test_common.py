import errno
import io
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.table import Table

from megatron_lwz.algorithms.grpo import k3
from megatron_lwz.cli import common, main
from megatron_lwz.cli.progress import RunProgress
from megatron_lwz.errors import ConfigError, LwzError, Resumable
from tests.support.waiting import PATIENCE

URL = f"judge.url=http://host:1/{'x' * 300}"
CONFIG = "run: {dir: somewhere}\nparallel: {tensor: 2}\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def test_load_reads_the_file_and_overrides_win(config):
    loaded = common.load([str(config), "parallel.tensor=4", "run.seed=7"])
    assert (loaded.parallel.tensor, loaded.run.seed, loaded.run.dir) == (4, 7, "somewhere")


def test_options_and_overrides_come_in_any_order(config):
    parser = common.parser("Score.")
    parser.add_argument("--input", required=True)
    loaded, arguments = common.parse(parser, [str(config), "--input", "a.jsonl", "run.seed=9"])
    assert (loaded.run.seed, arguments.input) == (9, "a.jsonl")


@pytest.mark.parametrize("given", ["--files", "--fi"])
def test_overrides_among_the_values_of_an_option_stay_overrides_in_their_order(config, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    Path("a.part=1.jsonl").touch()
    parser = common.parser()
    parser.add_argument("--files", type=Path, nargs="+")
    argv = [str(config), "run.seed=1", given, "run.seed=2", "a.jsonl", URL, "a.part=1.jsonl"]
    loaded, found = common.parse(parser, [*argv, "run.seed=3", "x=y/b.c=d.jsonl"])
    assert [str(path) for path in found.files] == ["a.jsonl", "a.part=1.jsonl", "x=y/b.c=d.jsonl"]
    assert (loaded.run.seed, loaded.judge.url) == (3, URL.partition("=")[2])


def test_an_option_of_which_only_overrides_are_given_lacks_its_values(config, capsys):
    parser = common.parser()
    parser.add_argument("--files", type=Path, nargs="+")
    assert common.run(lambda argv: common.parse(parser, argv), [str(config), "--files", "run.seed=2"]) == 2
    assert "--files: expected at least one argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["parallel.tensr=2"], "did you mean 'tensor'"),
        (["parallel.tensor=two"], "parallel.tensor"),
        (["nonsense"], "section.key=value"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_a_bad_command_line_is_one_line_and_status_2(config, capsys, argv, named):
    assert common.run(common.load, [str(config), *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert named in error


def test_a_missing_config_names_the_file(tmp_path, capsys):
    assert common.run(common.load, [str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    assert common.run(common.load, []) == 2
    assert "CONFIG" in capsys.readouterr().err


def test_traceback_shows_the_stack(config, capsys):
    assert common.run(common.load, [str(config), "--traceback", "grpo.group_size=1"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and "grpo.group_size" in error


def _no_route(_argv):
    raise ConnectionRefusedError(111, "Connection refused")


def test_a_bug_is_not_dressed_up_as_a_user_error():
    with pytest.raises(ZeroDivisionError):
        common.run(lambda _argv: 1 / 0, [])
    with pytest.raises(ConnectionRefusedError):
        common.run(_no_route, [])


def test_a_lack_of_memory_is_one_line_that_says_where(capsys):
    def of_torch(_argv):
        k3(torch.zeros(1).expand(1 << 50))

    def of_python(_argv):
        raise MemoryError

    for fails, said in (
        (of_torch, "error: out of memory in megatron_lwz.algorithms.grpo.k3 (tried"),
        (of_python, "error: out of memory: see"),
    ):
        assert common.run(fails, []) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(said) and "docs/troubleshooting.md" in line
        assert ("(tried to allocate " in line) == (fails is of_torch)
    assert common.run(of_torch, ["--traceback"]) == 2
    assert "DefaultCPUAllocator" in capsys.readouterr().err


def _full_disk(_argv):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_path_that_the_system_refuses_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "file").touch()
    below, folder = tmp_path / "file" / "out.json", tmp_path
    for fails, said in (
        (lambda _argv: below.write_text("x"), f"{below}: cannot be used (Not a directory)"),
        (lambda _argv: folder.read_bytes(), f"{folder}: cannot be used (Is a directory)"),
        (lambda _argv: (tmp_path / ("x" * 300)).touch(), "cannot be used (File name too long)"),
        (_full_disk, "the disk: cannot be used (No space left on device)"),
    ):
        assert common.run(fails, []) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and said in error
        assert common.run(fails, ["--traceback"]) == 2
        assert "Traceback" in capsys.readouterr().err


def test_paths_are_read_alike_by_every_parser(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = common.Parser()
    parser.add_argument("--out", type=Path)
    commands = parser.add_subparsers()
    commands.add_parser("sub").add_argument("--hf", type=Path)
    found = parser.parse_args(["--out", "~/x", "sub", "--hf", "~/y~"])
    assert (found.out, found.hf) == (tmp_path / "x", tmp_path / "y~")
    with pytest.raises(common.UsageError, match="argument --out: an empty path"):
        parser.parse_args(["--out", ""])
    with pytest.raises(common.UsageError, match="an empty path"):
        common.file_path(" ")


def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path):
    common.check_writable(tmp_path / "new.json", "--json")
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "none" / "new.json", "there is no folder")):
        with pytest.raises(common.UsageError, match=f"--json .*{said}"):
            common.check_writable(path, "--json")


def _speak(_argv):
    log = logging.getLogger("megatron_lwz")
    log.info("写 →")
    log.warning("é")
    print("half \ud800", file=sys.stderr)  # not in the log, which pytest-xdist sends as UTF-8
    table = Table(title="写")
    table.add_row("→")
    common.console().print(table)
    print("plain →")
    with RunProgress("写", 1) as progress:
        progress(1, {"é": 0.5})
    raise common.UsageError("写 →")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "\\u5199 \\u2192"), ("latin-1", "\\u5199 \\u2192"), ("utf-8", "写 →")]
)
def test_no_output_fails_on_a_terminal_that_cannot_show_it(monkeypatch, encoding, shown):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    status = common.run(_speak, [])
    out, error = (stream.buffer.getvalue().decode(encoding) for stream in streams.values() if not stream.flush())
    assert status == 2
    assert out.startswith(f"INFO: {shown}\n") and f"plain {shown[-1:] if encoding == 'utf-8' else shown[7:]}\n" in out
    assert error.splitlines()[-1] == f"error: {shown}" and "Logging error" not in error


def _fail(_argv):
    raise ConfigError("parallel.tensor", 3, "must divide")


def test_other_ranks_speak_only_when_rank_zero_did_not_end_them(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(common, "_GRACE_SECONDS", 0.0)
    assert common.run(_fail, []) == 2
    assert capsys.readouterr().err.startswith("error (rank 1): ")

    monkeypatch.setattr(common, "_GRACE_SECONDS", 60.0)
    monkeypatch.setattr(common.time, "sleep", lambda _s: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(0))
    assert common.run(_fail, []) == 2
    assert capsys.readouterr().err == ""


PROGRAM = """
import asyncio, ctypes, queue, signal, sys, threading, time
from megatron_lwz.cli import common
from megatron_lwz.distributed import termination

signal.signal(signal.SIGINT, signal.default_int_handler)  # parallel test processes ignore it, and children inherit
def say(text):
    print(text, flush=True)
def main(argv):
{body}
sys.exit(common.run(main, [], advice="start it again"))
"""
CLEANS_UP = """
    try:
        say("ready")
        time.sleep(60)
    finally:
        say("closing")
        time.sleep(1)
        say("closed")
"""
IN_AN_EVENT_LOOP = """
    async def work():
        asyncio.get_running_loop().call_soon(lambda: say("ready") or time.sleep(60))
        try:
            await asyncio.sleep(60)
        finally:
            say("closed")
    asyncio.run(work())
"""
IN_A_WAIT_THAT_MISSED_IT = """
    def elsewhere():  # to the wait it is the same as a signal that came just before the wait began
        say("ready")
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    threading.Timer(0.5, elsewhere).start()
    try:
        queue.SimpleQueue().get()
    finally:
        say("closed")
"""
PEER_IS_GONE = """
    try:
        say("ready")
        time.sleep(60)
    finally:
        raise RuntimeError("connection closed by peer")
"""
DISK_REFUSES = """
    try:
        say("ready")
        time.sleep(60)
    finally:
        raise common.DataError("journal", "disk full")
"""
IN_A_CALL_THAT_NO_SIGNAL_ENDS = """
    termination.GRACE_SECONDS = 0.5
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    with termination.kept(lambda: say("kept")):
        threading.Timer(0.5, say, ["ready"]).start()  # by then the call has begun: before it the signal would be heard
        library.pthread_mutex_lock(mutex)
"""


def signalled(body: str, *numbers: int) -> tuple[int, list[str], str]:
    """(status, lines said after `ready`, stderr) of a program whose main thread is told to end, once or more often."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)
    out, error = process.communicate(timeout=PATIENCE)
    return process.returncode, out.split(), error


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_cleanup_run_once_however_often_it_comes(number, status):
    name = signal.Signals(number).name
    expected = (status, ["closing", "closed"], f"stopped by {name}: start it again\n")
    assert signalled(CLEANS_UP, number, number, signal.SIGTERM) == expected


def test_a_signal_gets_out_of_an_event_loop():
    assert signalled(IN_AN_EVENT_LOOP, signal.SIGTERM) == (143, ["closed"], "stopped by SIGTERM: start it again\n")


def test_a_signal_that_the_main_thread_missed_comes_again():
    assert signalled(IN_A_WAIT_THAT_MISSED_IT) == (143, ["closed"], "stopped by SIGTERM: start it again\n")


def test_what_fails_after_a_signal_is_its_consequence_but_for_the_disk():
    assert signalled(PEER_IS_GONE, signal.SIGTERM) == (143, [], "stopped by SIGTERM: start it again\n")
    assert signalled(DISK_REFUSES, signal.SIGTERM) == (2, [], "error: journal: disk full\n")


def test_a_process_that_hears_no_signal_keeps_what_it_has_and_ends():
    status, said, error = signalled(IN_A_CALL_THAT_NO_SIGNAL_ENDS, signal.SIGTERM)
    assert (status, said, error) == (143, ["kept", "kept"], "stopped by SIGTERM: start it again\n")


def test_lwz_lists_its_commands_and_refuses_others(capsys):
    main.dispatch([])
    out = capsys.readouterr().out
    assert all(name in out for name in main.COMMANDS)
    with pytest.raises(LwzError, match="no command 'serve'"):
        main.dispatch(["serve"])


def test_lwz_imports_nothing_heavy_before_a_command_is_called():
    code = (
        "import sys; import megatron_lwz.cli.main; print('megatron.core' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False False\n"


def test_a_run_that_must_be_started_again_leaves_a_note_where_a_launch_script_asks_for_one(
    tmp_path, monkeypatch, capsys
):
    def saved(_argv):
        raise Resumable("saved and stopped")

    def broken(_argv):
        raise LwzError("broken")

    note = tmp_path / "unfinished"
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS", raising=False)
    assert common.run(saved, []) == common.UNFINISHED and not note.exists()
    monkeypatch.setenv(common.UNFINISHED_NOTE, str(note))
    assert common.run(broken, []) == common.USER_ERROR and not note.exists()
    assert common.run(saved, []) == common.UNFINISHED and note.read_text() == "saved and stopped\n"
