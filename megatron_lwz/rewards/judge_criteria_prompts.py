"""The questions with which a judge writes criteria for one request, and the parsing of its lists. The wording is ours."""

from __future__ import annotations

from collections.abc import Callable

from megatron_lwz.data.preparation.language import Language
from megatron_lwz.rewards.judge_client import Question, mark
from megatron_lwz.rewards.judge_json import read_object
from megatron_lwz.rewards.judge_prompts import SYSTEM, as_checklist

LONGEST_CRITERION = 600
"""Maximum number of characters of one criterion. WritingBench's have up to about 400."""

_WRITE: dict[Language, str] = {
    "en": """A user sent this request to a writer:

{request}

Write {number} criteria by which a good editor would tell better pieces for this very request from weaker ones. Each speaks of \
this request, of its subject, form, reader and purpose, and not of writing in general. Each can be judged from the finished piece \
alone, and by degrees. No two overlap, and none is about the number of words. Each is one sentence that says what a strong piece \
does. Most important first.

Answer: {{"criteria": ["…", "…"]}}""",
    "zh": """用户向写作者提出了这个请求：

{request}

请写出 {number} 条标准，好编辑会据此分辨针对这一请求的文章孰优孰劣。每条都针对这一请求的题材、形式、读者与目的，而不是泛泛谈写作；\
每条都能仅凭成文判断，并有程度之分；各条不重叠，也不涉及字数。每条一句话，说明优秀的文章会怎样做。最重要的在前。

回答：{{"criteria": ["…", "…"]}}""",
}


def criteria_question(request: str, language: Language, number: int) -> Question:
    """Returns the question for `number` criteria of a request (query-specific criteria: UniCreative, 2604.05517)."""
    asked = _WRITE[language].format(request=mark(request), number=number)
    return Question(asked, f"lwz-criteria-{language}-1", SYSTEM[language])


def read_criteria(least: int, most: int) -> Callable[[str], tuple[str, ...] | None]:
    """Returns a parser of a list of sentences, all different. It gives the first `most`, and None for fewer than `least`."""

    def read(reply: str) -> tuple[str, ...] | None:
        found = read_object(reply, ("criteria",))
        listed = as_checklist(found["criteria"], most, longest=LONGEST_CRITERION) if found else None
        return listed if listed is not None and len(listed) >= least else None

    return read
