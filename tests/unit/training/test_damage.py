"""Damage to the files that a run resumes from is named in one line, or the run goes on exactly as without it."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_lwz.config import load_config, save_config
from megatron_lwz.distributed import launch
from megatron_lwz.errors import CheckpointError, DamagedCheckpoint, DataError, LwzError
from megatron_lwz.metrics import torn
from megatron_lwz.run_paths import RunPaths, step_name
from megatron_lwz.training.attempts import append_attempt
from megatron_lwz.training.checkpoint import latest, load_checkpoint
from megatron_lwz.training.checkpoint_saver import CheckpointSaver
from megatron_lwz.training.checkpoint_sums import SUMS_FILE, check_files
from megatron_lwz.training.resume import check_records, keep_damaged, restore
from megatron_lwz.training.supervised import cursor_of
from tests.unit.training.tiny_state import config_of, live_tensors, state_of

FILES = (
    "__0_0.distcp", ".metadata", "metadata.json", "common.pt", "state.json", SUMS_FILE, "random_00000.safetensors",
)  # fmt: skip
STEPS = (2, 4)
ROWS = "".join(json.dumps({"step": step, "loss": step / 8}) + "\n" for step in range(1, 5))


@pytest.fixture(autouse=True, scope="module")
def groups() -> Iterator[None]:
    yield
    launch.shutdown()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints of steps 2 and 4: every value of step s is s."""
    run = RunPaths(tmp_path_factory.mktemp("damage") / "run")
    state = state_of(config_of())
    with CheckpointSaver(state, run.checkpoints) as saver:
        for state.step in STEPS:
            for tensor in live_tensors(state):
                tensor.fill_(float(state.step))
            saver.save({"cursor": state.step})
            saver.wait()
    run.metrics.write_text(ROWS)
    run.attempts.write_text("".join(json.dumps({"attempt": number, "step": 0}) + "\n" for number in range(3)))
    return run.root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunPaths:
    shutil.copytree(made, tmp_path / "run")
    return RunPaths(tmp_path / "run")


def restored(run: RunPaths) -> int:
    """The step that a start continues from; weights, optimizer and data cursor are exactly that step's."""
    state = state_of(config_of())
    extra = restore(state, run)
    assert extra == {"cursor": state.step}
    assert all(torch.equal(tensor, torch.full_like(tensor, float(state.step))) for tensor in live_tensors(state))
    return state.step


def flip(path: Path, seed: int, *, most: int = 64) -> None:
    """Changes 1 to `most` bytes next to each other."""
    choice, data = random.Random(f"{path.name}/{seed}"), bytearray(path.read_bytes())
    size = min(choice.randint(1, most), len(data))
    begin = choice.randrange(len(data) - size + 1)
    for place in range(begin, begin + size):
        data[place] ^= choice.randint(1, 255)
    path.write_bytes(data)


def one_line(error: LwzError, name: str) -> bool:
    return name in str(error) and "\n" not in str(error)


def test_every_file_of_a_checkpoint_has_a_checksum(run: RunPaths) -> None:
    folder = run.checkpoint(4)
    listed = json.loads((folder / SUMS_FILE).read_text())["files"]
    assert listed.keys() == {path.name for path in folder.iterdir()} - {SUMS_FILE} == set(FILES) - {SUMS_FILE}
    assert {name: entry["size"] for name, entry in listed.items()} == {
        name: (folder / name).stat().st_size for name in listed
    }


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flip 0", "flip 1", "cut", "emptied", "removed"])
def test_a_damaged_file_is_named_and_the_run_goes_back_to_the_checkpoint_before(
    run: RunPaths, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    path = run.checkpoint(4) / file
    if damage.startswith("flip"):
        flip(path, int(damage[-1]))
    elif damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else b"")
    damaged = {found.name: found.read_bytes() for found in run.checkpoint(4).iterdir()}
    with caplog.at_level(logging.WARNING):
        assert restored(run) in (2, 4)
    if file == SUMS_FILE and not caplog.messages:  # a byte between two values: the sums are the same
        return
    said, consequence = caplog.messages
    assert step_name(4) in said and file in said and "\n" not in said
    assert "goes back to step_00000002: 2 steps (3 to 4) are trained again" in consequence
    keep_damaged(run.checkpoints, 2)
    assert latest(run.root) == run.checkpoint(2)
    kept = run.checkpoint(4).with_name("step_00000004.damaged")
    assert {found.name: found.read_bytes() for found in kept.iterdir()} == damaged, "nothing is lost"
    assert restored(run) == 2


@pytest.mark.parametrize("file", ["state.json", SUMS_FILE])
def test_a_cut_at_any_byte_is_named(run: RunPaths, file: str) -> None:
    path = run.checkpoint(4) / file
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            check_files(path.parent, contents=True)
        except DamagedCheckpoint as error:
            assert one_line(error, file), size
        else:
            assert file == SUMS_FILE and whole[size:].isspace(), size
    path.write_bytes(whole)
    check_files(path.parent, contents=True)


def as_of_an_earlier_version(folder: Path) -> Path:
    """Without checksums, and without the word in state.json that there are some."""
    (folder / SUMS_FILE).unlink()
    record = json.loads((folder / "state.json").read_text())
    del record["checksums"]
    (folder / "state.json").write_text(json.dumps(record))
    return folder


def test_a_checkpoint_of_an_earlier_version_loads_and_says_so(run: RunPaths, caplog: pytest.LogCaptureFixture) -> None:
    folder = as_of_an_earlier_version(run.checkpoint(4))
    with caplog.at_level(logging.WARNING):
        assert restored(run) == 4
    assert caplog.messages == [f"{folder} has no {SUMS_FILE} (an earlier version wrote it): it is read without a check"]


@pytest.mark.parametrize("file", [name for name in FILES if name != SUMS_FILE])
@pytest.mark.parametrize("removed", [False, True])
def test_what_an_earlier_version_wrote_is_one_line_too(run: RunPaths, file: str, removed: bool) -> None:
    path = as_of_an_earlier_version(run.checkpoint(4)) / file
    path.unlink() if removed else path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    state = state_of(config_of())
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(state, path.parent)
    assert one_line(raised.value, "weights only" if file == "state.json" and removed else str(path.parent))


@pytest.mark.parametrize(
    "record",
    [[], {}, 3, {"step": "4"}, {"step": True, "layout": {}, "extra": {}}, {"step": 4, "layout": {}, "extra": None}],
)
def test_a_state_of_another_shape_is_one_line(run: RunPaths, record: object) -> None:
    path = as_of_an_earlier_version(run.checkpoint(4)) / "state.json"
    path.write_text(json.dumps(record))
    with pytest.raises(DamagedCheckpoint) as raised:
        load_checkpoint(state_of(config_of()), path.parent)
    assert one_line(raised.value, "state.json")


def test_sizes_alone_see_a_cut_and_not_a_flip(run: RunPaths) -> None:
    path = run.checkpoint(4) / "__0_0.distcp"
    flip(path, 0)
    check_files(path.parent, contents=False)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint, match=r"__0_0\.distcp has [0-9]+ bytes, [0-9]+ were written"):
        check_files(path.parent, contents=False)


def test_without_a_whole_checkpoint_nothing_is_changed_and_one_line_names_every_fault(run: RunPaths) -> None:
    flip(run.checkpoint(2) / "common.pt", 0)
    shutil.rmtree(run.checkpoint(4))
    before = sorted(run.root.rglob("*"))
    with pytest.raises(CheckpointError) as raised:
        restored(run)
    assert one_line(raised.value, "step_00000004: the folder is missing; step_00000002: common.pt is not")
    assert sorted(run.root.rglob("*")) == before


def test_damaged_ones_do_not_take_each_other_s_name(run: RunPaths) -> None:
    for count in (1, 2):
        if count == 2:
            shutil.copytree(run.checkpoint(2), run.checkpoint(4))
            run.latest.write_text(step_name(4))
        keep_damaged(run.checkpoints, 2)
    names = {path.name for path in run.checkpoints.iterdir()}
    assert names == {"latest", "step_00000002", "step_00000004.damaged", "step_00000004.damaged.2"}


@pytest.mark.parametrize("content", [b"", b"step_4", b"../other", b"step_00000004\0", b"\xff\xfe", b"step_00000004\nx"])
def test_a_pointer_that_names_no_checkpoint_is_one_line(run: RunPaths, content: bytes) -> None:
    run.latest.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        latest(run.root)
    assert one_line(raised.value, str(run.latest)) and "step_00000002, step_00000004" in str(raised.value)


def test_a_pointer_to_a_checkpoint_that_is_gone_falls_back_and_a_lost_pointer_is_found_again(run: RunPaths) -> None:
    run.latest.write_text(step_name(9))
    assert restored(run) == 4
    run.latest.unlink()
    assert restored(run) == 4
    keep_damaged(run.checkpoints, 4)
    assert run.latest.read_text() == step_name(4)


@pytest.mark.parametrize("seed", range(12))
def test_flips_in_the_records_are_one_line_or_change_nothing(
    run: RunPaths, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    for path in (run.metrics, run.attempts, run.latest):
        flip(path, seed, most=4)
    try:
        check_records(run)
    except DataError as error:
        assert one_line(error, "metrics.jsonl")
    assert append_attempt(run.attempts, 4, {}) >= 2 and run.attempts.read_bytes().endswith(b"\n")
    try:
        assert restored(run) in STEPS
    except CheckpointError as error:
        assert one_line(error, "latest")


def test_lines_that_a_kill_cut_off_are_dropped_and_counted(run: RunPaths, caplog: pytest.LogCaptureFixture) -> None:
    for path in (run.metrics, run.attempts):
        path.write_bytes(path.read_bytes() + b'{"attempt": 3, "st')
    with caplog.at_level(logging.WARNING):
        check_records(run)
        assert append_attempt(run.attempts, 4, {}) == 3
    assert sum("cut off by a kill: its 18 bytes are" in message for message in caplog.messages) == 2
    assert [json.loads(line)["attempt"] for line in run.attempts.read_text().splitlines()] == [0, 1, 2, 3]


def test_a_bad_line_in_the_middle_is_an_error_of_the_metrics_and_counted_as_a_start(
    run: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (run.metrics, run.attempts):
        first, rest = path.read_text().split("\n", 1)
        path.write_text(f"{first}\n\x00\xf0{rest}")
    with pytest.raises(DataError) as raised:
        check_records(run)
    assert one_line(raised.value, "metrics.jsonl, line 2")
    with caplog.at_level(logging.WARNING):
        assert append_attempt(run.attempts, 4, {}) == 3
    assert "attempts.jsonl, line 2: not as a run wrote it" in caplog.messages[0]


def test_a_last_line_without_its_end_stays(run: RunPaths) -> None:
    run.attempts.write_bytes(run.attempts.read_bytes()[:-1])
    run.metrics.write_bytes(run.metrics.read_bytes()[:-1])
    assert (torn(run.attempts), torn(run.metrics)) == (0, 0)
    assert append_attempt(run.attempts, 4, {}) == 3
    assert [json.loads(line)["attempt"] for line in run.attempts.read_text().splitlines()] == [0, 1, 2, 3]


def test_flips_in_the_settings_are_one_line_or_are_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(config_of(), path)
    whole, refused = path.read_bytes(), 0
    for seed in range(60):
        flip(path, seed, most=4)
        try:
            load_config(tmp_path)
        except LwzError as error:
            refused += 1
            assert "\n" not in str(error), seed
        path.write_bytes(whole)
    assert refused > 20


def test_the_cursor_of_another_stage_is_one_line(run: RunPaths) -> None:
    assert cursor_of({"cursor": 4}, run) == 4
    for position in ({"prompts": 4}, {"cursor": "4"}):
        with pytest.raises(CheckpointError, match="of another stage"):
            cursor_of(position, run)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(300))
def test_campaign_of_flips(run: RunPaths, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    file = FILES[seed % len(FILES)]
    flip(run.checkpoint(4) / file, seed)
    with caplog.at_level(logging.WARNING):
        step = restored(run)
    assert (step == 2 and file in caplog.messages[0]) or (step == 4 and file == SUMS_FILE and not caplog.messages)
