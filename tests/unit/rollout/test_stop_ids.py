"""A special token as stop string: engines that only see text are asked for its id, the rollout still names the string."""

from __future__ import annotations

import pytest

from megatron_lwz.types import FinishReason
from tests.support.synthetic_engine import CharTokenizer, Engine, chunk

USER = 1


class WithSpecialToken(CharTokenizer):
    def encode(self, text):
        return [USER] if text == "<|user|>" else super().encode(text)

    def decode(self, ids, skip_special=True):
        return super().decode([i for i in ids if i != USER])


@pytest.mark.parametrize(("last", "stop", "text"), [(USER, "<|user|>", "a<|user|>"), (0, None, "a")])
def test_an_end_by_token_id_gets_the_name_of_its_stop_string(start_engine, make_controller, last, stop, text):
    engine = Engine(script=[chunk([97, last], [-1.0, -1.0], "stop", stop_reason=last)])
    controller = make_controller(start_engine(engine), group_size=1, tokenizer=WithSpecialToken())
    (group,) = controller.collect(1)
    (rollout,) = group.rollouts
    assert engine.requests[0]["stop_token_ids"] == [0, USER] and "<|user|>" in engine.requests[0]["stop"]
    assert (rollout.finish_reason, rollout.stop, rollout.text) == (FinishReason.STOP, stop, text)
