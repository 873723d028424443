"""Real HTTP and gloo between two processes: ranks, order of calls, bytes, and what every failure says."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_lwz.config import Config
from megatron_lwz.errors import EngineError
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.training.weight_sync.buckets import Buckets
from megatron_lwz.training.weight_sync.sender import Sender
from megatron_lwz.types import WeightVersion
from tests.support import weight_peer
from tests.support.gloo_channel import GlooChannel, GlooJoining, wait_for_openings

CPU = torch.device("cpu")
SHAPES = {"embed": (40, 8), "norm": (8,), "gate": (16, 8), "up": (16, 8), "bias": (3,), "head": (40, 8)}
BUCKETS = Buckets(SHAPES, torch.bfloat16, 1000)
VERSION = WeightVersion(3, 1)
LEAVE = ["/shutdown_weight_transfer_engine"]
JOIN = [*LEAVE, "/init_weight_transfer_engine"]
BEGIN = ["/pause", "/start_weight_update"]
REST = ["/update_weights", "/finish_weight_update", "/reset_prefix_cache", "/resume"]


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()}


def clients(urls: list[str]) -> list[EngineClient]:
    return [EngineClient(url, weight_peer.TOKEN) for url in urls]


def state(url: str) -> dict:
    async def ask() -> dict:
        async with EngineClient(url, weight_peer.TOKEN) as client:
            return await client.call("GET", "/state")

    return asyncio.run(ask())


def transfer(sender: Sender, urls: list[str], tensors: dict[str, torch.Tensor], version: WeightVersion) -> None:
    sender.begin(clients(urls), BUCKETS)
    sender.send(BUCKETS.pack(tensors.items(), CPU), version)


FAULTS = {
    "refuse /init_weight_transfer_engine": (
        r"does not join the trainer \(.*no such thing.*\): start vLLM, .*--weight-transfer",
        0,
    ),
    "refuse /start_weight_update": (r"/start_weight_update answered 400: .*no such thing", 0),
    "refuse /update_weights": (r"/update_weights answered 400", 1),
    "short": ("took fewer weights than were to be sent", 1),
    "refuse /finish_weight_update": (r"/finish_weight_update answered 400", 1),
    "hang /init_weight_transfer_engine": (r"within 1 s \(weight_sync.timeout\)", 0),
}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two pairs of engines (2 GPUs and 1; 1 and 1) that work, then one per fault, then one more that works."""
    engines = [(2, ""), (1, ""), (1, ""), (1, ""), *((1, fault) for fault in FAULTS), (1, "nccl 2.30.7"), (1, "")]
    with weight_peer.running(tmp_path_factory.mktemp("received"), *engines) as started:
        yield started
    wait_for_openings()


@pytest.fixture
def sender() -> Iterator[Sender]:
    made = Sender(Config().weight_sync.model_copy(update={"timeout": 15.0}), GlooJoining())
    yield made
    made.close()


def assert_received(url: str, tensors: dict[str, torch.Tensor]) -> None:
    files = [Path(file) for file in state(url)["files"]]
    assert files
    for file in files:
        received = load_file(file)
        assert received.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert received[name].dtype == tensor.dtype and torch.equal(received[name], tensor), name


def test_two_engines_of_three_gpus_get_every_bit_twice_over_one_group(sender: Sender, urls: list[str]) -> None:
    for seed in (1, 2):
        transfer(sender, urls[:2], weights(seed), WeightVersion(seed))
        for url in urls[:2]:
            assert_received(url, weights(seed))
    for url, ranks in zip(urls, ([1, 2], [3]), strict=False):
        seen = state(url)
        assert seen["calls"] == JOIN + BEGIN + REST + BEGIN + REST and seen["ranks"] == ranks
        sizes = [bucket.numel() for bucket in BUCKETS.pack(weights(1).items(), CPU)]
        assert len(sizes) > 2 and seen["buckets"] == [sizes * 2] * len(ranks)
    sender.close()
    assert state(urls[0])["calls"][-1] == "/shutdown_weight_transfer_engine"


def test_engines_that_changed_meanwhile_are_joined_anew(sender: Sender, urls: list[str]) -> None:
    pair = urls[2:4]
    transfer(sender, pair[:1], weights(1), WeightVersion(1))
    transfer(sender, pair, weights(2), WeightVersion(2))  # one more
    assert state(pair[0])["calls"] == JOIN + BEGIN + REST + LEAVE + JOIN + BEGIN + REST
    asyncio.run(rename(pair[1], "something else"))  # as if it had been started again
    transfer(sender, pair, weights(3), WeightVersion(3))
    assert state(pair[0])["calls"].count(JOIN[1]) == 3
    for url in pair:
        assert_received(url, weights(3))


class LateJoining(GlooJoining):
    """Its channel notices a while after the engines that a bucket has been received."""

    def open(self, unique_id: bytes, size: int) -> GlooChannel:
        channel = super().open(unique_id, size)
        sent, received = channel.sent, []

        def late() -> bool:
            if sent() and not received:
                received.append(time.monotonic())
            if not received or time.monotonic() < received[0] + 0.3:
                return False
            return bool(received.pop())

        channel.sent = late
        return channel


def test_engines_that_answer_before_this_side_notices_the_end_have_not_taken_too_little(urls: list[str]) -> None:
    sender = Sender(Config().weight_sync.model_copy(update={"timeout": 15.0}), LateJoining())
    transfer(sender, urls[-1:], weights(1), VERSION)
    assert_received(urls[-1], weights(1))
    sender.close()


def test_an_engine_with_another_nccl_is_named_before_anything_joins(urls: list[str]) -> None:
    sender = Sender(Config().weight_sync, GlooJoining(nccl="2.29.7"))
    with pytest.raises(EngineError) as caught:
        sender.begin(clients(urls[-2:-1]), BUCKETS)
    said = str(caught.value)
    assert "uses NCCL 2.30.7 and the trainer 2.29.7" in said and "\n" not in said
    assert "requirements/rollout-vllm.txt" in said and "weight_sync.library" in said
    assert JOIN[1] not in state(urls[-2])["calls"]
    sender.close()


def test_an_engine_with_the_same_nccl_joins_and_one_that_does_not_say_is_reported(
    urls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for url, nccl, warned in ((urls[-2], "2.30.7", False), (urls[-1], "2.29.7", True)):
        sender = Sender(Config().weight_sync.model_copy(update={"timeout": 15.0}), GlooJoining(nccl=nccl))
        transfer(sender, [url], weights(1), VERSION)
        assert_received(url, weights(1))
        assert (f"engine {url} does not say which NCCL" in caplog.text) == warned
        sender.close()


async def rename(url: str, version: str) -> None:
    async with EngineClient(url, weight_peer.TOKEN) as client:
        await client.update_weight_version(version)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_engine_is_one_line_and_does_not_write_with_half_the_weights(urls: list[str], fault: str) -> None:
    said, paused = FAULTS[fault]
    url = urls[4 + list(FAULTS).index(fault)]
    seconds = 1.0 if fault.startswith("hang") else 15.0
    sender = Sender(Config().weight_sync.model_copy(update={"timeout": seconds}), GlooJoining())
    with pytest.raises(EngineError, match=said) as caught:
        transfer(sender, [url], weights(1), VERSION)
    sender.close()
    assert "\n" not in str(caught.value) and url in str(caught.value)
    assert state(url)["paused"] == bool(paused)


def test_an_engine_that_dies_while_it_receives_is_named_at_once(sender: Sender, tmp_path: Path) -> None:
    with weight_peer.running(tmp_path, (1, "die 2")) as urls, pytest.raises(EngineError) as caught:
        transfer(sender, urls, weights(1), VERSION)
    assert urls[0] in str(caught.value) and "Server disconnected" in str(caught.value)


def test_an_engine_that_is_gone_is_named(sender: Sender) -> None:
    with pytest.raises(EngineError, match=r"http://127\.0\.0\.1:9: .*Cannot connect"):
        sender.begin(clients(["http://127.0.0.1:9"]), BUCKETS)


def test_the_token_is_asked_for(sender: Sender, urls: list[str]) -> None:
    with pytest.raises(EngineError, match=r"answered 401.*rollout\.api_key_env"):
        sender.begin([EngineClient(urls[0], "wrong")], BUCKETS)
