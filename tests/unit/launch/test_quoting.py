"""Text from a description stays text: bash gives every value back as it was, and runs none of it."""

import subprocess

import pytest

from megatron_lwz.config import Config
from megatron_lwz.config.load import validate
from megatron_lwz.errors import ConfigError
from megatron_lwz.launch.quoting import array, name_of, quoted, without_references
from tests.unit.launch.descriptions import HOSTILE, config, launch


def test_bash_reads_every_value_back(tmp_path):
    script = f"values={array(HOSTILE)}\none={quoted(HOSTILE[-1])}\n" + 'printf "%s\\0" "${values[@]}" "$one"'
    assert script.count("\n") == 2
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [*HOSTILE, HOSTILE[-1]]
    assert not list(tmp_path.iterdir())


def test_the_settings_of_a_hostile_description_are_one_line_each_and_give_it_back(tmp_path):
    everything = "".join(HOSTILE)
    given = config(
        {"setup": everything, "secrets_file": everything, "secrets": ["A_KEY"], "environment": {"A": everything}},
        run={"dir": everything}, model={"hf": everything},
    )  # fmt: skip
    made = launch(given, "torchrun", ("config.yaml", f"run.name={everything}"))
    settings = made.settings()
    names = [line.partition("=")[0] for line in settings.splitlines()]
    assert all(name.replace("_", "").isalpha() for name in names) and len(set(names)) == len(names)
    asked = 'printf "%s\\0" "$setup" "$secrets_file" "${variables[0]}" "${arguments[1]}" "$summary" "$state"'
    done = subprocess.run(["bash", "-c", settings + asked], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [
        everything, everything, f"A={everything}", f"run.name={everything}", f"{everything}/summary.json", f"{everything}.launch",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("key", ["partition", "account", "image", "slurm_options"])
def test_what_goes_into_directives_is_refused_unless_it_is_one_word(key, text):
    with pytest.raises(ConfigError, match=f"launch.{key}"):
        validate({"launch": {key: text}})
    if not text.isprintable() or set(text) & set(" '\"$`;"):
        with pytest.raises(ConfigError, match=r"launch\.slurm_options"):
            validate({"launch": {"slurm_options": f"--x={text}"}})


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"A B": "1"}, "no name"),
        ({"A\n": "1"}, "no name"),
        ({"WANDB_API_KEY": "x"}, "launch.secrets"),
        ({"HF_TOKEN": "x"}, "launch.secrets"),
        ({"X": "hf_abcdefghijklmnopqrstuvwxyz"}, "launch.secrets"),
        ({"HTTP_PROXY": "http://me:pass@proxy"}, "launch.secrets"),
    ],
)
def test_secrets_and_other_names_are_no_environment(environment, part):
    with pytest.raises(ConfigError) as raised:
        validate({"launch": {"environment": environment}})
    assert part in str(raised.value) and "abcdefgh" not in str(raised.value) and "pass@" not in str(raised.value)


@pytest.mark.parametrize("option", ["--api-key=abc", "--api-key", "--hf-token=x", "hf_abcdefghijklmnopqrstuvwxyz"])
def test_a_key_is_no_argument_of_an_engine(option):
    with pytest.raises(ConfigError, match=r"launch\.secrets"):
        validate({"launch": {"engines": {"options": ["--x", option]}}})


def test_names_fit_every_scheduler():
    assert name_of("5_LongWriter Zero!") == "lwz-5-longwriter-zero"
    for text in (*HOSTILE, "x" * 100, "", "9", "-"):
        name = name_of(text)
        assert name[0].isalpha() and name[-1] != "-" and len(name) <= 40 and name.replace("-", "").isalnum(), text
        assert name.isascii() and name == name.lower()


def test_kubernetes_expands_nothing():
    assert without_references("$(HOME) $$ x") == "$$(HOME) $$$$ x"


def test_the_section_is_no_change_of_a_run():
    from megatron_lwz.config import changes

    assert changes(Config(), config({}, model={"hf": None}, data={"prompts": None}, run={"dir": "x"})) == []
