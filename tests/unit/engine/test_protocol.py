"""Requests that the engine cannot serve as asked are refused in one line that names the key."""

from __future__ import annotations

import pytest

from megatron_lwz.rollout.engine.protocol import parse_request


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": [1], "n": 2}, "n = 2: one completion per request"),
        ({}, "prompt: Field required"),
        ({"prompt": [[1], [2]]}, "prompt: must be one text or one list of token ids"),
        ({"prompt": [1, "a"]}, "prompt: must be"),
        ({"prompt": [1], "max_tokens": 0}, "max_tokens = 0: "),
        ({"prompt": [1], "max_tokens": "5"}, "max_tokens = 5: "),
        ({"prompt": [1], "temperature": -1}, "temperature = -1: "),
        ({"prompt": [1], "temperature": float("nan")}, "temperature = nan: "),
        (
            {"prompt": [1], "temperature": 1e-40},
            "temperature = 1e-40: must be 0 (the most likely token), or from 1e-06 ",
        ),
        ({"prompt": [1], "temperature": 1e39}, "temperature = 1e+39: must be 0 "),
        ({"prompt": [1], "top_p": 0}, "top_p = 0: "),
        ({"prompt": [1], "logprobs": 5}, "logprobs = 5: only the sampled token's"),
        ({"prompt": [1], "echo": True}, "echo = True: "),
        ({"prompt": [1], "frequency_penalty": 0.5}, "frequency_penalty = 0.5: "),
        ({"prompt": [1], "logit_bias": {"5": 1}}, "logit_bias = {'5': 1}: this engine does not know the key"),
    ],
)
def test_refused_in_one_line(body: dict, words: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        parse_request(body)
    assert str(caught.value).startswith(words)


def test_settings_that_change_nothing_are_accepted() -> None:
    request = parse_request(
        {
            "prompt": "a",
            "n": 1,
            "best_of": 1,
            "echo": False,
            "frequency_penalty": 0,
            "presence_penalty": 0.0,
            "stop": "x",
        }
    )
    assert request.stop_strings() == ["x"]
