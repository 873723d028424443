"""The grammar a second time, as one regular expression over the whole text: what the stream parser is compared with."""

import re

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def is_valid(text, template="think", *, stop=None, quoted=()):
    """Whether `text` follows the grammar of data/text/grammar.py; `stop` as there."""
    if stop == "</answer>":  # the server may have left the tag out
        return _matches(text, template, quoted) or _matches(text + "</answer>", template, quoted)
    return _matches(text.removesuffix(stop or ""), template, quoted)


def _matches(text, template, quoted):
    def segment(name):
        refused = [f"</{name}>", *(tag for tag in TAGS if tag not in quoted)]
        return rf"<{name}>(?P<{name}>(?:(?!{'|'.join(refused)}).)*)</{name}>"

    parts = [segment("think"), segment("answer")] if template == "think" else [segment("answer")]
    found = re.fullmatch(r"\s*" + r"\s*".join(parts) + r"\s*", text, re.DOTALL)
    return found is not None and all(inner.strip() for inner in found.groups())
