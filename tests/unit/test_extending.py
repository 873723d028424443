"""docs/extending.md: its Python blocks run as they stand, and come out as the page says."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_lwz.config import read_hf_architecture
from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.distributed.launch import shutdown
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.contract import check_engine
from megatron_lwz.rollout.events import StreamEnd
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import FinishReason, WeightVersion
from tests.support.synthetic_engine import TOKEN, background_loop

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
EXAMPLES = dict(
    re.findall(r"^<!-- example: (\w+)\.py -->\n```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Imports an example by its name; all of them lie in one folder, as a user's would."""
    for name, text in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module
    for name in EXAMPLES:
        sys.modules.pop(name, None)


def test_every_python_block_is_an_example():
    assert PAGE.read_text(encoding="utf-8").count("```python") == len(EXAMPLES) == 8


@pytest.mark.parametrize("name", ["try_my_rewards", "try_my_advantages", "try_my_epilogue"])
def test_an_example_comes_out_as_its_own_asserts_say(load, name):
    assert "\nassert " in EXAMPLES[name] or "\n    assert " in EXAMPLES[name]
    load(name)


def test_the_engine_is_met_by_the_runs_own_pool(load):
    engine = load("my_engine").ScriptedEngine()
    section, version = RolloutSection(), WeightVersion(7, 0, "abc")
    with background_loop() as start:
        url = start(SimpleNamespace(app=lambda: engine.app(TOKEN)))
        check = partial(check_engine, section=section, longest=4096, tied=True)
        pool = EnginePool([EngineClient(url, TOKEN)], concurrency=1, section=section.pool, check=check)
        pool.meet()
        pool.push_weights(Path("/weights/7"), version)
        whole, cut = asyncio.run(_streams(pool))
    assert (engine.folder, engine.version) == ("/weights/7", str(version))
    *deltas, end = whole
    assert [token for delta in deltas for token in delta.tokens] == [72, 105, 33, 0]
    assert {value for delta in deltas for value in delta.logprobs} == {-0.25}
    assert {delta.version for delta in deltas} == {version} and end == StreamEnd(FinishReason.STOP)
    *deltas, end = cut
    assert [token for delta in deltas for token in delta.tokens] == [72, 105] and end.reason is FinishReason.LENGTH


async def _streams(pool: EnginePool) -> list[list]:
    """Two rollouts, the second of two tokens."""
    settings = {"request_id": "r", "seed": 0, "temperature": 0.8, "top_p": 1.0, "stop": (0,)}
    found = []
    for most in (8, 2):
        async with pool.lease(0) as client:
            found.append([event async for event in client.stream([1, 2], max_tokens=most, **settings)])
    await pool.close()
    return found


def test_another_size_comes_back_from_megatron_bit_for_bit(load, tmp_path):
    try:
        theirs, ours = load("my_model").round_trip(tmp_path)
    finally:
        shutdown()
    assert theirs == ours
    assert read_hf_architecture(tmp_path / "theirs") == read_hf_architecture(tmp_path / "ours")
