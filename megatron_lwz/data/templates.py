"""The prompt text that the policy continues: a plain string with the model card's markers, no chat markup.

paper: an instruction paragraph, then the markers. The paragraph is in our words and has the substance of the card:
    plan, question oneself, weigh style, tone, audience and purpose, review and refine inside think; then the piece
    inside answer.
bare: the markers alone, for small models that were pretrained on them.
"""

from __future__ import annotations

import re
from typing import Literal

from megatron_lwz.types import Prompt

Style = Literal["paper", "bare"]

_CJK = re.compile(r"[\u4e00-\u9fff]")

_THINK_ENGLISH = (
    "Below is a conversation between a user and an assistant who writes with great care. Before writing, the assistant "
    "thinks at length inside <think> and </think>: it works out what the user needs, plans the structure and the length "
    "of every part, asks itself questions and answers them, weighs style, tone, audience and purpose, looks at other ways "
    "to tell it, and reviews and refines the plan until it is good. Then it writes the complete piece, and nothing but the "
    "piece, inside <answer> and </answer>. The reply has exactly this form: <think>thinking</think> <answer>piece</answer>."
)
_DIRECT_ENGLISH = (
    "Below is a conversation between a user and an assistant who writes with great care. The assistant writes the complete "
    "piece, and nothing but the piece, inside <answer> and </answer>. The reply has exactly this form: "
    "<answer>piece</answer>."
)
_THINK_CHINESE = (
    "下面是用户与一位写作严谨的助手之间的对话。动笔之前，助手先在<think>和</think>之间充分思考：弄清用户的需要，"
    "规划全文结构和各部分的篇幅，向自己提问并作答，斟酌文体、语气、读者与目的，比较不同写法，反复检查并完善构思。"
    "然后在<answer>和</answer>之间写出完整的作品，除作品外不写其他内容。回复的格式必须是：<think>思考</think> <answer>作品</answer>。"
)
_DIRECT_CHINESE = (
    "下面是用户与一位写作严谨的助手之间的对话。助手在<answer>和</answer>之间写出完整的作品，除作品外不写其他内容。"
    "回复的格式必须是：<answer>作品</answer>。"
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


def render(prompt: Prompt, style: Style = "paper") -> str:
    """Returns the string whose tokens the policy continues, in the question's language (not `Prompt.language`)."""
    turn = render_turn(prompt.text)
    if style == "bare":
        return turn
    return f"{_INSTRUCTIONS[detect_language(prompt.text), prompt.template]}\n{turn}"


def render_turn(question: str) -> str:
    """Returns one question between the role markers of its language, up to where the reply begins."""
    if detect_language(question) == "chinese":
        return f"<|用户|>: {question} <|助手|>:"
    return f"<|user|>: {question} <|assistant|>:"
