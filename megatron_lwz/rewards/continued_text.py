"""What a frozen model reads before a real continuation: the request, and what the policy wrote for it."""

from __future__ import annotations

from typing import Literal

from megatron_lwz.data.markup import Markup, join
from megatron_lwz.data.templates import detect_language

Template = Literal["text", "chat"]

VERSION = 1
"""Counts the changes of the wording."""
_LEADS = {"english": "Notes for the text that follows:", "chinese": "下文的构思："}


def context(template: Template, request: str, written: str = "") -> Markup:
    """Returns the text before the continuation, without `written` if that is blank.

    text: request and notes as paragraphs, for base models. chat: they are the user's message in Qwen's markup, and the
    continuation is the reply, for instruct models.
    """
    said = request.strip()
    if written.strip():
        said += f"\n\n{_LEADS[detect_language(request)]}\n{written.strip()}"
    if template == "text":
        return join(said, "\n\n")
    return join(Markup("<|im_start|>user\n"), said, Markup("<|im_end|>\n<|im_start|>assistant\n"))
