"""A run folder to read: long English and Chinese rollouts with real tokens, versions, repetition, and hostile texts."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np

from megatron_lwz.config import save_config, validate
from megatron_lwz.metrics import MetricsWriter
from megatron_lwz.rollout import token_values
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import Alarm, ComponentScore, FinishReason, LengthRange, Prompt, TokenDelta, WeightVersion

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "</textarea></title></style><!-- ]]> &lt;b&gt; {{7*7}} \u202eright to left\u202c \u2066isolate\u2069 \x1b[31mred\x07\x00 "
    "zero\u200bwidth \U000e0041tag \u2028line 'quote' \"double\" javascript:alert(1)"
)
"""Markup, a script, controls, direction marks, hidden characters: all of it must appear as text."""

_EN = [
    "river",
    "stone",
    "morning",
    "quiet",
    "harbour",
    "letter",
    "winter",
    "field",
    "lantern",
    "ferry",
    "engine",
    "garden",
    "window",
    "market",
    "bridge",
    "evening",
    "mountain",
    "village",
    "paper",
    "silver",
    "thunder",
    "orchard",
    "copper",
    "meadow",
    "compass",
    "shadow",
    "current",
    "station",
    "chapter",
]
_VERBS = ["carries", "leaves", "remembers", "crosses", "follows", "answers", "gathers", "opens", "measures", "forgets"]
_ZH = "河流清晨山谷村庄灯火渡船旧信冬天田野石桥黄昏花园窗户市场群山银色雷声果园铜铃草地影子车站章节风声海港"
_ZH_VERBS = "经过离开记得穿越跟随回答聚集打开丈量忘记"


def english(words: int, seed: int = 0) -> str:
    """Prose of about so many words, with headings."""
    rng = random.Random(seed)
    parts, count, chapter = [], 0, 0
    while count < words:
        chapter += 1
        parts.append(f"## Chapter {chapter}: The {rng.choice(_EN)}")
        for _ in range(8):
            sentences = []
            for _ in range(rng.randint(3, 7)):
                nouns = rng.sample(_EN, 5)
                sentences.append(
                    f"The {nouns[0]} {rng.choice(_VERBS)} the {nouns[1]}, and near the {nouns[2]} a {nouns[3]} "
                    f"{rng.choice(_VERBS)} what the {nouns[4]} had left behind."
                )
            parts.append(" ".join(sentences))
            count += sum(len(sentence.split()) for sentence in sentences)
            if count >= words:
                break
    return "\n\n".join(parts)


def chinese(characters: int, seed: int = 0) -> str:
    """Chinese prose of about so many characters, with headings."""
    rng = random.Random(seed)
    parts, count, chapter = [], 0, 0
    while count < characters:
        chapter += 1
        parts.append(f"## 第{chapter}章 {''.join(rng.sample(_ZH, 4))}")
        for _ in range(6):
            text = "".join(
                f"{''.join(rng.sample(_ZH, rng.randint(4, 9)))}，{''.join(rng.sample(_ZH_VERBS, 2))}{''.join(rng.sample(_ZH, rng.randint(3, 8)))}。"
                for _ in range(rng.randint(5, 11))
            )
            parts.append(text)
            count += len(text)
            if count >= characters:
                break
    return "\n\n".join(parts)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE like Qwen's, trained on the texts above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([english(1500, 99), chinese(2500, 99)], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


class ReadingRun:
    """Writes a run folder step by step, as a run that goes on would."""

    def __init__(self, root: Path, *, steps: int = 40, name: str = "novels") -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        write_tokenizer(root / "tokenizer")
        tree = {
            "run": {"dir": str(root), "name": name},
            "model": {"tokenizer": str(root / "tokenizer")},
            "training": {"steps": steps},
        }
        save_config(validate(tree), root / "config.yaml")
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(root / "tokenizer" / "tokenizer.json"))
        self._ids: dict[str, tuple[int, ...]] = {}
        self.journal = Journal(root / "journal.sqlite")
        self.metrics = MetricsWriter(root, tensorboard=False)
        self.steps = steps
        self.groups = 0

    def add_group(
        self,
        prompt: Prompt,
        texts: list[str],
        *,
        step: int,
        reason: FinishReason = FinishReason.STOP,
        consume: bool = True,
        values: bool = True,
    ) -> int:
        """Writes a group with these responses; the second half of each by later weights.

        `values`: the trainer left values per token, if a step consumed the group.
        """
        group, self.groups = self.groups, self.groups + 1
        drafts = []
        rng = random.Random(group)
        for index, text in enumerate(texts):
            draft = Draft(group, index)
            draft.reason, draft.stop, draft.text = reason, "</answer>" if reason is FinishReason.STOP else None, text
            drafts.append(draft)
        self.journal.admit(GroupDraft(group, "training", prompt, (1, 2), step, drafts))
        scores = []
        for draft in drafts:
            ids = self._encode(draft.text)
            logprobs = tuple(-min(12.0, rng.expovariate(1.4)) for _ in ids)
            half = len(ids) // 2
            self.journal.extend(draft, 0, TokenDelta(ids[:half], logprobs[:half], WeightVersion(step - 1, 0, "aa")))
            if half:
                self.journal.extend(draft, half, TokenDelta(ids[half:], logprobs[half:], WeightVersion(step, 0, "bb")))
            if reason is FinishReason.GUARD:
                draft.alarms = (Alarm("loop", half, True, {"length": 0.0}),)
            self.journal.finish(draft)
            words = float(len(draft.text.split()))
            length = ComponentScore(rng.random(), details={"words": words, "in_range": 1.0})
            masked = ComponentScore(0.0, valid=False, version=f"judge {HOSTILE}")
            scores.append(
                {
                    "length": length,
                    "format": ComponentScore(1.0),
                    "writing": masked if rng.random() < 0.2 else _judged(rng.random(), draft.text),
                }
            )
        self.journal.score(group, scores)
        if consume:
            self.journal.consume([group], step)
            sides = [1.0 if index % 2 == 0 else -0.5 for index in range(len(texts))]
            self.journal.note_advantages(group, [(side, {"length": side / 2, "writing": side / 2}) for side in sides])
            if values:
                self._write_values(group, step, drafts, rng)
        self.journal.commit()
        return group

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            self._ids[text] = tuple(self.tokenizer.encode(text).ids)
        return self._ids[text]

    def _write_values(self, group: int, step: int, drafts: list[Draft], rng: random.Random) -> None:
        counts = [len(self._encode(draft.text)) for draft in drafts]
        segments = np.array([(group, index, 2, count) for index, count in enumerate(counts)])  # prompts have 2 tokens
        entropy = np.array([rng.expovariate(1.0) for _ in range(sum(counts))], np.float32)
        apart = np.array([rng.gauss(0, 0.05) for _ in range(sum(counts))], np.float32)
        folder = RunPaths(self.root).token_values_of(step)
        token_values.write(token_values.file_of(folder, group), segments, entropy, apart)

    def add_step(self, step: int, **changes: float) -> None:
        """Writes the metrics of a step; `changes` win."""
        rng = random.Random(step)
        done = 1 / (1 + math.exp(-8 * (step / self.steps - 0.4)))
        row = {
            "loss": 0.02 * rng.gauss(0, 1), "grad_norm": 1 - 0.5 * done + 0.1 * rng.random(), "entropy": 2.1 - 0.9 * done + 0.05 * rng.gauss(0, 1),
            "reward/length": 0.4 + 0.5 * done + 0.03 * rng.gauss(0, 1), "reward/format": 0.1 + 0.85 * done, "reward/writing": 0.3 + 0.2 * done + 0.02 * rng.gauss(0, 1),
            "format_valid": min(1.0, 0.1 + 0.88 * done), "length_in_range": 0.2 + 0.6 * done, "rollout/truncated": 0.3 * (1 - done),
            "rollout/mean_length": 4000 + 9000 * done + 300 * rng.gauss(0, 1), "rollout/mean_length_untruncated": 3500 + 9000 * done,
            "rollout/think_length_tokens": 500 + 200 * done, "rollout/engines": 2.0, "rollout/engines_up": 2.0, "rollout/engines_leaving": 0.0,
            "rollout/concurrency_limit": 96.0, "rollout/waiting": 12.0, "rollout/staleness": 1.0, "rollout/zero_variance_groups": 0.1,
            "rollout/sameness": 0.02 + 0.1 * done, "length/sampled/mean": 4000 + 9000 * done, "length/trained/mean": 3900 + 9000 * done, "length/parted": 0.0,
            "mismatch/kl": 3e-4 + 1e-4 * rng.random(), "mismatch/clipped": 0.001, "tokens_per_second": 900 + 60 * rng.gauss(0, 1), "lr": 2e-6,
            "gradient/length": 0.4, "gradient/writing": 0.6, "rollout/masked_groups/writing": 0.0, "seconds/rollout": 40.0, "seconds/update": 30.0,
        }  # fmt: skip
        self.metrics.write(step, row | changes)

    def close(self) -> None:
        self.journal.close()


def _judged(value: float, text: str) -> ComponentScore:
    """A judge's score whose words quote the text, and are hostile."""
    quoted = text[len(text) // 2 :][:40].partition("\n")[0]
    said = f"It holds together, though “{quoted}” and “this stands nowhere in it” are weak. {HOSTILE}"
    return ComponentScore(
        value, True, {"criterion_1": 7.0}, "judge/lwz-rubric-en-1", (("", said), ("partly met", "人物前后一致。"))
    )


def prompts() -> list[Prompt]:
    """The prompts of `write_reading_run`, by group."""
    return [
        Prompt("novel-en", "Write a long novel about a river town, in English.", LengthRange(9000, 13000)),
        Prompt("novel-zh", "写一部关于河边小镇的长篇小说。", LengthRange(14000, 20000)),
        Prompt("hostile", f"A prompt with {HOSTILE} in it", LengthRange(10, 40)),
    ]


def response(text: str, think: str = "I plan the chapters first, then the ending.") -> str:
    return f"<think>{think}</think>\n<answer>{text}</answer>"


def write_reading_run(root: Path, *, words: int = 1600, more: int = 12, steps: int = 40) -> Path:
    """Writes the whole folder. `words`: length of the long rollouts; `more`: short groups at several steps."""
    run = ReadingRun(root, steps=steps)
    en, zh, bad = prompts()
    twice = english(120, 7)
    run.add_group(
        en,
        [
            response(f"{english(words, 1)}\n\n{twice}\n\n{english(words // 8, 3)}\n\n{twice}"),
            response(english(words // 2, 2)),
        ],
        step=1,
    )
    run.add_group(
        zh, [response(chinese(int(words * 1.5), 1), "先列提纲，再写正文。" * 8), response(chinese(words, 2))], step=1
    )
    run.add_group(bad, [response(HOSTILE, HOSTILE), f"{HOSTILE} <answer>{HOSTILE}", HOSTILE], step=1, values=False)
    run.add_group(en, [response("One line. " * 400), response("")], step=2, reason=FinishReason.GUARD)
    for number in range(more):
        step = 2 + number % max(1, steps - 2)
        prompt = Prompt(
            f"p{number % 5}",
            f"写第{number % 5}条河。" if number % 2 else f"Write about river number {number % 5}.",
            LengthRange(40, 90),
        )
        texts = [response(chinese(60, number * 9 + i) if number % 2 else english(60, number * 9 + i)) for i in range(3)]
        run.add_group(prompt, texts, step=step, consume=number < more - 1)
    for step in range(1, steps + 1):
        run.add_step(step)
    run.close()
    return root


def write_many(root: Path, *, rollouts: int = 5000, group: int = 4, words: int = 150) -> Path:
    """Writes a run with `rollouts` short rollouts, half of them Chinese, and a step per 50 groups."""
    groups = rollouts // group
    run = ReadingRun(root, steps=max(1, groups // 50), name="many")
    texts = {
        0: [response(english(words, seed)) for seed in range(40)],
        1: [response(chinese(words, seed)) for seed in range(40)],
    }
    for number in range(groups):
        asked = f"Write about river number {number}." if number % 2 == 0 else f"写第{number}条河。"
        chosen = [texts[number % 2][(number * 7 + index) % 40] for index in range(group)]
        step = min(run.steps, 1 + number // 50)
        run.add_group(Prompt(f"p{number % 400}", asked, LengthRange(100, 200)), chosen, step=step, values=False)
    for step in range(1, run.steps + 1):
        run.add_step(step)
    run.close()
    return root
