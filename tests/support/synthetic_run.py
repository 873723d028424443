"""A run folder as a real run leaves it: config, metrics, journal. Numbers are made up; the files are real."""

import math
import random
from pathlib import Path

from megatron_lwz.config import save_config, validate
from megatron_lwz.metrics import MetricsWriter
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.types import (
    ComponentScore,
    FinishReason,
    LengthRange,
    Prompt,
    TokenDelta,
    WeightVersion,
)

ATTACK = "<script>alert('model text')</script>"


def write_run(root: Path, steps: int = 40, *, prompts: int = 6, samples: int = 4) -> Path:
    """Writes the folder; training improves over `steps`."""
    root.mkdir(parents=True, exist_ok=True)
    tree = {
        "run": {"dir": str(root), "name": "synthetic <run>"},
        "training": {"steps": steps},
        "data": {"held_out_prompts": "held_out.jsonl"},
        "checkpoint": {"best_metric": "eval/reward/length"},
        "parallel": {"tensor": 2},
    }
    save_config(validate(tree), root / "config.yaml")
    _write_metrics(root, steps)
    (root / "checkpoints").mkdir(exist_ok=True)
    (root / "checkpoints" / "best").write_text(f"step_{steps:08d}")
    _write_journal(root / "journal.sqlite", steps, prompts, samples)
    return root


def _write_metrics(root, steps):
    noise = random.Random(0)
    with MetricsWriter(root, tensorboard=False) as writer:
        _write_evaluation(writer, 0, 0)
        for step in range(1, steps + 1):
            done = 1 / (1 + math.exp(-8 * (step / steps - 0.4)))
            row = {
                "loss": 0.02 * noise.gauss(0, 1),
                "grad_norm": 1 - 0.5 * done + 0.1 * noise.random(),
                "reward/length": 0.4 + 0.5 * done + 0.05 * noise.gauss(0, 1),
                "reward/format": 0.1 + 0.85 * done + 0.03 * noise.gauss(0, 1),
                "reward_masked/length": 0.0,
                "format_valid": min(1.0, 0.1 + 0.88 * done + 0.02 * noise.random()),
                "length_in_range": 0.2 + 0.6 * done + 0.05 * noise.random(),
                "near_duplicates": 0.05 * noise.random(),
                "rollout/mean_length": 150 + 120 * done + 10 * noise.gauss(0, 1),
                "rollout/mean_length_untruncated": 130 + 120 * done + 10 * noise.gauss(0, 1),
                "rollout/mean_length_units": 110 + 80 * done + 10 * noise.gauss(0, 1),
                "rollout/think_length": 30 + 20 * done + 2 * noise.gauss(0, 1),
                "rollout/think_length_tokens": 40 + 30 * done + 2 * noise.gauss(0, 1),
                "rollout/truncated": 0.4 * (1 - done) + 0.02 * noise.random(),
                "rollout/sameness": 0.02 + 0.2 * done,
                "entropy": 2.1 - done + 0.05 * noise.gauss(0, 1),
                "kl": math.nan,
                "mismatch/mean_weight": 1 + 1e-5 * noise.gauss(0, 1),
                "mismatch/kl": 3e-7 + 1e-7 * noise.random(),
                "tokens_per_second": 900 + 60 * noise.gauss(0, 1),
                "lr": 2e-4,
                "seconds/rollout": 4.0,
                "seconds/update": 3.0,
            }
            writer.write(step, row)
        for done in (0.5, 1):
            _write_evaluation(writer, round(done * steps), done)
        writer.close(7.0 * steps)


def _write_evaluation(writer, step, done):
    found = {
        "format_valid": 0.1 + 0.87 * done,
        "length_in_range": 0.2 + 0.55 * done,
        "reward/length": 0.4 + 0.52 * done,
    }
    found |= {"text/s_l": 70 + 20 * done, "quality/s_q": 62.5, "steps_behind": 3.0 * (done < 1)}
    writer.write_evaluation(step, {f"eval/{name}": value for name, value in found.items()})


def _write_journal(path, steps, prompts, samples):
    noise = random.Random(1)
    journal = Journal(path)
    group = 0
    for step in [*range(1, 4), *range(steps - 2, steps + 1)]:
        done = step / steps
        for number in range(prompts):
            asked = LengthRange(60 + 60 * (number % 5), 80 + 70 * (number % 5))
            text = (
                f"写一篇关于第{number}条河的短文。" if number % 2 else f"Write about river {number}, please. {ATTACK}"
            )
            drafts = [_draft(group, index, step) for index in range(samples)]
            scores = []
            for _ in drafts:
                written = max(0, round(noise.gauss(70 + done * (asked.lower - 60), 40 * (1.2 - done))))
                in_range = float(asked.lower <= written <= asked.upper)
                length = ComponentScore(0.5 + 0.5 * in_range, details={"words": float(written), "in_range": in_range})
                scores.append(
                    {"length": length, "format": ComponentScore(1.0), "extra": ComponentScore(0.0, valid=False)}
                )
            journal.admit(GroupDraft(group, "training", Prompt(str(number), text, asked), (1, 2), step, drafts))
            for draft in drafts:
                journal.extend(draft, 0, TokenDelta((3, 4), (-0.5, -0.25), WeightVersion(step)))
                journal.finish(draft)
            journal.score(group, scores)
            journal.consume([group], step)
            group += 1
    journal.close()


def _draft(group, index, step):
    draft = Draft(group, index)
    draft.reason, draft.stop = FinishReason.STOP, "</answer>"
    body = "The river leaves the hills at dawn & bends south. It carries silt, boats and old songs.\n\n" * 4
    draft.text = f"<think>Plan {ATTACK}: source, middle, mouth.</think>\n<answer>Step {step}. {ATTACK}\n{body}</answer>"
    return draft
