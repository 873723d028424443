"""The questions with which a judge writes criteria for one request, and the parsing of its lists. The wording is ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_lwz.data.preparation.language import Language
from megatron_lwz.rewards.judge_client import Question, mark
from megatron_lwz.rewards.judge_json import read_object
from megatron_lwz.rewards.judge_prompts import SYSTEM, as_checklist, digest, numbered

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
_HARDER: dict[Language, str] = {
    "en": """A user sent this request to a writer:

{request}

An editor tells pieces for it apart by these criteria:

{criteria}

All pieces now meet number {met}, so these tell nothing apart any more. For each of them write one criterion to put in its place. \
It asks for clearly more in the same matter: good pieces meet it only in part, excellent ones wholly. It asks for nothing that the \
request does not want, and does not repeat another criterion. Each can be judged from the finished piece alone, is not about the \
number of words, and is one sentence that says what an excellent piece does.

Answer, with {count} in the order of the numbers: {{"criteria": ["…"]}}""",
    "zh": """用户向写作者提出了这个请求：

{request}

编辑用以下标准分辨文章的优劣：

{criteria}

现在所有文章都已达到第 {met} 条，它们不再有区分作用。请为其中每一条各写一条新标准来替换。新标准在同一方面提出明显更高的要求：\
好文章只能部分达到，极优秀的文章才能完全达到。不得要求请求本身并不需要的东西，也不得与其他标准重复。每条都能仅凭成文判断，\
不涉及字数，一句话说明极优秀的文章会怎样做。

回答，共 {count} 条，按编号顺序：{{"criteria": ["…"]}}""",
}
_PAIR: dict[Language, str] = {
    "en": """Two writers were given this request:

{request}

The first one wrote:

{first}

The second one wrote:

{second}

Judge the two pieces by these criteria, which were written for this request, the most important first:

{criteria}

Decide for each criterion which piece meets it better, then which piece is better by all of them together. Go by what the pieces \
really contain, not by their length. The order of the two means nothing. Say "tie" only if you would not miss either.

Answer: {{"reason": "what decides it, in two or three sentences", "winner": "first" or "second" or "tie"}}""",
    "zh": """两位写作者收到了同一个请求：

{request}

第一位写道：

{first}

第二位写道：

{second}

请按以下专为这一请求拟定的标准评判两篇文章，最重要的在前：

{criteria}

先逐条判断哪一篇做得更好，再综合全部标准判断哪一篇更好。只看文章实际写了什么，不看篇幅。两篇的先后顺序没有意义。\
只有当两篇少了哪一篇都不可惜时才回答 "tie"。

回答：{{"reason": "两三句话说明依据", "winner": "first" 或 "second" 或 "tie"}}""",
}


def pair_by_criteria_question(
    request: str, first: str, second: str, language: Language, criteria: Sequence[str]
) -> Question:
    """Returns the question which of two pieces is better by a request's own criteria (UniCreative, 2604.05517)."""
    asked = _PAIR[language].format(
        request=mark(request), first=mark(first), second=mark(second), criteria=mark(numbered(criteria), "criteria")
    )
    return Question(asked, f"lwz-pair-criteria-{language}-1@{digest(criteria)}", SYSTEM[language])


def harder_question(request: str, language: Language, criteria: Sequence[str], met: Sequence[int]) -> Question:
    """Returns the question for harder criteria in place of `criteria[k]`, k in `met` (indices from 0)."""
    asked = _HARDER[language].format(
        request=mark(request),
        criteria=mark(numbered(criteria), "criteria"),
        met=", ".join(str(k + 1) for k in met),
        count=len(met),
    )
    return Question(asked, f"lwz-harder-{language}-1", SYSTEM[language])


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
