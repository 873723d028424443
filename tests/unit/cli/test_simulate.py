"""`lwz simulate`: its table, its JSON, and errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_lwz.cli import common, main
from megatron_lwz.planner.simulation.outcome import simulate as outcome
from tests.support.simulated_run import KNOWN, LAW, write_run

GIVEN = ["--decode-rate", "60,30", "--train-seconds", "20", "--sync-seconds", "4"]


URLS = "engine: vllm, urls: ['http://127.0.0.1:1']"


def config_file(folder: Path, rollout: str = URLS, *, group: int = 4, batch: int = 4) -> str:
    file = folder / "config.yaml"
    training = f"training: {{steps: 20, prompts_per_step: {batch}, tokens_per_micro_batch: 16384}}"
    file.write_text(
        f"{{model: {{preset: qwen2.5-7b}}, data: {{prompts: p.jsonl}}, {training}, grpo: {{group_size: {group}}}, "
        f"rollout: {{{rollout}}}}}"
    )
    return str(file)


def simulate(*arguments: str) -> int:
    return common.run(main.dispatch, ["simulate", *arguments])


def test_settings_stand_side_by_side_with_the_best_marked(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.json"
    grid = ["--max-staleness", "0,1,2", "--over-sample", "none,1", "--lengths", "lognormal:1500:0.8"]
    assert simulate(config_file(tmp_path), *GIVEN, *grid, "--json", str(out)) == 0
    said = capsys.readouterr().out
    assert "lengths mean" in said and "given, lognormal:1500:0.8 cut at 14000, prompts of 300 assumed" in said
    assert "60.0 tokens/s of one stream, 30.0 of each of 128 (given)" in said
    assert "at least 24.0 s by the trainer alone" in said and said.count("▸") == 2
    rows = json.loads(out.read_text())
    policies = [(row["setting"]["staleness"], row["setting"]["over_sampling"]) for row in rows]
    assert policies == [(0, None), (1, None), (1, 1.0), (2, None), (2, 1.0)], (
        "no more is carried over than may be stale"
    )
    assert [row["best"] for row in rows].count(True) == 1 and not rows[0]["best"]
    seconds = [row["outcome"]["step_seconds"] for row in rows]
    assert seconds[0] == max(seconds) and rows[0]["outcome"]["trained"] == pytest.approx(20, rel=0.2)


def test_failures_show_what_they_cost_and_what_is_kept(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.json"
    assert simulate(config_file(tmp_path), *GIVEN, "--failures", "0.2", "--repair", "60", "--json", str(out)) == 0
    assert "tokens kept" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())
    assert row["outcome"]["failures"] > 0 and row["outcome"]["moved_tokens"] > 0
    assert row["outcome"]["step_seconds"] > row["without_failures"]["step_seconds"]


def test_more_engine_gpus_write_faster_as_long_as_they_are_the_bottleneck(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.json"
    given = ["--decode-rate", "60", "--sync-seconds", "4", "--train-seconds", "1"]
    seconds = []
    for gpus in ("1", "2"):
        split = ["--gpus", "4", "--engine-gpus", gpus, "rollout.concurrency=4", "--json", str(out)]
        assert simulate(config_file(tmp_path), *given, *split) == 0
        (row,) = json.loads(out.read_text())
        assert (row["engine_gpus"], row["setting"]["engines"]["count"]) == (int(gpus), int(gpus))
        seconds.append(row["outcome"]["step_seconds"])
    assert seconds[0] > 1.3 * seconds[1]
    capsys.readouterr()


def test_a_run_is_measured_and_its_gpus_are_split_anew(tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "run", KNOWN)
    out = tmp_path / "out.json"
    file = config_file(tmp_path, group=LAW.size, batch=KNOWN.batch)
    given = ["--run", str(tmp_path / "run"), "--load-share", "0.25", "--steps", "12", "--json", str(out)]
    assert simulate(file, *given) == 0
    said = capsys.readouterr().out
    assert "lengths mean" in said and "measured, 36 groups" in said and "fits the waits of 11 synchronous steps" in said
    assert "prefixes (assumed, no time beside decoding)" in said and "engines on hold in 25% of it, given" in said
    (row,) = json.loads(out.read_text())
    assert row["outcome"]["step_seconds"] == pytest.approx(outcome(KNOWN, LAW).step_seconds)

    assert simulate(file, *given, "--gpus", "8", "--engine-gpus", "2,4", "--engine-tensor", "2") == 0
    assert "passes scaled from 6 to 4 GPUs" in capsys.readouterr().out
    same, other = json.loads(out.read_text())
    assert same["outcome"] == row["outcome"], "the run had one engine of 2 GPUs"
    assert other["setting"]["engines"]["count"] == 2
    assert other["setting"]["trainer"]["per_token"] == pytest.approx(6 / 4 * KNOWN.trainer.per_token)
    assert other["setting"]["trainer"]["fixed"] == pytest.approx(KNOWN.trainer.fixed)

    assert simulate(file, *given, "--gpus", "2", "--engine-gpus", "1", "--engine-tensor", "2") == 2
    assert "which leaves none that trains" in capsys.readouterr().err
    assert simulate(config_file(tmp_path, group=4), *given) == 2
    assert "have 2 rollouts: use that, or give --lengths" in capsys.readouterr().err


def test_the_bound_counts_only_what_is_trained(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.json"
    assert simulate(config_file(tmp_path), *GIVEN, "--lengths", "exponential:14000", "--json", str(out)) == 0
    assert "at least 24.0 s by the trainer alone" in capsys.readouterr().out, "a third is cut, and has no weight"
    (row,) = json.loads(out.read_text())
    assert row["outcome"]["trained"] == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--run RUN_DIR, --gpus N or all of --decode-rate"),
        (["--gpus", "8", "--engine-gpus", "8", *GIVEN], "--engine-gpus 8: must leave GPUs of the 8"),
        (["--engine-gpus", "8", *GIVEN], "--engine-gpus needs --gpus N"),
        (["--gpus", "8", "--engine-gpus", "2,4", *GIVEN], "--train-seconds is the time on one number of GPUs"),
        (
            ["--gpus", "8", "--engine-gpus", "3", "--engine-tensor", "2", *GIVEN],
            "3: is no multiple of --engine-tensor 2",
        ),
        (["--lengths", "normal:3"], "unknown law 'normal'"),
        (["--max-staleness", "1,x"], "'x' is no whole number"),
        (["--over-sample", "2", *GIVEN], "--over-sample 2: at most --max-staleness = 0 batches"),
        (["--decode-rate", "30,60"], "30,60: write R or R,R"),
        (["--max-staleness", "1", "grpo.mismatch=none", *GIVEN], "config key 'rollout.max_staleness' = 1"),
        (["--gpus", "4", "--engine-gpus", "2", "rollout.colocated=true", *GIVEN], "--engine-gpus: leave it out"),
        (["--load-share", "2"], "2: must be from 0 to 1"),
        (
            ["--lengths", "constant:90000", *GIVEN],
            "--train-seconds: nothing is trained, because every rollout is masked",
        ),
        (["--run", "nowhere"], "nowhere"),
        (["--run", "nowhere", "--barren", "0.1"], "--prompt-tokens, --barren: the run says it"),
        (["--run", "nowhere", "--gpus", "8"], "name the split of the GPUs too, --engine-gpus N"),
        (["--json", "no/folder.json"], "--json no/folder.json: there is no folder"),
    ],
)
def test_an_error_is_one_line_with_status_2(tmp_path: Path, options: list[str], said: str, capsys) -> None:
    assert simulate(config_file(tmp_path), *options) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_engines_that_share_gpus_cannot_run_ahead(tmp_path: Path, capsys) -> None:
    file = config_file(tmp_path, "engine: vllm, urls: ['http://127.0.0.1:1'], colocated: true")
    assert simulate(file, *GIVEN, "--max-staleness", "0,1") == 2
    assert "rollout.colocated" in capsys.readouterr().err
