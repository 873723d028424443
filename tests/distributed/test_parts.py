"""A step may begin before its batch is complete: parts give what the whole gives."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.grpo_runs import write_example
from tests.support.ranks import run_ranks
from tests.support.synthetic_engine import TOKEN, Engine, background_loop

CASES = {
    "token tp2": {"tensor": 2},
    "token pp2": {"pipeline": 2},
    "token vpp2": {"pipeline": 2, "virtual_pipeline": 2},
    "token cp2": {"context": 2},
    "token dp2": {},
    "token dp2 overlap": {"overlap": True},
    "sequence cp2": {"context": 2},
    "sequence vpp2": {"pipeline": 2, "virtual_pipeline": 2},
    "function cp2": {"context": 2},
}
"""token: with the gradient in the forward pass, and a reference; sequence: with the gradient after it; function: the
user's own, of whole sequences."""
MORE = {
    "sequence tp2": {"tensor": 2},
    "sequence pp2": {"pipeline": 2},
    "sequence dp2": {},
    "constant dp2 overlap plain": {"overlap": True, "distributed_optimizer": False},
    "constant vpp2 overlap": {"pipeline": 2, "virtual_pipeline": 2, "overlap": True},
}
FOUR = {
    "token dp2 pp2 overlap": {"pipeline": 2, "overlap": True},
    "token dp2 vpp2 overlap": {"pipeline": 2, "virtual_pipeline": 2, "overlap": True},
    "token dp2 tp2": {"tensor": 2},
    "sequence cp2 pp2": {"context": 2, "pipeline": 2},
}


def check(found: dict[str, float]) -> None:
    assert found["smallest"] > 1e-3
    assert found["gradient"] < 1e-5 and found["norm"] < 1e-5, found
    assert found["loss"] < 1e-6 and found["metrics"] < 1e-6, found


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_metrics_of_parts_are_those_of_the_whole(two_ranks, case: str) -> None:
    for rank in two_ranks:
        check(rank["compare"][case])


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "cases"), [(2, MORE), (4, FOUR)])
def test_parts_under_more_layouts(ranks: int, cases: dict[str, dict]) -> None:
    for found in run_ranks("tests.distributed.checks_parts:compare", ranks=ranks, cases=cases):
        for case in cases:
            check(found[case])


class LateForAllButOne(Engine):
    """Writes to the prompt that comes first; the others wait until `signal` exists."""

    def __init__(self, signal: Path) -> None:
        super().__init__(length=lambda seed: 4 + seed % 11, prompt_length=len)
        self.signal, self.first, self.waited = signal, None, 0.0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["prompt"]
        self.first = self.first or prompt
        begun = time.monotonic()
        while prompt != self.first and not self.signal.exists() and time.monotonic() < begun + 100:
            await asyncio.sleep(0.02)
        self.waited = max(self.waited, time.monotonic() - begun)
        return await super().complete(request)

    async def control(self, request: web.Request) -> web.Response:
        if request.path == "/weight_checker" and self.version:
            return web.json_response({"checksum": self.version.split(".")[2]})
        return await super().control(request)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> LateForAllButOne:
    return LateForAllButOne(tmp_path_factory.mktemp("parts") / "trained")


@pytest.fixture(scope="module")
def two_ranks(engine: LateForAllButOne) -> list[dict]:
    folder = engine.signal.parent
    with background_loop() as start, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "LWZ_ENGINE_TOKEN", TOKEN)
        config = write_example(
            folder,
            training={"steps": 2},
            data={"held_out_prompts": None},
            rollout={"urls": [start(engine)]},
            reward={"functions": ["tests.distributed.checks_parts:tokens_written"]},
        )
        runs = {
            name: [f"run.dir={folder / name}", f"training.accumulate_groups={least}"]
            for name, least in (("early", 1), ("whole", 0))
        }
        return run_ranks(
            "tests.distributed.checks_parts:compare_and_train_early",
            ranks=2,
            cases=CASES,
            config=str(config),
            trained=str(engine.signal),
            runs=runs,
        )


def test_training_begins_before_the_last_group_is_complete(two_ranks, engine: LateForAllButOne) -> None:
    found = [rank["early"] for rank in two_ranks]
    early, whole = found[0]["early"], found[0]["whole"]
    assert engine.waited < 90, "the last group was finished only after the first had been trained on"
    assert early["parts"][:2] == [False, True] and early["parts"].count(True) == 2 and whole["parts"] == [True, True]
    assert found[1]["early"]["parts"] == early["parts"], "all ranks train on the same parts"
    assert early["consumed"] == whole["consumed"] == {"0": 1, "1": 1, "2": 2, "3": 2}
    for mine, other in zip(early["rows"], whole["rows"], strict=True):
        assert mine.keys() == other.keys()
        assert mine["grad_norm"] > 0 and mine["rollout/trained_sequences"] == 8
        for name, value in other.items():
            if "second" not in name:
                assert mine[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
