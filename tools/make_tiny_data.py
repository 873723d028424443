"""Makes the data of `make demo`: a small bilingual corpus, good texts, and a byte-level BPE tokenizer like Qwen2.5's.

    python tools/make_tiny_data.py --out DIR [--documents 8000] [--good 3200] [--vocabulary 1280] [--seed 1]

Writes DIR/corpus.jsonl, DIR/good.jsonl, DIR/tokenizer.json and DIR/tokenizer_config.json. The same arguments give the
same bytes. good.jsonl holds requests with texts of the requested length that do not repeat themselves. Preference pairs
are made from them. A document is a rendered prompt (bare template), a response and the end-of-text token. The responses
are those of a careless author: less than a third of them follow the think/answer form, half have the requested length,
and some repeat a paragraph. So reinforcement learning has something to choose from, and only the rewards tell it what
to prefer. Pairs of topic and length that the held-out prompts ask for do not occur in the corpus.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import yaml
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from megatron_lwz.data.templates import render
from megatron_lwz.types import Prompt

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "tiny_cpu"
END_OF_TEXT = "<|endoftext|>"
SPECIAL = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")

RIGHT_LENGTH = 0.5
"""Share of the documents whose number of paragraphs fits the requested range."""
REPEATING = 0.35
"""Share of the documents that repeat one paragraph from some point to the end."""
FORMS = {
    "good": 0.25,
    "two answers": 0.02,
    "text after": 0.03,
    "no think": 0.19,
    "answer not opened": 0.14,
    "answer not closed": 0.14,
    "chatter before": 0.07,
    "chatter between": 0.06,
    "think not closed": 0.05,
    "no tags": 0.05,
}
"""Shares of the forms of a document. A stop at `</answer>` turns the second and third into good ones: 0.30 in all."""

# Qwen2.5's pre-tokenizer: single digits, contractions, one leading non-letter kept with a word.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Request:
    """One task: write about `topic` in `lower` to `upper` words (in Chinese: characters)."""

    language: str
    topic: str
    lower: int
    upper: int
    text: str


class Author:
    """Writes requests and responses in one language of the grammar."""

    def __init__(self, language: str, grammar: dict[str, Any], rng: random.Random) -> None:
        self._language = language
        self._ranges: list[list[int]] = grammar["ranges"]
        self._words: dict[str, Any] = grammar[language]
        self._rng = rng

    def request(self) -> Request:
        """Returns a request with random topic, range and wording."""
        lower, upper = self._rng.choice(self._ranges)
        topic = self._rng.choice(list(self._words["topics"]))
        text = self._rng.choice(self._words["requests"]).format(topic=topic, lower=lower, upper=upper)
        extra = self._rng.choice(self._words["extras"])
        gap = " " if extra and self._language == "english" else ""
        return Request(self._language, topic, lower, upper, text + gap + extra)

    def good(self, request: Request) -> str:
        """Returns a text as requested: the right length, no repetition, no tags."""
        aspects = self._rng.sample(self._words["topics"][request.topic], self._right_count(request))
        return self._body(request, aspects, repeating=0.0)

    def respond(self, request: Request) -> str:
        """Returns a response of random form. Its length fits the request with probability RIGHT_LENGTH."""
        count = self._count(request)
        aspects = self._rng.sample(self._words["topics"][request.topic], count)
        form = self._rng.choices(list(FORMS), list(FORMS.values()))[0]
        think = f"<think>\n{self._plan(request, aspects)}\n</think>\n"
        body = self._body(request, aspects)
        answer = f"<answer>\n{body}\n</answer>"
        chatter = self._rng.choice(self._words["chatter"]) + "\n"
        responses = {
            "good": think + answer,
            "two answers": f"{think}{answer}\n{answer}",
            "text after": f"{think}{answer}\n{chatter}",
            "no think": answer,
            "answer not opened": think + body,
            "answer not closed": f"{think}<answer>\n{body}",
            "chatter before": chatter + think + answer,
            "chatter between": think + chatter + answer,
            "think not closed": think.removesuffix("</think>\n") + answer,
            "no tags": body,
        }
        return responses[form]

    def _count(self, request: Request) -> int:
        right = self._right_count(request)
        if self._rng.random() < RIGHT_LENGTH:
            return right
        return self._rng.choice([n for n in range(1, 7) if n != right])

    def _right_count(self, request: Request) -> int:
        return self._ranges.index([request.lower, request.upper]) + 2

    def _plan(self, request: Request, aspects: list[str]) -> str:
        numbered = self._words["numbered"]
        listed = [numbered.format(number=i + 1, aspect=aspect) for i, aspect in enumerate(aspects)]
        return self._rng.choice(self._words["plans"]).format(
            lower=request.lower,
            upper=request.upper,
            topic=request.topic,
            count=self._words["numbers"][len(aspects) - 1],
            aspects=self._words["joint"].join(listed),
        )

    def _body(self, request: Request, aspects: list[str], repeating: float = REPEATING) -> str:
        templates = self._rng.sample(self._words["paragraphs"], len(aspects))
        contents = [t.format(topic=request.topic, aspect=a) for t, a in zip(templates, aspects, strict=True)]
        if len(contents) > 1 and self._rng.random() < repeating:
            stuck = self._rng.randrange(len(contents) - 1)
            contents[stuck:] = [contents[stuck]] * (len(contents) - stuck)
        ordinals = (self._words["ordinal"].format(ordinal=word) for word in self._words["ordinals"])
        return "\n".join(ordinal + content for ordinal, content in zip(ordinals, contents, strict=False))


def documents(count: int, *, seed: int, held_out: Set[tuple[str, int]] = frozenset()) -> Iterator[str]:
    """Yields `count` documents, half English and half Chinese; `held_out` (topic, lower) pairs are left out."""
    for number, (author, request) in enumerate(_requests(count, seed=seed, held_out=held_out)):
        prompt = render(Prompt(str(number), request.text), "bare")
        # With the space, the prompt's tokens are the same with and without a response: "<|assistant|>:" stays whole.
        yield f"{prompt} {author.respond(request)}"


def good_texts(count: int, *, seed: int, held_out: Set[tuple[str, int]] = frozenset()) -> Iterator[dict[str, str]]:
    """Yields `count` rows {"id", "prompt", "response"} of good texts, half English and half Chinese."""
    for number, (author, request) in enumerate(_requests(count, seed=seed, held_out=held_out)):
        yield {"id": f"good-{number}", "prompt": request.text, "response": author.good(request)}


def _requests(count: int, *, seed: int, held_out: Set[tuple[str, int]]) -> Iterator[tuple[Author, Request]]:
    grammar = yaml.safe_load((EXAMPLE / "grammar.yaml").read_text(encoding="utf-8"))
    rng = random.Random(seed)
    authors = [Author(language, grammar, rng) for language in ("english", "chinese")]
    given = 0
    while given < count:
        author = authors[given % 2]
        request = author.request()
        if (request.topic, request.lower) not in held_out:
            yield author, request
            given += 1


def held_out_pairs(path: Path) -> set[tuple[str, int]]:
    """Returns the (topic, lower) pairs of a held-out prompt file."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {(row["topic"], row["length"]["lower"]) for row in rows}


def train_tokenizer(texts: list[str], vocabulary: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE of `vocabulary` ids like Qwen2.5's: NFC, same pre-tokenizer and specials, specials last."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and a tokenizer_config.json that transformers and vLLM read."""
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True
        }
        for token in SPECIAL
    }  # fmt: skip
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": 32768,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--documents", type=int, default=8000)
    parser.add_argument("--good", type=int, default=3200, metavar="TEXTS", help="rows of good.jsonl")
    parser.add_argument("--vocabulary", type=int, default=1280)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    held_out = held_out_pairs(EXAMPLE / "held_out.jsonl")
    texts = list(documents(arguments.documents, seed=arguments.seed, held_out=held_out))
    with (arguments.out / "corpus.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    with (arguments.out / "good.jsonl").open("w", encoding="utf-8") as file:
        rows = good_texts(arguments.good, seed=arguments.seed + 1, held_out=held_out)
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    tokenizer = train_tokenizer(texts, arguments.vocabulary)
    save_tokenizer(tokenizer, arguments.out)
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
    size = tokenizer.get_vocab_size()
    print(f"{arguments.out}: {len(texts)} documents, {tokens} tokens, {size} ids in the vocabulary")


if __name__ == "__main__":
    main()
