"""The GPU check, rehearsed without a GPU, with the packages of a GPU machine and those that it brings along, no others."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MACHINE = ("torch", "triton", "numpy", "pytest")
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402
import gpu_needs  # noqa: E402


def with_dependencies(names: Sequence[str]) -> set[str]:
    """The distributions and all that they require, as far as installed; names as in the index, normalised."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            todo += [re.match(r"[\w.-]+", line).group() for line in wanted if "extra ==" not in line]
    return found


def make_python(folder: Path, names: set[str]) -> Path:
    """A virtual environment that holds just these distributions, as links to those installed here; its interpreter."""
    venv.create(folder, symlinks=True, with_pip=False)
    installed = Path(sysconfig.get_paths()["purelib"])
    site = folder / installed.relative_to(sys.prefix)
    for name in names:
        tops = {file.parts[0] for file in importlib.metadata.files(name) or ()}
        for top in tops - {".."}:
            if (installed / top).exists() and not (site / top).exists():
                (site / top).symlink_to(installed / top)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def gpu_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = with_dependencies(MACHINE) | {re.sub(r"[-_.]+", "-", name).lower() for name in gpu_needs.carried()}
    return make_python(tmp_path_factory.mktemp("machine") / "venv", names)


def check(
    python: Path, folder: Path, *arguments: str, path: str = "/usr/bin:/bin"
) -> tuple[subprocess.CompletedProcess[str], dict]:
    """Runs the check; returns how it ended and its JSON. `path` without nvcc: that takes a minute, elsewhere tested."""
    command = [str(python), "tools/gpu_check.py", "--device", "cpu", "--work", str(folder / "work"), *arguments]
    command += ["--results", str(folder / "results"), "--wheels", str(folder / "wheels")]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CUDA_HOME")}
    environment |= {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_HOME": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1100)
    file = folder / "results" / "gpu_check.json"
    return done, json.loads(file.read_text()) if file.exists() else {}


@pytest.mark.long
def test_every_part_runs_with_what_a_gpu_machine_has(gpu_machine: Path, tmp_path: Path) -> None:
    done, made = check(gpu_machine, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    statuses = {name: part["status"] for name, part in made["parts"].items()}
    assert statuses == {
        "build": "not run: no nvcc", "tests": "passed", "numerics": "passed", "ratios": "passed", "step": "passed",
    }  # fmt: skip
    page = (tmp_path / "results" / "gpu_check.md").read_text()
    assert "nothing on this page was measured on a GPU" in page and "| met |" not in page and "| missed |" not in page
    for said in (
        "triton, bfloat16, in_forward",
        "grad_norm",
        "forward + backward / products",
        "test_triton_epilogue.py",
        "| dry run, packs filled to the cap | 0.0",
    ):
        assert said in page, said
    assert "| verl (verl) | – | ≥ 2.0 | absent |" in page
    assert done.stdout.index("megatron-core") < done.stdout.index("tests: tests/gpu"), "needs come first"


def test_what_is_missing_is_named_before_anything_runs(tmp_path: Path) -> None:
    python = make_python(tmp_path / "bare", with_dependencies(MACHINE))
    done, made = check(python, tmp_path)
    assert done.returncode == 2 and not made
    assert re.fullmatch(r"error: aiohappyeyeballs: not installed: run `make gpu-check-wheels`.*\n", done.stderr)


def test_a_part_that_fails_is_told_by_the_exit_status_and_leaves_its_output(gpu_machine: Path, tmp_path: Path) -> None:
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho 'no such architecture' >&2\nexit 1\n")
    broken.chmod(0o755)
    done, made = check(gpu_machine, tmp_path, "--part", "build", path=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 1 and "make gpu-check PART=build" in done.stderr
    assert made["parts"]["build"]["status"] == "failed"
    assert "no such architecture" in (tmp_path / "results" / "gpu_check.md").read_text()


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    result = gpu_check.run(gpu_check.Part("numerics", 1, ""), "cuda", tmp_path, gpu_needs.environment_for(None))
    assert result["status"] == "out of time" and result["limit"] == 1


def test_an_unknown_part_and_no_gpu_are_user_errors(tmp_path: Path) -> None:
    done, _ = check(Path(sys.executable), tmp_path, "--part", "speed")
    assert done.returncode == 2 and "--part speed is unknown: choose from build,tests" in done.stderr
    done, _ = check(Path(sys.executable), tmp_path, "--device", "cuda")
    assert done.returncode == 2 and "DEVICE=cpu rehearses the check without one" in done.stderr


def test_all_limits_together_are_eight_minutes() -> None:
    assert sum(part.seconds for part in gpu_check.PARTS) <= 480


def test_a_second_try_of_one_part_keeps_the_others(tmp_path: Path) -> None:
    kept = {"status": "passed", "seconds": 3, "limit": 4, "machine": "m", "torch": "t", "date": "d", "commit": "c"}
    kept |= {"failures": [], "tables": [], "log": []}
    for device, names in (("cuda", ["ratios"]), ("cuda", ["ratios", "step"]), ("cpu", ["tests"])):
        results = gpu_check.Results(tmp_path, device=device, needs=[])
        results.put(names[-1], kept)
        assert list(json.loads(results.json.read_text())["parts"]) == names


def test_wheels_are_chosen_by_their_tags_and_unpacked_once(tmp_path: Path) -> None:
    fitting = (
        "a-1-py3-none-any.whl",
        "b-1-cp312-cp312-manylinux_2_28_x86_64.whl",
        "c-1-cp310-abi3-manylinux1_x86_64.whl",
    )
    for name in (*fitting, "d-1-cp311-cp311-manylinux1_x86_64.whl", "e-1-cp313-abi3-manylinux1_x86_64.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(f"{name[0]}.py", "")
    site = gpu_needs.unpack(tmp_path, tag="cp312")
    assert site is not None and sorted(path.stem for path in site.iterdir()) == ["a", "b", "c"]
    (site / "a.py").write_text("x = 1")
    assert gpu_needs.unpack(tmp_path, tag="cp312") == site and (site / "a.py").read_text() == "x = 1"
    assert gpu_needs.unpack(tmp_path / "none") is None
