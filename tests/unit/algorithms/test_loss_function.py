"""Policy losses of the user's own: equal to the built-in ones, and refused in one line before the run where they cannot be."""

from __future__ import annotations

import dataclasses
import itertools
import re
import textwrap
from pathlib import Path

import pytest
import torch

from megatron_lwz.algorithms.grpo import LossInputs, grpo_loss
from megatron_lwz.algorithms.loss_function import check_loss_function, load_loss_function
from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.errors import ConfigError
from tests.unit.algorithms.loss_inputs import inputs

HERE = "tests.support.user_losses"
EXAMPLE = "examples.custom.cispo:cispo"
FIELDS = {field.name for field in dataclasses.fields(LossInputs)}
CPU = torch.device("cpu")
THROUGH_THE_MEAN = f"{HERE}:gspo_through_the_mean"
AROUND = {
    "alone": {"mismatch": "none"},
    "corrected": {"mismatch_cap": 1.2, "kl_coefficient": 0.1, "entropy_coefficient": 0.03},
    "masked": {"mismatch": "sequence", "mismatch_mode": "mask", "kl_coefficient": 0.1, "kl_placement": "reward"},
}
"""What stays with the project around any policy loss."""
SAME = {
    EXAMPLE: {"objective": "cispo", "clip_low": 1.0, "clip_high": 0.1},
    f"{HERE}:clip": {"clip_low": 0.1},
    f"{HERE}:gspo": {"ratio": "sequence", "clip_low": 0.1, "clip_high": 0.1},
    f"{HERE}:sequence_cispo": {"objective": "cispo", "ratio": "sequence", "clip_high": 0.03},
}
"""Function → the options of the same built-in loss."""


def section_of(path: str, options: dict) -> GrpoSection:
    """The same section with the function in place of the built-in objective."""
    return GrpoSection(**{k: v for k, v in options.items() if k not in ("objective", "ratio")}, loss_function=path)


def outcome(data: LossInputs, section: GrpoSection) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict]:
    """Loss, gradients in log-prob and entropy, metrics."""
    function = load_loss_function(section.loss_function)
    loss, metrics = grpo_loss(data, section, context_sum=lambda sums: sums, policy_loss=function)
    gradients = torch.autograd.grad(loss, (data.logprob, data.entropy), allow_unused=True, materialize_grads=True)
    return loss.detach(), *gradients, metrics


def around_each() -> list[tuple[str, str]]:
    """Through the mean only where correction and advantage are constant in a sequence: else it is not the token form."""
    return [*itertools.product(SAME, AROUND), (THROUGH_THE_MEAN, "alone")]


@pytest.mark.parametrize(("path", "around"), around_each())
def test_a_function_with_the_same_maths_has_the_same_loss_and_gradients(path, around):
    data, options = inputs(spread=0.15), SAME.get(path, SAME[f"{HERE}:gspo"]) | AROUND[around]
    check_loss_function(section_of(path, options), CPU)
    *expected, metrics = outcome(data, GrpoSection(**options))
    *found, own = outcome(data, section_of(path, options))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert found[1].count_nonzero() > 4
    house = {name for name in metrics if not name.startswith("clip_fraction")}
    assert house == {name for name in own if not name.startswith("loss/")}
    for name in house - {"ratio", "ratio/max"}:
        assert own[name] == metrics[name], name
    if path == EXAMPLE:
        assert own["loss/clipped"] == metrics["clip_fraction_low"] + metrics["clip_fraction_high"] > 0


def test_the_page_shows_the_example_and_its_sequence_level_function_passes_the_check(tmp_path, monkeypatch):
    root = Path(__file__).resolve().parents[3]
    page = (root / "docs" / "losses.md").read_text(encoding="utf-8")
    example = root / EXAMPLE.partition(":")[0].replace(".", "/")
    shown = textwrap.indent(example.with_suffix(".py").read_text(encoding="utf-8"), "    ")
    assert f"    # {EXAMPLE.partition(':')[0].replace('.', '/')}.py\n{shown}\n" in page
    (code,) = re.findall(r"^    def gspo.*\n(?:     .*\n)+", page, re.MULTILINE)
    (tmp_path / "of_the_page.py").write_text("import torch\n" + textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    check_loss_function(GrpoSection(loss_function="of_the_page:gspo"), CPU)
    assert {name for name in re.findall(r"`(\w+)`", page) if name in FIELDS} == FIELDS


def test_kl_and_entropy_may_be_the_functions_own():
    data = inputs()
    kl = {"kl_coefficient": 0.2, "mismatch": "none"}
    expected = outcome(data, GrpoSection(**kl, kl_estimator="k2", kl_importance=False))
    section = GrpoSection(**kl, loss_function=f"{HERE}:clip_with_k2", kl_placement="function")
    check_loss_function(section, CPU)
    for ours, theirs in zip(outcome(data, section)[:3], expected, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    expected = outcome(data, GrpoSection(mismatch="none", entropy_coefficient=0.03))
    found = outcome(data, GrpoSection(mismatch="none", loss_function=f"{HERE}:clip_with_entropy"))
    for ours, theirs in zip(found[:3], expected, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_function_sees_only_tokens_that_count():
    data = inputs()
    ignored = data.weight == 0
    broken = {name: getattr(data, name).where(~ignored, torch.nan) for name in ("old", "behaviour", "advantage")}
    section = GrpoSection(loss_function=EXAMPLE, mismatch="none")
    for ours, theirs in zip(
        outcome(dataclasses.replace(data, **broken), section)[:3], outcome(data, section), strict=False
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("missing", "cannot be imported (AttributeError"),
        ("NOT_A_FUNCTION", "is not a function"),
        ("takes_one", "must take (inputs, section), or (inputs, section, sequence_mean), not (inputs)"),
        ("raises", "raised AttributeError: 'LossInputs' object has no attribute 'rewards' ("),
        ("scalar", "the loss has shape [] for 40 tokens"),
        ("number", "the loss is float, not a tensor"),
        ("three", "the loss is tuple, not a tensor"),
        ("double", "the loss is float64: return float32"),
        ("detached", "the loss has no gradient"),
        ("infinite", "the loss is not finite"),
        ("infinite_gradient", "the gradient in logprob is not finite"),
        ("whitened", "a token's loss depends on the other tokens"),
        ("whitened_sequences", "a sequence's loss depends on the other sequences"),
        ("fails_without_tokens", "given no tokens, raised RuntimeError: max()"),
        ("metric_of_another_shape", "the metric 'mean' has shape [] for 40 tokens"),
        ("metric_with_a_slash", "returned a metric named 'share/max'"),
        ("metric_that_is_not_finite", "the metric 'inverse' is not finite"),
        ("metrics_that_change", "return the same every time"),
        ("differentiates_in_the_forward_pass", "raised RuntimeError: cannot register a hook"),
        ("no_mean_without_tokens", "calls sequence_mean more often for some tokens than for others"),
    ],
)
def test_what_cannot_run_is_refused_before_the_run_in_one_line(name, part):
    with pytest.raises(ConfigError) as caught:
        check_loss_function(GrpoSection(loss_function=f"{HERE}:{name}"), CPU)
    said = str(caught.value)
    assert said.startswith(f"config key 'grpo.loss_function' = '{HERE}:{name}': ") and part in said, said
    assert "\n" not in said


def test_the_check_uses_log_probs_that_a_run_can_have():
    check_loss_function(GrpoSection(loss_function=f"{HERE}:of_probabilities", kl_coefficient=0.1), CPU)


def test_a_lost_rank_is_not_called_a_fault_of_the_function():
    def lost(sums):
        raise ConnectionError("closed by peer")

    with pytest.raises(ConnectionError, match="closed by peer"):
        load_loss_function(f"{HERE}:gspo").per_token(inputs(), GrpoSection(), lost)


def test_an_error_during_the_run_names_the_function_and_its_line():
    with pytest.raises(ConfigError, match=rf"{HERE}:raises.*\(.*user_losses\.py, line \d+\)$") as caught:
        outcome(inputs(), GrpoSection(loss_function=f"{HERE}:raises"))
    assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"objective": "cispo", "dual_clip": 3.0}, "grpo.dual_clip"),
        ({"kl_placement": "function"}, "grpo.kl_placement"),
        ({"loss_function": EXAMPLE, "objective": "cispo"}, "grpo.objective"),
        ({"loss_function": EXAMPLE, "ratio": "sequence"}, "grpo.ratio"),
        ({"loss_function": EXAMPLE, "dual_clip": 3.0}, "grpo.dual_clip"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options, key):
    with pytest.raises(ConfigError) as caught:
        GrpoSection(**options).check()
    assert caught.value.key == key and "\n" not in str(caught.value)
