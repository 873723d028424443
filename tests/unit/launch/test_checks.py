"""What every node looks at: each fault is one line that names the key and what to do, and the stage would not have started."""

import shutil
import socket
import threading

import pytest

from megatron_lwz.cli import common, launch_node
from megatron_lwz.cli import launch as launch_command
from megatron_lwz.config import load_config
from megatron_lwz.errors import ConfigError, LwzError
from megatron_lwz.http.ports import free_port
from megatron_lwz.launch import checks, engines
from tests.support.grpo_runs import write_example
from tests.support.paths import ROOT


@pytest.fixture
def config(tmp_path):
    return write_example(tmp_path, launch={"gpus_per_node": 0, "ranks_per_node": 1, "folder": str(ROOT)})


def check(config, *overrides, node=0, nodes=1):
    more = ["--node", str(node), "--nodes", str(nodes), "--id", "x", "--state", f"{config.parent}/run.launch"]
    return common.run(launch_node.main, ["check", str(config), *overrides, *more])


def test_a_node_that_can_do_its_part_says_nothing(config, capsys):
    assert check(config) == 0 and capsys.readouterr() == ("", "")
    assert [path.name for path in (config.parent / "run.launch").iterdir()] == ["node-0"]
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("override", "names", "part"),
    [
        ("data.prompts=/none.jsonl", "data.prompts", "every node must see it"),
        ("model.tokenizer=/none", "model.tokenizer", "every node must see it"),
        ("parallel.tensor=2", "parallel", "must divide the 1 ranks"),
        ("rollout.max_new_tokens=40000", "training.tokens_per_micro_batch", "must hold the longest rollout"),
        ("launch.gpus_per_node=1", "launch.gpus_per_node", "has 0 that torch can use: lwz doctor"),
        ("checkpoint.keep=100000000", "run.dir", "make room, or lower checkpoint.keep"),
    ],
)
def test_what_a_node_lacks_is_one_line_and_status_2(config, capsys, override, names, part):
    assert check(config, override) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and names in said and part in said


def test_ports_and_programs_of_the_engines(config, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        given = ["launch.engines.per_node=1", "launch.engines.gpus=0", "launch.engines.model=x"]
        assert port > 1023 and check(config, *given, f"launch.engines.port={min(port, 64_999)}") in (0, 2)
        if port < 65_000:
            assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    free = f"launch.engines.port={free_port()}"
    assert check(config, *given, free, "rollout.engine=vllm", "launch.engines.command=no-vllm") == 2
    assert "launch.engines.command" in capsys.readouterr().err
    assert check(config, *given, free, "launch.engines.nodes=1", node=0, nodes=1) == 0


def test_room_counts_what_is_there_already(config, monkeypatch):
    given = load_config(config)
    needed = []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: needed.append(_) or type("Usage", (), {"free": 0}))
    for there in (0, 10):
        for step in range(there):
            (config.parent / "run" / "checkpoints" / f"step_{step:08}").mkdir(parents=True)
        with pytest.raises(ConfigError) as raised:
            checks.check_room(given)
        assert f"{11 - there} checkpoints and 2 exports need" in str(raised.value)
    assert needed == [config.parent, config.parent / "run"]


def test_nodes_see_each_other_or_say_who_is_missing(tmp_path):
    others = [threading.Thread(target=checks.check_shared, args=(tmp_path / "s", node, 3, "id-2")) for node in (1, 2)]
    checks_before = tmp_path / "s"
    checks_before.mkdir()
    (checks_before / "node-0").write_text("id-1")  # of an earlier start
    for other in others:
        other.start()
    checks.check_shared(tmp_path / "s", 0, 3, "id-2")
    for other in others:
        other.join(60)
        assert not other.is_alive()
    with pytest.raises(LwzError, match="does not see what node 0, 2 wrote there"):
        checks.check_shared(tmp_path / "s", 1, 3, "id-3", within=0)
    (tmp_path / "file").touch()
    with pytest.raises(LwzError, match="cannot be written"):
        checks.check_shared(tmp_path / "file" / "s", 0, 1, "x")


def test_engines_that_do_not_answer_or_have_ended_are_one_line(config):
    given, url = load_config(config), f"http://127.0.0.1:{free_port()}"
    with pytest.raises(LwzError, match="does not answer within 0 s"):
        engines.wait_for_engines(given, [url], None, config.parent, within=0)
    (config.parent / "failed-a-0").write_text(f"engine {url} ended with status 1, see x.log\n")
    with pytest.raises(LwzError, match=r"ended with status 1, see x\.log"):
        engines.wait_for_engines(given, [url], None, config.parent, within=1e6)


def test_the_command_shows_writes_and_names_the_start(config, capsys, monkeypatch):
    assert common.run(launch_command.main, ["torchrun", str(config), "run.name=a b", "--print"]) == 0
    shown = capsys.readouterr().out
    assert not (config.parent / "run.launch").exists() and f"arguments=({config} 'run.name=a b')" in shown
    assert common.run(launch_command.main, ["torchrun", str(config), "run.name=a b"]) == 0
    assert (config.parent / "run.launch" / "torchrun.sh").read_text() == shown
    assert f"start it: bash {config.parent}/run.launch/torchrun.sh" in capsys.readouterr().out
    monkeypatch.setenv("PATH", "")
    assert common.run(launch_command.main, ["slurm", str(config), "--submit"]) == 2
    assert capsys.readouterr().err == "error: --submit needs the command sbatch, which is not on the PATH\n"
    for words, part in ((["pbs", str(config)], "'pbs'"), (["slurm", str(config), "launch.nodes=0"], "launch.nodes")):
        assert common.run(launch_command.main, words) == 2
        assert part in capsys.readouterr().err


def test_submit_becomes_the_command(config, monkeypatch):
    started = []
    monkeypatch.setattr("os.execvp", lambda name, line: started.append((name, line)))
    assert common.run(launch_command.main, ["torchrun", str(config), "--submit"]) == 0
    assert started == [("bash", ["bash", f"{config.parent}/run.launch/torchrun.sh"])]
