import pytest

from megatron_lwz.ui.repetition import repeated, repeated_share
from megatron_lwz.ui.tokens import Tokens
from tests.support.reading_run import HOSTILE, chinese, english, write_tokenizer
from tests.support.tiny_qwen2 import write_word_tokenizer


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokens(folder)


@pytest.mark.parametrize("text", [english(60), chinese(90), HOSTILE, "👩\u200d🚀 naïve 龘", "\ufffd stands here"])
def test_the_ends_of_tokens_agree_with_what_the_tokens_say(tokens, text):
    ids = tokens._tokenizer.encode(text).ids
    ends = tokens.ends(ids, text)
    assert ends is not None and len(ends) == len(ids) and ends[-1] == len(text) and ends == sorted(ends)
    for count in range(1, len(ids)):
        whole = tokens._tokenizer.decode(ids[:count])
        if "\ufffd" not in whole:
            assert whole == text[: ends[count - 1]]


def test_broken_utf8_and_special_tokens_keep_their_places(tokens):
    ids = tokens._tokenizer.encode("语言").ids
    cut = [*ids[:-1], *tokens._tokenizer.encode(" end").ids, tokens._tokenizer.token_to_id("<|endoftext|>")]
    text = tokens._tokenizer.decode(cut)
    ends = tokens.ends(cut, text)
    assert "\ufffd" in text and ends is not None and ends[-1] == ends[-2] == len(text)


def test_a_text_of_other_tokens_and_a_missing_tokenizer_give_none(tokens, tmp_path):
    assert tokens.ends([1, 2], "not this") is None
    missing = Tokens(tmp_path)
    assert missing.ends([1], "a") is None and "--tokenizer" in missing.missing
    assert "names no tokenizer" in Tokens(None).missing


def test_a_tokenizer_that_is_not_byte_level_decodes_in_pairs(tmp_path):
    write_word_tokenizer(tmp_path, ["the", "river", "bends"])
    found = Tokens(tmp_path)
    assert found.ends([1, 2, 3, 0], "the river bends") == [3, 9, 15, 15]


def test_repeated_passages_point_to_their_first_place():
    passage = "the old ferry leaves the quiet harbour before any lantern is lit"
    text = f"A start. {passage}. Something else stands here, quite different. {passage.upper()}! An end."
    (twin,) = repeated(text)
    assert text[twin.start : twin.end] == passage.upper() and text[twin.first : twin.first_end] == passage
    assert repeated(english(2000).replace("The ", "")) is not None
    assert repeated("河流经过村庄和石桥再回到山谷。别的话。河流经过村庄和石桥再回到山谷。") == []
    long = "河流经过村庄和石桥再回到山谷与那座旧车站旁边的花园"
    assert len(repeated(f"{long}。别的话。{long}。")) == 1


def test_repetition_of_one_word_takes_linear_time_and_ends():
    assert sum(twin.end - twin.start for twin in repeated("again " * 20_000)) > 100_000
    assert repeated_share("a b c d " * 50) > 0.9 and repeated_share("a b") is None
