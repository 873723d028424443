import pytest

from megatron_lwz.data.preparation.language import tell_language

TEXTS = {
    "en": [
        "Write a long story about the sea and the people who live by it.",
        "cyberpunk noir opening",
        "Explain the naïve approach to the café problem, and write an essay on it.",
        "Write an essay about 春节 and how it is celebrated in the United States today",
        "Essay: to be, or not to be?",
    ],
    "zh": [
        "写一篇关于春天的作文，不少于800字。",
        "請寫一篇關於環保的報告",
        "用 Python 和 PyTorch 写一篇介绍深度学习的文章",
        "写一篇作文",
    ],
    None: [
        "Escribe un ensayo sobre la soledad y el mar que me guste",
        "Écris une histoire pour les enfants dans la forêt",
        "Schreibe einen Aufsatz über das Meer und die Menschen",
        "海についての長い物語を書いてください。",
        "바다에 대한 긴 이야기를 써 주세요",
        "Напиши длинный рассказ о море и людях",
        "اكتب قصة طويلة عن البحر",
        "Bir deniz hikayesi yaz ve uzun bir şekilde anlat",
        "12345 !!! ???",
        "",
    ],
}


@pytest.mark.parametrize(("expected", "text"), [(language, text) for language in TEXTS for text in TEXTS[language]])
def test_by_text(expected, text):
    assert tell_language(text) == expected


def test_the_data_sets_word_can_only_rule_out():
    english = "Write a long story about the sea."
    for tag in (None, "English", "en", "Chinese", "unknown", ""):
        assert tell_language(english, tag) == "en"
    assert tell_language(english, "Russian") is None
    assert tell_language("写一篇作文", "English") == "zh"
