"""`lwz doctor`: what it finds on this machine, and what it says where something is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import socket
from pathlib import Path

import pytest
import torch

from megatron_lwz.cli import common, doctor
from megatron_lwz.cli import doctor_checks as checks


def found(findings) -> dict[str, checks.Finding]:
    return {finding.name: finding for finding in findings}


def test_a_machine_that_runs_the_tests_has_no_fault(capsys, tmp_path):
    assert common.run(doctor.main, ["--dir", str(tmp_path), "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {row["state"] for row in rows.values()} <= {"ok", "note"}
    assert f"torch {torch.__version__}" in rows["packages"]["found"] and rows["run folders"]["state"] == "ok"
    assert {
        "Python",
        "CPU",
        "C++ kernel",
        "memory",
        "disk",
        "/dev/shm",
        "open files",
        "loopback",
        "vLLM",
    } <= rows.keys()
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"
    assert common.run(doctor.main, ["--dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith(("ok ", "note "))]) == len(rows)


def test_a_fault_is_said_where_it_was_found_and_sets_the_exit_status(capsys, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["torch>=99", "no-such-package>=1", "rich>=13"])
    assert common.run(doctor.main, ["--dir", "/proc"]) == 2
    out, error = capsys.readouterr()
    assert f"fault torch                {torch.__version__}\n" in out and '-> pip install "torch>=99"' in out
    assert "fault no-such-package      not installed" in out and "fault run folders" in out
    assert (
        error.startswith("error: this machine is not ready: torch, no-such-package, run folders")
        and error.count("\n") == 1
    )


def test_a_folder_that_is_not_there_is_one_line(capsys):
    assert common.run(doctor.main, ["--dir", "/nowhere"]) == 2
    assert capsys.readouterr().err == "error: --dir /nowhere: no such folder\n"


@pytest.mark.parametrize(
    ("devices", "visible", "cuda", "said", "state", "words"),
    [
        ([], None, None, [], "ok", "none: every stage runs on the CPU"),
        (["nvidia0"], "", "13.0", [], "note", "hidden by CUDA_VISIBLE_DEVICES"),
        (["nvidia0"], None, None, [], "fault", "torch is a build for CPUs"),
        (["nvidia0"], None, "13.0", ["The NVIDIA driver\nis too old"], "fault", "The NVIDIA driver is too old"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_explained(monkeypatch, devices, visible, cuda, said, state, words):
    monkeypatch.setattr(Path, "glob", lambda *_: iter(devices))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (finding,) = checks._without_gpu(cuda, said)
    assert finding.state == state and words in finding.found and bool(finding.advice) == (state != "ok")


def test_low_limits_and_a_host_without_an_address_are_notes(monkeypatch):
    def no_address(_):
        raise socket.gaierror("unknown")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(socket, "gethostbyname", no_address)
    system = found(checks.system())
    assert system["open files"] == checks.Finding("note", "open files", "256 at most", "ulimit -n 4096")
    assert system["host name"].state == "note" and "GLOO_SOCKET_IFNAME" in system["host name"].advice
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "127.0.1.1")
    assert "other nodes cannot reach it" in found(checks.system())["host name"].advice
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "10.0.0.5")
    assert found(checks.system())["host name"].state == "ok"
