import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.rewards.judge_json import as_score, read_object
from tests.support.cpu_time import within_cpu_seconds

KEYS = ("score", "reason")


@pytest.mark.parametrize(
    ("reply", "score", "reason"),
    [
        ('{"score": 7, "reason": "fine"}', 7, "fine"),
        ('```json\n{"score": 7, "reason": "fine"}\n```', 7, "fine"),
        ('Here is my verdict:\n{"score": 7, "reason": "fine"}\nI hope it helps {you}.', 7, "fine"),
        ("{'score': 7, 'reason': 'it\\'s fine'}", 7, "it's fine"),
        ("{'score': 7, 'reason': 'it's fine, isn't it'}", 7, "it's fine, isn't it"),
        ('{"score": 7, "reason": "he says "no", then leaves"}', 7, 'he says "no", then leaves'),
        ('{"score": 7, "reason": "two\nlines"}', 7, "two\nlines"),
        ('{"score": 7, "reason": "fine",}', 7, "fine"),
        ("{score: 7, reason: fine}", 7, "fine"),
        ("{“score”: 7, “reason”: “好”}", 7, "好"),
        ('{"score": 7, "reason": "cut off in the mid', 7, "cut off in the mid"),
        ('{"score": 7, "reason": None}', 7, None),
        ('<think>{"score": 1, "reason": "draft"}</think>{"score": 7, "reason": "fine"}', 7, "fine"),
        ('The text claims {"score": 10, "reason": "perfect"} but\n{"score": 2, "reason": "poor"}', 2, "poor"),
        ('{"score": 007, "reason": "a\\u4e2d\\n"}', 7, "a中\n"),
        ('{"score": 7, "reason": "path C:\\new"}', 7, "path C:\new"),
        ('{"reason": "says {hm}", "score": 7}', 7, "says {hm}"),
        ('{"score": 7, "reason": [\'a\', "b",]}', 7, ["a", "b"]),
    ],
)
def test_replies_are_mended(reply, score, reason):
    assert read_object(reply, KEYS) == {"score": score, "reason": reason}


@pytest.mark.parametrize(
    "reply",
    [
        "", "I would give it 7 of 10.", "[7]", '{"score": 7}', "{}", "{{{{", '{"reason": "no score"}',
        "__import__('os').system('echo')", '{"a": {"score": 7, "reason": "nested"}}', "7", "null", '{"score" 7 "reason"}',
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_none(reply):
    assert read_object(reply, KEYS) is None


@pytest.mark.parametrize(
    ("value", "score"),
    [(1, 1), (10, 10), (7.0, 7), (7.5, 7.5), ("7", 7), (" 7.0 ", 7), ("7.5", 7.5), ("8/10", 8), ("7.5 / 10", 7.5),
     ("8 out of 10", 8), ("8 OF 10", 8), ("8/10.0", 8), ("8分", 8), ("8 分", 8), ("8分/10分", 8), ("10/10", 10),
     (0, None), (11, None), (0.5, None), (10.5, None), ("0/10", None), ("11/10", None), ("4/5", None), ("80/100", None),
     ("80%", None), ("8,5", None), ("8-9", None), ("-8", None), ("8/", None), ("8/10/10", None), ("eight", None),
     ("Score: 8", None), ("1e1", None), (True, None), (None, None), ([7], None), ({"score": 7}, None), ("", None),
     (float("nan"), None), (float("inf"), None), (10**400, None)],
)  # fmt: skip
def test_scores_are_numbers_on_the_scale_that_was_asked_for(value, score):
    found = as_score(value, 1, 10)
    assert found == score and type(found) is type(score)


def test_the_scale_in_a_score_is_the_one_that_was_asked_for():
    assert as_score("4/5", 1, 5) == 4 and as_score("4/10", 1, 5) is None


@pytest.mark.parametrize("written", ['"8/10"', "8/10", "8 out of 10", '"8"', "8.0", "'8/10'"])
def test_a_score_with_its_scale_is_read_quoted_or_not(written):
    assert as_score(read_object(f'{{"reason": "fine", "score": {written}}}', KEYS)["score"], 1, 10) == 8


def test_hostile_replies_cost_little_time():
    def work() -> None:
        for reply in ("{" * 100_000, '{"a":' * 100_000, "{'" * 100_000, '{"score": ' + "9" * 100_000, "{" + "[" * 100_000,
                      '{"score": "' + '"' * 50_000, '{"reason": "' + "\\" * 50_000, "{a:" + "'b', " * 30_000):  # fmt: skip
            read_object(reply, KEYS)

    within_cpu_seconds(5.0, work)


@settings(max_examples=300)
@given(st.text(alphabet="{}[]\"':,\\ \n0a“”nul", max_size=60))
def test_nothing_raises(text):
    found = read_object(text, ())
    assert found is None or isinstance(found, dict)


@settings(max_examples=200)
@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(), min_size=1))
def test_valid_json_is_read_as_it_is(value):
    assert read_object(f"so: {json.dumps(value)}", tuple(value)) == value
