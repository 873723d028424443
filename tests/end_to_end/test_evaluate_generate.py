"""`lwz evaluate generate` with a real engine that it starts itself, and with a kill in the middle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.evaluate_runs import kill_when, mistake, run
from tests.support.engine_model import write_engine_model
from tests.support.files import write_jsonl
from tests.support.grpo_runs import ROOT, variables
from tests.support.scripted_server import Scripted, serving


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_engine_model(folder, max_length=160)
    return folder


def prompts(path: Path, count: int) -> Path:
    return write_jsonl(path, [{"id": f"p{n}", "prompt": f"Task {n}", "length": 20} for n in range(count)])


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_engine_is_started_for_a_hugging_face_folder(model, tmp_path):
    output = tmp_path / "out" / "r.jsonl"
    argv = ["generate", prompts(tmp_path / "p.jsonl", 3), "--output", output, "--model", model, "--style", "bare"]
    argv += ["--threads", 1, "--samples", 2, "--preset", "writing-bench", "--concurrency", 4]
    done = run(argv, real=True)  # the real command line, of this command and of its engine
    assert "no top-k" in done.stderr and "6 responses" in done.stdout
    assert "preset writing-bench asks for 16000 tokens, the model has room for" in done.stderr
    rows = rows_of(output)
    assert {(row["id"], row["sample"]) for row in rows} == {(f"p{n}", k) for n in range(3) for k in range(2)}
    for row in rows:
        assert row["template"] == "think" and isinstance(row["raw"], str) and row["finish_reason"] in ("stop", "length")
        assert row["fault"] and row["tokens"] <= 160
    assert "complete" in run(argv).stdout and rows_of(output) == rows


def test_what_the_model_cannot_take_is_refused_before_anything_is_written(model, tmp_path, capsys):
    argv = (
        "generate",
        prompts(tmp_path / "p.jsonl", 2),
        "--output",
        tmp_path / "r.jsonl",
        "--style",
        "bare",
        "--model",
    )
    said = mistake(capsys, *argv, model, "--max-tokens", 150)
    assert "--max-tokens 150: with the" in said and "tokens are more than the 160 of max_position_embeddings" in said
    shutil.copytree(model, tmp_path / "small")
    (tmp_path / "small" / "config.json").write_text((model / "config.json").read_text().replace("320", "319"))
    assert "has ids up to 319" in mistake(capsys, *argv, tmp_path / "small")
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.long
def test_an_engine_is_started_for_a_checkpoint(model, tmp_path):
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "r.jsonl"
    convert = [sys.executable, "tools/convert_hf.py", "import", "--hf", str(model), "--out", str(checkpoint)]
    subprocess.run(convert, cwd=ROOT, env=variables(), check=True, capture_output=True, timeout=300)
    argv = ["generate", prompts(tmp_path / "p.jsonl", 2), "--output", output, "--style", "bare", "--max-tokens", 20]
    for folder in (checkpoint, model):
        output.unlink(missing_ok=True)
        run([*argv, "--threads", 1, "--model", folder])
        rows = {row["id"]: row["raw"] for row in rows_of(output)}
        assert len(rows) == 2
        if folder == checkpoint:
            exported = rows
    assert rows == exported, "the same weights and seeds write the same"
    assert not list(tmp_path.glob("export-*"))


def test_a_kill_in_the_middle_loses_and_repeats_nothing(tmp_path):
    server = Scripted(lambda prompt, _: f"reply to {prompt}", delay=0.05)
    output = tmp_path / "r.jsonl"
    with serving(server):
        argv = ["generate", prompts(tmp_path / "p.jsonl", 60), "--output", output, "--url", server.url]
        argv += ["--served-model", "m", "--concurrency", 2]

        def lines() -> int:
            return len(output.read_bytes().splitlines()) if output.exists() else 0

        for kept in (5, 20):
            kill_when(argv, lambda kept=kept: lines() >= kept)
            assert kept <= lines() < 60
        run(argv)
    rows = rows_of(output)
    assert sorted(row["id"] for row in rows) == sorted(f"p{n}" for n in range(60))
    assert all(row["response"] == f"reply to {row['prompt']}" for row in rows)
    assert len(server.bodies) <= 60 + 2 * 2, "only what was under way at a kill is asked for again"


def test_a_kill_in_the_middle_of_completions_loses_nothing_that_was_on_disk(tmp_path):
    story = "".join(f"sentence {n} of it. " for n in range(60))

    def rest(prompt: str, _: int) -> str:
        return story[len(prompt.partition("<|assistant|>:")[2]) :]

    server = Scripted(rest, pace=0.05)
    output, partial = tmp_path / "r.jsonl", tmp_path / "r.jsonl.partial.jsonl"
    with serving(server):
        argv = ["generate", prompts(tmp_path / "p.jsonl", 2), "--output", output, "--url", server.url]
        argv += ["--served-model", "m", "--template", "direct", "--style", "bare"]
        kill_when(argv, lambda: partial.exists() and len(partial.read_bytes().splitlines()) >= 5)
        kept: dict[str, str] = {}
        for row in rows_of(partial)[1:]:
            kept[row["id"]] = kept.get(row["id"], "") + row["text"]
        assert all(0 < len(text) < len(story) for text in kept.values()) and not output.read_bytes()
        server.pace = 0.0
        run(argv)
    assert {row["id"]: row["raw"] for row in rows_of(output)} == {"p0": story, "p1": story}
    again = [body["prompt"].partition("<|assistant|>:")[2] for body in server.bodies[2:]]
    assert sorted(again) == sorted(kept.values()), "what was on disk is the end of the prompt, and not paid again"
    assert not partial.exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "give --url and --served-model, or --model"),
        (("--url", "http://x"), "--served-model"),
        (("--model", "/nowhere"), "/nowhere: no such folder"),
        (("--model", "."), "neither a Hugging Face folder nor a checkpoint"),
        (("--url", "http://127.0.0.1:9", "--served-model", "m", "--retries", "0"), "http://127.0.0.1:9"),
        (("--url", "x", "--served-model", "m"), "x: not an address"),
        (("--url", "http://x", "--served-model", "m", "--samples", "0"), "must be at least 1"),
        (("--url", "http://x", "--served-model", "m", "--preset", "best"), "writing-bench"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, argv, said):
    argv = [str(tmp_path) if text == "." else text for text in argv]
    fixed = ("generate", prompts(tmp_path / "p.jsonl", 2), "--output", tmp_path / "r.jsonl")
    assert said in mistake(capsys, *fixed, *argv)
    assert (tmp_path / "r.jsonl").exists() == ("--retries" in argv), "a file for responses, once a server is asked"
