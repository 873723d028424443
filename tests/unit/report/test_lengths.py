"""The charts of lengths sampled and trained on, over a journal with a loss of long texts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from megatron_lwz.config import save_config, validate
from megatron_lwz.metrics import MetricsWriter
from megatron_lwz.report.build import build_report
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.length_book import LengthBook
from megatron_lwz.types import FinishReason, Prompt, TokenDelta, WeightVersion

CAP = 700


def write_run(root: Path, *, steps: int, groups: int, biased_from: int) -> Path:
    """A run one step ahead whose texts grow; from a step on, groups with long texts fail more often than others."""
    config = validate({"run": {"dir": str(root)}, "training": {"steps": steps + 1}, "rollout": {"max_staleness": 1}})
    root.mkdir(parents=True)
    save_config(config, root / "config.yaml")
    noise = np.random.default_rng(5)
    book, journal = LengthBook(config.rollout.lengths, 1), Journal(root / "journal.sqlite")
    number, open_groups = 0, []
    with MetricsWriter(root, tensorboard=False) as writer:
        for step in range(1, steps + 1):
            for group in open_groups:
                _end(journal, group, step, noise, biased=group[0].admitted >= biased_from)
            open_groups = []
            for _ in range(groups if step > 1 else 2 * groups):
                lengths = noise.lognormal(4.4 + 0.5 * step / steps + noise.normal(0, 0.6), 0.5, 4)
                draft = GroupDraft(
                    number, "training", Prompt(str(number), "t"), (1,), step, [Draft(number, i) for i in range(4)]
                )
                journal.admit(draft)
                open_groups.append((draft, np.clip(lengths, 1, CAP).astype(int)))
                _write(journal, open_groups[-1], 0.5)
                number += 1
            if step == 1:
                for group in open_groups[:groups]:
                    _end(journal, group, step, noise, biased=False)
                del open_groups[:groups]
            journal.commit()
            writer.write(step, {"loss": 0.0, **book.measure(step, journal.lengths)})
    journal.close()
    return root


def _write(journal, group, share):
    for draft, length in zip(group[0].drafts, group[1].tolist(), strict=True):
        count = max(1, round(length * share)) - len(draft.tokens)
        if count > 0:
            delta = TokenDelta((7,) * count, (-1.0,) * count, WeightVersion(group[0].admitted - 1))
            journal.extend(draft, len(draft.tokens), delta)
            draft.extend(delta)


def _end(journal, group, step, noise, *, biased):
    draft, lengths = group
    if biased and lengths.max() > 250 and noise.random() < 0.6:
        _write(journal, group, noise.uniform(0.5, 1))
        journal.drop(draft.id, "failed")
        return
    _write(journal, group, 1.0)
    for rollout, length in zip(draft.drafts, lengths, strict=True):
        rollout.reason = FinishReason.LENGTH if length == CAP else FinishReason.STOP
        journal.finish(rollout)
    if noise.random() < 0.1:
        journal.drop(draft.id, "zero variance")
    else:
        cut = {i: "truncated" for i, rollout in enumerate(draft.drafts) if rollout.reason is FinishReason.LENGTH}
        journal.exclude(draft.id, cut)
        journal.consume([draft.id], step)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = write_run(tmp_path_factory.mktemp("lengths") / "run", steps=8, groups=16, biased_from=4)
    return build_report(root).read_text(encoding="utf-8")


def test_a_run_that_loses_long_texts_shows_where_they_part(page):
    assert "Lengths sampled, lengths trained on" in page
    for title in ("Length by weights", "Share of what was sampled", "Gap of the two", "Waiting: written so far"):
        assert f"<figcaption>{title}" in page
    panel = page.split("Lengths sampled, lengths trained on")[1].split("</section>")[0]
    assert re.search(r'<p class="alarm">In \d of 7 steps training did not see the lengths', panel)
    assert "Mostly “failed”" in panel and "rollout.retries" in panel
    assert "out: group failed" in panel and "out: group scores alike" in panel and "waiting, so far" in panel
    assert "Lengths of weights 0 to 6" in panel


def test_the_band_of_a_batch_holds_the_middle_of_its_lengths(page):
    panel = page.split("<figcaption>Length by weights")[1].split("</figure>")[0]
    assert panel.count('class="fill s0"') == 1 and panel.count('class="line edge s1"') == 2
    assert panel.count('class="line s0"') == panel.count('class="line s1"') == 1
    assert "nan" not in panel


def test_a_run_that_loses_nothing_has_no_alarm(tmp_path):
    root = write_run(tmp_path / "run", steps=4, groups=8, biased_from=9)
    page = build_report(root).read_text(encoding="utf-8")
    assert '<p class="alarm">' not in page and "Length by weights" in page
