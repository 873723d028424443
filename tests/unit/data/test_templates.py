import pytest

from megatron_lwz.data.templates import detect_language, render
from megatron_lwz.types import Prompt


def test_one_cjk_character_makes_it_chinese():
    assert detect_language("Explain 道") == "chinese"
    assert detect_language("Explain ラ, é, ㄅ") == "english"


def test_role_markers_follow_the_model_card():
    assert render(Prompt("a", "Write."), "bare") == "<|user|>: Write. <|assistant|>:"
    assert render(Prompt("a", "写。"), "bare") == "<|用户|>: 写。 <|助手|>:"


@pytest.mark.parametrize("question", ["Write.", "写。"])
def test_the_paper_style_puts_an_instruction_before_the_markers(question):
    think, direct = render(Prompt("a", question)), render(Prompt("a", question, template="direct"))
    bare = render(Prompt("a", question), "bare")
    for text in (think, direct):
        assert text.endswith("\n" + bare)
        assert "<answer>" in text and "</answer>" in text
    assert "<think>" in think and "<think>" not in direct
    assert detect_language(think) == detect_language(question)
    assert not any(marker in think.removesuffix(bare) for marker in ("<|user|>", "<|用户|>"))
