"""The main job for real: torchrun, Megatron-Core over two tensor-parallel ranks, the embedded engine, the journal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from megatron_lwz.cli import common, train_grpo
from megatron_lwz.config import load_config
from megatron_lwz.config.flops import sequence_flops
from megatron_lwz.kernels.dispatch import BACKENDS
from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout import token_values
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.run_paths import RunPaths
from tests.support import warm
from tests.support.files import contents, stamps
from tests.support.grpo_runs import ROOT, command, train, variables, write_example
from tests.support.traces import CLOCK_US, Trace, read_trace
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an example whose run went through: four steps, two ranks. It was profiled in the middle."""
    folder = tmp_path_factory.mktemp("grpo")
    options = (
        "parallel.tensor=2",
        "kernels.cross_check_interval=2",
        "logging.token_values=2",
        "--profile",
        "steps=2-3",
    )
    said = train(write_example(folder), *options, ranks=2)
    assert f"profile: {folder}/run/profile/steps_2-3.json.gz: open in ui.perfetto.dev" in said
    assert "did not run" not in said
    return folder


def test_run_folder_holds_everything_a_run_promises(undisturbed: Path) -> None:
    run = undisturbed / "run"
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "evaluation.jsonl",
        "summary.json",
        "journal.sqlite",
        "checkpoints",
        "tensorboard",
    ):
        assert (run / name).exists(), name
    assert "<html" in (run / "report.html").read_text()
    assert load_config(run).parallel.tensor == 2
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in read_metrics(run / "evaluation.jsonl")] == [0, 4]
    wanted = "loss grad_norm format_valid length_in_range rollout/mean_length rollout/mean_length_untruncated "
    wanted += (
        "rollout/think_length rollout/truncated kl entropy mismatch/kl tokens_per_second reward/length reward/format"
    )
    assert set(wanted.split()) <= set(rows[-1])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["first"]["loss"] is not None and summary["seconds"] > 0


def test_policy_trains_and_engine_and_trainer_agree_on_logprobs(undisturbed: Path) -> None:
    rows = read_metrics(undisturbed / "run" / "metrics.jsonl")
    assert all(row["grad_norm"] > 0 for row in rows)
    assert all(0 < row["mismatch/difference/max"] <= 1e-4 for row in rows)
    # the engines get every update: were they left behind, old and behaviour log-probs would part
    assert rows[-1]["mismatch/difference/max"] < 1e-4 < abs(rows[0]["entropy"] - rows[-1]["entropy"])


def test_kernels_are_recorded_and_agree_with_the_reference(undisturbed: Path) -> None:
    rows = read_metrics(undisturbed / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "kernels/difference/max" in row] == [2, 4]
    assert all(0 < row["kernels/difference/max"] <= 1e-5 for row in rows[1::2])
    states = sorted((undisturbed / "run" / "checkpoints").glob("step_*/state.json"))
    assert len(states) == 2 and all(json.loads(path.read_text())["kernels"] in BACKENDS for path in states)


def test_every_group_is_trained_once_in_order(undisturbed: Path) -> None:
    with JournalReader(undisturbed / "run" / "journal.sqlite") as journal:
        consumed = journal.consumed()
        groups = list(journal.groups())
        assert journal.checkpoints() == [2, 4]
    assert consumed == {0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 4}
    assert [len(group.rollouts) for group in groups] == [4] * 8
    first_epoch = [group.prompt.id for group in groups[:5]]
    assert sorted(first_epoch) == ["p0", "p1", "p2", "p3", "p4"]


def test_values_of_tokens_and_advantages_are_those_that_the_step_trained_on(undisturbed: Path) -> None:
    run = RunPaths(undisturbed / "run")
    assert sorted(path.name for path in run.token_values_of(4).parent.iterdir()) == ["step_00000002", "step_00000004"]
    row = read_metrics(run.metrics)[3]
    with JournalReader(run.journal) as journal:
        members = [rollout for group in journal.groups(consumed_at=4) for rollout in group.rollouts]
    with closing(sqlite3.connect(run.journal)) as db:
        found = db.execute(
            "SELECT a.value, a.parts FROM advantages a JOIN consumed USING (group_id) WHERE step = 4"
        ).fetchall()
        excluded = {f"{group}-{index}" for group, index in db.execute("SELECT group_id, rollout FROM excluded")}
    assert len(found) == len(members)
    assert all(value == pytest.approx(sum(json.loads(parts).values()), abs=1e-5) for value, parts in found)
    entropy, difference, trained = [], [], set()
    for rollout in members:
        place, count = tuple(int(part) for part in rollout.id.split("-")), len(rollout.tokens)
        values = token_values.read(
            run.token_values_of(4), *place, prompt_tokens=len(rollout.prompt_tokens), tokens=count
        )
        if values is not None:
            trained.add(rollout.id)
            entropy += values.entropy.tolist()
            difference += values.difference.tolist()
    assert trained == {rollout.id for rollout in members} - excluded and trained
    assert len(entropy) == row["trained_tokens"]
    assert sum(entropy) / len(entropy) == pytest.approx(row["entropy"], rel=1e-3)
    assert max(map(abs, difference)) == pytest.approx(row["mismatch/difference/max"], rel=1e-3)


@pytest.fixture(scope="module")
def trace(undisturbed: Path) -> Trace:
    files = sorted(path.name for path in (undisturbed / "run" / "profile").iterdir())
    assert files == ["steps_2-3.json.gz", "steps_2-3.summary.json"]
    return read_trace(undisturbed / "run" / "profile" / files[0])


def test_a_profile_has_every_phase_of_its_steps_and_the_operators_of_its_rank(trace: Trace) -> None:
    names = sorted(trace.named("process_name").values())
    assert [name.partition(" http")[0] for name in names if "operators" not in name] == [
        "engine",
        "rank 0: trainer",
        "rewards",
    ]
    assert all(name.startswith("rank 0: operators") for name in names if "operators" in name)
    phases, sync = trace.spans("rank 0: trainer", "phases"), trace.spans("rank 0: trainer", "weight sync")
    operators = trace.spans("rank 0: operators")
    steps = trace.spans("rank 0: trainer", "steps")
    assert [step["name"] for step in steps] == ["step 2", "step 3"]
    for step in steps:
        inside = [phase["name"] for phase in trace.within(step, phases)]
        asked = ["rollout", "logprobs", "update", "rollout", "update", "weight_sync"]  # the second ends the batch
        assert inside == [*asked, "checkpoint"]
        assert [part["name"] for part in trace.within(step, sync)][:2] == ["prepare", "push"]
        update = trace.within(step, [phase for phase in phases if phase["name"] == "update"])[0]
        called = {op["name"] for op in trace.within(update, operators)}
        assert {"aten::mm", "aten::silu"} & called and any("Backward" in name for name in called), sorted(called)
    assert len(trace.within(steps[0], operators, CLOCK_US) + trace.within(steps[1], operators, CLOCK_US)) > 0.9 * len(
        operators
    )


def test_engine_and_rewards_are_on_the_trainers_clock_and_say_no_text(undisturbed: Path, trace: Trace) -> None:
    phases = [phase for phase in trace.spans("rank 0: trainer", "phases") if phase["name"] == "rollout"]
    requests, scores = trace.spans("engine http://127.0.0.1:"), trace.spans("rewards")
    assert {request["name"] for request in requests} == {
        f"rollout {group}-{place}" for group in range(2, 6) for place in range(4)
    }
    assert sum(len(trace.within(phase, requests)) for phase in phases) == len(requests), (
        "no staleness: it waits for them"
    )
    assert sum(len(trace.within(phase, scores)) for phase in phases) == len(scores)
    assert len(scores) == 2 * len(requests) + len(requests) // 4, "two components score rollouts, one whole groups"
    with JournalReader(undisturbed / "run" / "journal.sqlite") as journal:
        rollouts = {f"rollout {rollout.id}": rollout for group in journal.groups() for rollout in group.rollouts}
        prompts = {group.prompt.text for group in journal.groups()}
    for request in requests:
        assert request["args"]["tokens"] == len(rollouts[request["name"]].tokens)
    texts = prompts | {rollout.text for rollout in rollouts.values() if len(rollout.text) > 3}
    assert not [text for text in texts if text in trace.text or json.dumps(text)[1:-1] in trace.text]


def test_the_report_says_where_the_time_of_the_profiled_steps_went(undisturbed: Path) -> None:
    page = (undisturbed / "run" / "report.html").read_text().partition("<h2>Profile</h2>")[2].partition("</section>")[0]
    for text in ("Steps 2-3", "rollout", "weight_sync: push", "Longest waits", "<td>aten::", "reward share_of_spaces"):
        assert text in page, text


def test_metrics_have_rates_per_rank_and_no_peak_is_made_up(undisturbed: Path) -> None:
    row = read_metrics(undisturbed / "run" / "metrics.jsonl")[-1]
    arch = load_config(undisturbed / "run").architecture()
    rates = row["tokens_per_second_per_gpu/update"], row["flops_per_second_per_gpu/update"]
    assert 3 * sequence_flops(arch, 1) < rates[1] / rates[0] < 3 * sequence_flops(arch, 64) / 64
    assert row["tokens_per_second_per_gpu"] == row["tokens_per_second"] / 2
    assert not [name for name in row if name.startswith("mfu")]


@pytest.mark.parametrize(("controller", "damaged"), [("thread", False), ("process", True)])
def test_resumed_run_repeats_the_loss_bit_for_bit(
    controller: str, damaged: bool, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir() if path.is_dir())
    (tmp_path / "run" / "summary.json").unlink()
    if damaged:
        tensors = checkpoints / names[-1] / "__1_0.distcp"
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    else:
        shutil.rmtree(checkpoints / names[-1])
        (checkpoints / "latest").write_text(names[0])  # as if the run had died after step 4, before its checkpoint
    overrides = ["parallel.tensor=2", f"rollout.controller={controller}"]
    overrides += ["--profile", "steps=2", "ranks=1"] if damaged else []  # the other one was not profiled in step 3
    said = train(undisturbed / "config.yaml", f"run.dir={tmp_path / 'run'}", *overrides, ranks=2)
    assert ("profile: steps that this start did not run are not in it: 2" in said) == damaged
    before = read_metrics(undisturbed / "run" / "metrics.jsonl")
    after = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in after] == [1, 2, 3, 4]
    lengths = [name for name in before[0] if name.startswith("length/")]
    assert "length/gap" in lengths and "length/sampled/p90" in lengths
    for name in ("loss", "grad_norm", "entropy", "mismatch/kl", *lengths):
        assert [row[name] for row in after] == [row[name] for row in before], name
    attempts = [json.loads(line) for line in (tmp_path / "run" / "attempts.jsonl").read_text().splitlines()]
    assert [(row["attempt"], row["step"]) for row in attempts] == [(0, 0), (1, 2)]
    assert (checkpoints / f"{names[-1]}.damaged").exists() == damaged and (checkpoints / "latest").read_text() == names[
        -1
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "already finished at step 4: raise training.steps (4) to go on"),
        (["data.prompts=/nowhere.jsonl"], "/nowhere.jsonl"),
        (["data.held_out_prompts=/nowhere.jsonl", "rollout.controller=process"], "/nowhere.jsonl"),
        (["model.architecture.hidden_size=48"], "allow it with run.allow_change=model.architecture.hidden_size"),
        (
            ["model.architecture.hidden_size=48", "run.allow_change=model"],
            "hidden_size is 32 there, 48 in this config",
        ),
        (["rollout.temperature=0.7"], "'rollout.temperature' = 0.7: the run in"),
        (["model.tokenizer=/nowhere"], "'model.tokenizer' = '/nowhere'"),
        (["reward.functions=[no.such:function]"], "'reward.functions' = 'no.such:function'"),
        (["rollout.urls=http://127.0.0.1:9"], "http://127.0.0.1:9"),
        (["run.resume=never"], "metrics.jsonl exists"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else None,
)
def test_a_start_that_fails_or_has_nothing_to_do_changes_no_byte(
    undisturbed: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    before = contents(undisturbed / "run")
    more = ["training.steps=5"] if overrides else []
    status = common.run(train_grpo.main, [str(undisturbed / "config.yaml"), *more, *overrides])
    out, error = capsys.readouterr()
    assert contents(undisturbed / "run") == before
    assert status == (2 if overrides else 0) and said in (error if overrides else out)


def test_killed_run_resumes_and_neither_loses_nor_repeats_a_group(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    function = "examples.custom.cispo:cispo"  # a loss of the user's own goes through a kill like any other
    overrides = (f"run.dir={run}", "training.steps=5", "rollout.max_new_tokens=200", f"grpo.loss_function={function}")
    process = warm.Popen(
        command(undisturbed / "config.yaml", *overrides), cwd=ROOT, env=variables(), start_new_session=True
    )
    wait_for(lambda: (run / "attempts.jsonl").exists(), seconds=240, process=process)
    wait_for(lambda: (run / "config.yaml").exists(), seconds=240, process=process)
    os.kill(process.pid, signal.SIGSTOP)  # it lives, but only its engine, which answers it, writes its log
    before = {name: stamp for name, stamp in stamps(run).items() if not name.endswith(".log")}
    assert common.run(train_grpo.main, [str(undisturbed / "config.yaml"), f"run.dir={run}", "run.seed=7"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"process {process.pid} on " in error
    assert before == {name: stamp for name, stamp in stamps(run).items() if not name.endswith(".log")}
    os.kill(process.pid, signal.SIGCONT)
    wait_for(
        lambda: (run / "metrics.jsonl").exists() and len(read_metrics(run / "metrics.jsonl")) >= 3,
        seconds=240,
        process=process,
    )
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    train(undisturbed / "config.yaml", *overrides, "rollout.controller=process")
    with JournalReader(run / "journal.sqlite") as journal:
        groups = list(journal.groups())
        assert sorted(journal.consumed().values()) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert sorted(journal.consumed()) == [group.id for group in groups]
    assert all(len(rollout.tokens) == len(rollout.logprobs) for group in groups for rollout in group.rollouts)
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert load_config(run).grpo.loss_function == function and all("loss/clipped" in row for row in rows)


def write_endlessly(folder: Path, tokens: int) -> None:
    """One step on one prompt whose two rollouts run to a limit of `tokens`; one layer, and a head per rank."""
    config = write_example(
        folder,
        endless=True,
        sizes={"num_hidden_layers": 1, "num_attention_heads": 2},
        training={"steps": 1, "prompts_per_step": 1, "tokens_per_micro_batch": tokens + 160},
        rollout={"max_new_tokens": tokens, "stop": []},
        grpo={"group_size": 2, "zero_variance": "keep"},
        data={"held_out_prompts": None},
    )
    train(config, "parallel.tensor=2", ranks=2)


@pytest.mark.parametrize("tokens", [2_560, pytest.param(10_240, marks=pytest.mark.long)])
def test_long_rollouts_stream_through_engine_journal_reward_and_training(tmp_path: Path, tokens: int) -> None:
    """2,560 tokens already outgrow three of the engine's buckets (512 to 2,048), one prefill and many deltas."""
    write_endlessly(tmp_path, tokens)
    with JournalReader(tmp_path / "run" / "journal.sqlite") as journal:
        (group,) = journal.groups()
    assert [len(rollout.tokens) for rollout in group.rollouts] == [tokens] * 2
    assert all(rollout.truncated and set(scores) == {"length", "format", "share_of_spaces"}
               for rollout, scores in zip(group.rollouts, group.scores, strict=True))  # fmt: skip
    row = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert row["trained_tokens"] == 2 * tokens
    assert row["mismatch/difference/max"] <= 1e-4
