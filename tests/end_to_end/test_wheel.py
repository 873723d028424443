"""The wheel alone, in an environment without the checkout: its commands, a plan, and a tiny run from end to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_lwz.metrics import read_metrics
from megatron_lwz.rehearsal.shim import SOURCE
from tests.support.files import write_jsonl
from tests.support.grpo_runs import write_example
from tests.support.paths import ROOT

pytestmark = pytest.mark.long
LEFT_OUT = ("__pycache__", ".pytest_cache", "*.so")
OURS = ("megatron_lwz", "__editable__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("megatron_lwz", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [*build, "--wheel-dir", str(folder / "dist"), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment with the wheel, and links to the packages that it needs."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, symlinks=True, with_pip=False)
    installed = Path(sysconfig.get_paths()["purelib"])
    site = folder / installed.relative_to(sys.prefix)
    for entry in installed.iterdir():
        if not entry.name.startswith(OURS):
            (site / entry.name).symlink_to(entry)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--quiet", str(wheel)], check=True, capture_output=True)
    return folder / "bin"


def ran(scripts: Path, place: Path, command: Sequence[object]) -> str:
    """Runs a command of the environment in `place`, outside the checkout. Returns what it says."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    there = kept | {"PATH": f"{scripts}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    words[0] = str(scripts / words[0])
    done = subprocess.run(words, cwd=place, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {(done.stdout + done.stderr)[-4000:]}"
    return done.stdout


def test_every_file_beside_the_modules_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    files = {file for file in (ROOT / "megatron_lwz").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    wanted = {file.relative_to(ROOT).as_posix() for file in files if file.suffix not in (".so", ".md")}
    assert wanted <= set(names) and any(name.endswith(".so") for name in names)
    assert SOURCE.relative_to(ROOT).as_posix() in names


def test_a_tiny_run_from_end_to_end(scripts: Path, tmp_path: Path) -> None:
    def run(*command: object) -> str:
        return ran(scripts, tmp_path, command)

    assert "lwz" in run("lwz", "--help")
    where = run("python", "-c", "import megatron_lwz; print(megatron_lwz.__file__); megatron_lwz.grpo_loss")
    assert where.startswith(str(scripts.parent))
    assert all(json.loads(line)["state"] != "fault" for line in run("lwz", "doctor", "--json").splitlines())
    config = write_example(tmp_path)
    assert "max_staleness" in run("lwz", "config", "show", config)
    assert "the config:" in run("lwz", "plan", config, "--gpus", "2", "--gpu", "h100-80g", "--no-search")

    write_jsonl(tmp_path / "texts.jsonl", [{"text": f"document {i} " * 9} for i in range(40)])
    (tmp_path / "spec.yaml").write_text(
        "tokenizer: .\nduplicates: {exact: false, near: false}\nsources:\n- {name: a, paths: [texts.jsonl]}\n"
    )
    run("lwz", "corpus", "spec.yaml", "--out", "corpus", "--workers", "1")
    options = [
        "data.corpus=[corpus/manifest.json]",
        "run.dir=pretrained",
        "training.steps=2",
        "training.sequence_length=64",
    ]
    run("python", "-m", "megatron_lwz.cli.pretrain", config, *options)
    run("lwz", "convert", "export", "--checkpoint", "pretrained", "--out", "hf")
    assert "all" in run("lwz", "convert", "verify", "--hf", "hf", "--checkpoint", "pretrained", "--length", "32")
    model = ["model.architecture=null", "model.hf=hf", "run.dir=trained", "reward.functions=[]"]
    run("python", "-m", "megatron_lwz.cli.train_grpo", config, *model)
    assert read_metrics(tmp_path / "trained" / "metrics.jsonl")
    assert (tmp_path / "trained" / "report.html").exists()
    assert "trained" in run("lwz", "runs", ".") and "report.html" in run("lwz", "report", "trained")
    summary = json.loads((tmp_path / "trained" / "summary.json").read_text())
    assert summary["steps"] > 0
    row = {
        "conversation_id": "a",
        "conversation": [{"role": "user", "content": "Write a story of 900 words about bees."}],
    }
    write_jsonl(tmp_path / "requests.jsonl", [row])
    run(
        "lwz",
        "prompts",
        "--input",
        "requests.jsonl",
        "--output",
        "new.jsonl",
        "--rules-only",
        "--shortest-request",
        "0",
    )
    assert "bees" in (tmp_path / "new.jsonl").read_text()
    assert "products only" in run("lwz", "bench-kernels", "--shapes", "32x16x64", "--repeats", "1")
