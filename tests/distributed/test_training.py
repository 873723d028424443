"""Loss, gradient norm and checkpoints do not depend on the layout. Three launches measure, each test asserts one thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.checks_training import BEFORE, MEASURED, SCORED
from tests.support.ranks import run_ranks
from tests.support.tiny_qwen2 import write_tiny_qwen2

ONE = {
    "one": {},
    "one_untied": {"tie": False},
    "one_small_packs": {"cap": 64},
    "one_recompute": {"training": {"recompute": "full"}},
    "one_recompute_selective": {"training": {"recompute": "selective"}},
    "one_bf16": {"training": {"precision": "bf16"}},
    "one_bf16_plain_optimizer": {"training": {"precision": "bf16"}, "parallel": {"distributed_optimizer": False}},
    "one_plain_optimizer": {"parallel": {"distributed_optimizer": False}},
}
TWO = {
    "tp2": {"parallel": {"tensor": 2}},
    "tp2_no_sp": {"parallel": {"tensor": 2, "sequence": False}},
    "pp2": {"parallel": {"pipeline": 2}},
    "vpp2": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "cp2": {"parallel": {"context": 2}},
    "dp2": {},
    "dp2_overlap": {"parallel": {"overlap": True}},
    "dp2_plain_optimizer": {"parallel": {"distributed_optimizer": False}},
    "dp2_bf16": {"training": {"precision": "bf16"}},
    "pp2_untied": {"tie": False, "parallel": {"pipeline": 2}},
}
FOUR = {
    "tp2_pp2": {"parallel": {"tensor": 2, "pipeline": 2}},
    "dp2_tp2_untied": {"tie": False, "parallel": {"tensor": 2}},
}
TWO_LOADS = [
    *([name, name] for name in TWO if name not in ("tp2_no_sp", "dp2_overlap", "pp2_untied")),
    ["tp2", "pp2"],
    ["pp2", "tp2"],
    ["dp2", "vpp2"],
    ["vpp2", "dp2_overlap"],
    ["cp2", "tp2"],
]
EARLIER_TWO = [["pp2", "pp2"], ["pp2", "dp2"], ["dp2_bf16", "dp2_bf16"], ["dp2_plain_optimizer", "dp2_plain_optimizer"]]
EARLIER_ONE = [["one_bf16_plain_optimizer", "one_bf16_plain_optimizer"], ["dp2_plain_optimizer", "one"]]
FOUR_LOADS = [["pp2", "tp2_pp2"], ["pp2_untied", "dp2_tp2_untied"], ["tp2_pp2", "tp2_pp2"]]
ONE_LOADS = [
    ["tp2", "one"],
    ["tp2_pp2", "one"],
    ["vpp2", "one"],
    ["dp2_tp2_untied", "one_untied"],
    ["one_bf16", "one_bf16"],
    ["one_bf16_plain_optimizer", "one_bf16_plain_optimizer"],
    ["one_plain_optimizer", "one_plain_optimizer"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def hf(folder: Path) -> Path:
    """A tiny Qwen2, and rows to score."""
    write_tiny_qwen2(folder / "hf")
    rows = []
    for index, length in enumerate([5, 70, 1, 33, 12, 90, 2]):
        rows.append({"id": f"row-{index}", "tokens": torch.randint(0, 101, (length,)).tolist(), "prompt_length": 1})
    rows[1]["prompt_length"] = 40
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "hf"


@pytest.fixture(scope="module")
def measured(folder: Path, hf: Path) -> dict[str, Any]:
    rows = str(folder / "rows.jsonl")
    checks = "tests.distributed.checks_training"
    two = run_ranks(
        f"{checks}:two_ranks", ranks=2, folder=str(folder), layouts=TWO, loads=TWO_LOADS + earlier(EARLIER_TWO),
        hf=str(hf), rows=rows,
    )  # fmt: skip
    four = run_ranks(
        f"{checks}:four_ranks",
        ranks=4,
        folder=str(folder),
        layouts=FOUR,
        loads=FOUR_LOADS,
    )
    loads = ONE_LOADS + earlier(EARLIER_ONE)
    one = run_ranks(f"{checks}:one_rank", ranks=1, folder=str(folder), layouts=ONE, loads=loads, weights="pp2")
    for ranks in (two, four):
        for name in (*TWO, *FOUR, "failed_write", "damaged"):
            assert all(rank.get(name) == ranks[0].get(name) for rank in ranks), f"{name}: ranks report different steps"
    memory = {name: [rank["memory"][name] for rank in two] for name in two[0]["memory"]} | {
        "one": [one[0]["memory one"]]
    }
    return two[0] | four[0] | one[0] | {"memory": memory}


def earlier(loads: list[list[str]]) -> list[list[str]]:
    return [[f"{source}_earlier", target] for source, target in loads]


def baseline(measured: dict[str, Any], name: str) -> torch.Tensor:
    return torch.tensor(measured["one_untied" if "untied" in name else "one"], dtype=torch.float64)


@pytest.mark.parametrize("name", [n for n in (*ONE, *TWO, *FOUR) if "bf16" not in n and n != "one"])
def test_loss_and_gradient_norm_are_invariant_to_the_layout(measured: dict[str, Any], name: str) -> None:
    found = torch.tensor(measured[name], dtype=torch.float64)
    torch.testing.assert_close(found, baseline(measured, name), rtol=1e-5, atol=1e-5)


def test_one_sequence_trains_every_layout(measured: dict[str, Any]) -> None:
    for name in (name for name in (*ONE, *TWO, *FOUR) if "bf16" not in name):
        expected = measured["one_untied lone" if "untied" in name else "one lone"]
        # Steps of Adam came before: where a gradient is near zero they enlarge the last bits' differences.
        assert measured[f"{name} lone"] == pytest.approx(expected, rel=3e-5), name


def test_bf16_follows_fp32(measured: dict[str, Any]) -> None:
    for name in ("one_bf16", "one_bf16_plain_optimizer", "dp2_bf16"):
        losses = torch.tensor(measured[name])[:, 0]
        torch.testing.assert_close(losses, baseline(measured, name)[:, 0].float(), rtol=0.05, atol=0.0)


def test_schedule_warms_up_then_decays(measured: dict[str, Any]) -> None:
    rates = [*(row[2] for row in measured["one"]), measured["one lone"][2]]
    assert rates == pytest.approx([0.001, 0.002, 0.002, 0.001])


def test_recompute_does_not_change_a_bit(measured: dict[str, Any]) -> None:
    assert measured["one_recompute"] == measured["one"]
    assert measured["one_recompute_selective"] == measured["one"]


@pytest.mark.parametrize(
    "name", [source for source, target in (*TWO_LOADS, *FOUR_LOADS, *ONE_LOADS) if source == target]
)
def test_resume_repeats_the_run_bit_for_bit(measured: dict[str, Any], name: str) -> None:
    assert measured[f"{name} → {name}"]["steps"] == measured[name][BEFORE:]


@pytest.mark.parametrize(
    ("source", "target"), [pair for pair in (*TWO_LOADS, *FOUR_LOADS, *ONE_LOADS) if pair[0] != pair[1]]
)
def test_checkpoint_reshards(measured: dict[str, Any], source: str, target: str) -> None:
    found = torch.tensor(measured[f"{source} → {target}"]["steps"], dtype=torch.float64)
    torch.testing.assert_close(found, baseline(measured, target)[BEFORE:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), EARLIER_TWO + EARLIER_ONE)
def test_checkpoints_of_earlier_versions_load(measured: dict[str, Any], source: str, target: str) -> None:
    found, expected = measured[f"{source}_earlier → {target}"]["steps"], measured[target][BEFORE:]
    assert found == expected if source == target else found == [pytest.approx(row, 1e-5, 1e-5) for row in expected]


@pytest.mark.parametrize("name", [*MEASURED, "one"])
def test_host_memory_of_a_checkpoint_is_bounded_by_what_the_rank_holds(measured: dict[str, Any], name: str) -> None:
    ranks = measured["memory"][name]
    for rank in ranks:
        assert rank["copy"] == 1.0, "an asynchronous save copies what the rank writes, and nothing else"
        assert rank["copy"] + rank["write"] <= 1.3
        assert rank["waiting"] <= 0.3 and rank["load"] <= 0.3, rank
    if name.startswith("dp2"):
        assert ranks[0]["own"] == pytest.approx(ranks[1]["own"], rel=0.05), "data-parallel ranks divide the work"


def test_every_parameter_has_its_own_adam_step_after_a_load(measured: dict[str, Any]) -> None:
    loads = [value for name, value in measured.items() if "→" in name]
    expected = (TWO_LOADS, FOUR_LOADS, ONE_LOADS, EARLIER_TWO, EARLIER_ONE)
    assert len(loads) == sum(len(part) for part in expected)
    assert all(load["own_step_tensors"] for load in loads)


def test_a_state_that_never_stepped_can_be_saved_and_loaded(measured: dict[str, Any]) -> None:
    assert measured["zero"]


def test_a_rank_that_cannot_write_is_named_by_all_and_the_checkpoint_before_stays(measured: dict[str, Any]) -> None:
    found = measured["failed_write"]  # the fixture has checked that all ranks say the same
    assert "step_00000001: cannot be written (rank 1: [Errno 27] File too large" in found["message"]
    assert "\n" not in found["message"] and found["step"] == 0
    assert found["files"] == ["latest", "step_00000000"], "neither a half-written nor a broken one"


def test_all_ranks_go_back_together_from_a_damaged_checkpoint(measured: dict[str, Any]) -> None:
    found = measured["damaged"]  # the fixture has checked that all ranks say the same
    assert "step_00000002: __1_0.distcp is not as it was written" in found["message"]
    assert found["step"] == 1 and found["same"]
    assert "a file cannot be read (IndexError" in found["of_one_rank"]


def test_reference_weights_swap_in_and_out(measured: dict[str, Any]) -> None:
    found = measured["reference"]
    assert found["reference_is_initial"] and found["policy_moved"] and found["policy_is_back"]
    needed = 2 * sum(found["weights"])  # the copy, and room for the policy
    assert needed <= found["host_bytes"] <= needed + 2 * 64 * len(found["weights"])


def test_weights_alone_round_trip_and_cast(measured: dict[str, Any]) -> None:
    assert measured["model"] == {"round_trip": True, "cast": True}


def test_damaged_checkpoints_give_one_line(measured: dict[str, Any]) -> None:
    messages = measured["errors"]["messages"]
    assert len(messages) == 8
    for message in messages.values():
        assert message.startswith("checkpoint ") and "\n" not in message
    assert "the folder is missing" in messages["missing"]
    assert "state.json has 1 bytes, " in messages["state.json"]
    assert "weights only" in messages["weights only"]
    assert "tie_word_embeddings is True there, False in this config" in messages["another model"]


def test_malicious_payload_does_not_run(measured: dict[str, Any]) -> None:
    messages = measured["errors"]["messages"]
    assert not measured["errors"]["payload_ran"]
    assert "Path.touch', which no checkpoint of ours contains" in messages["payload in .metadata"]
    assert "UnpicklingError" in messages["payload in common.pt"]
    assert ".metadata has " in messages["payload in .metadata, with checksums"]


def test_gradient_that_is_not_finite_stops_the_run(measured: dict[str, Any]) -> None:
    assert measured["nan"].startswith("step 1: loss nan") and "\n" not in measured["nan"]


@pytest.mark.parametrize("name", SCORED)
def test_score_equals_transformers(measured: dict[str, Any], folder: Path, hf: Path, name: str) -> None:
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(hf).float().eval()
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    scored = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    assert [row["id"] for row in scored] == [row["id"] for row in rows]
    for row, found in zip(rows, scored, strict=True):
        tokens, start = torch.tensor(row["tokens"]), row["prompt_length"]
        with torch.no_grad():
            logprobs = torch.log_softmax(model(tokens[None]).logits[0, :-1] / 0.7, -1)
        expected = logprobs.gather(1, tokens[1:, None])[start - 1 :, 0]
        entropy = -(logprobs.exp() * logprobs).sum(-1)[start - 1 :]
        torch.testing.assert_close(torch.tensor(found["logprobs"]), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.tensor(found["entropies"]), entropy, rtol=0, atol=1e-4)
