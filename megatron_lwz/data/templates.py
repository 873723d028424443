"""The prompt text that the policy continues: a plain string with the model card's markers, no chat markup.

paper: an instruction paragraph, then the markers. The paragraph is in our words and has the substance of the card:
    plan, question oneself, weigh style, tone, audience and purpose, review and refine inside think; then the piece
    inside answer. The tags hold what belongs there, because a weak policy copies them: from `<answer>piece</answer>`
    a real one of 0.5B learned to answer "piece".
bare: the markers alone, for small models that were pretrained on them.
"""

from __future__ import annotations

import re
from typing import Literal

from megatron_lwz.data.markup import Markup, join
from megatron_lwz.types import Prompt

Style = Literal["paper", "bare"]

_CJK = re.compile(r"[\u4e00-\u9fff]")

_THINK_ENGLISH = (
    "Below is a conversation between a user and an assistant who writes with great care. The assistant first thinks the "
    "task through, then writes the complete piece and nothing but the piece. The reply has exactly this form: "
    "<think>What the user needs; the structure, and the length of every part; questions to oneself and their answers; "
    "style, tone, audience and purpose; other ways to tell it; a review of this plan and how to refine it.</think> "
    "<answer>The complete piece, from its first sentence to its last, as long as the user asked for.</answer>"
)
_DIRECT_ENGLISH = (
    "Below is a conversation between a user and an assistant who writes with great care. The assistant writes the complete "
    "piece and nothing but the piece. The reply has exactly this form: "
    "<answer>The complete piece, from its first sentence to its last, as long as the user asked for.</answer>"
)
_THINK_CHINESE = (
    "下面是用户与一位写作严谨的助手之间的对话。助手先充分思考，然后写出完整的作品，除作品外不写其他内容。回复的格式必须是："
    "<think>用户的需要；全文结构和各部分的篇幅；向自己提出的问题和回答；文体、语气、读者与目的；不同的写法；对构思的检查与完善。"
    "</think> <answer>完整的作品，从第一句到最后一句，达到用户要求的篇幅。</answer>"
)
_DIRECT_CHINESE = (
    "下面是用户与一位写作严谨的助手之间的对话。助手写出完整的作品，除作品外不写其他内容。回复的格式必须是："
    "<answer>完整的作品，从第一句到最后一句，达到用户要求的篇幅。</answer>"
)
_INSTRUCTIONS = {
    ("english", "think"): _THINK_ENGLISH,
    ("english", "direct"): _DIRECT_ENGLISH,
    ("chinese", "think"): _THINK_CHINESE,
    ("chinese", "direct"): _DIRECT_CHINESE,
}


def detect_language(text: str) -> Literal["english", "chinese"]:
    """Returns "chinese" if the text holds any character in U+4E00–U+9FFF (the model card's rule), else "english"."""
    return "chinese" if _CJK.search(text) else "english"


def render(prompt: Prompt, style: Style = "paper") -> Markup:
    """Returns the string whose tokens the policy continues, in the question's language (not `Prompt.language`)."""
    turn = render_turn(prompt.text)
    if style == "bare":
        return turn
    return join(Markup(f"{instruction(prompt)}\n"), turn)


def instruction(prompt: Prompt) -> str:
    """Returns the instruction paragraph that the paper style puts before the question."""
    return _INSTRUCTIONS[detect_language(prompt.text), prompt.template]


def render_turn(question: str) -> Markup:
    """Returns one question between the role markers of its language, up to where the reply begins."""
    if detect_language(question) == "chinese":
        return join(Markup("<|用户|>: "), question, Markup(" <|助手|>:"))
    return join(Markup("<|user|>: "), question, Markup(" <|assistant|>:"))
