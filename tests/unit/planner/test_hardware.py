"""The data files of cards: every number is there, and names where it was read."""

from __future__ import annotations

import pytest

from megatron_lwz.errors import LwzError
from megatron_lwz.planner.hardware import DEFAULT, gpu, gpus


def test_every_card_has_its_numbers_and_pages() -> None:
    assert {"a100-80g", "a800-80g", "h100-80g", "h200-141g", "h800-80g", "b200-180g"} == set(gpus())
    for name, card in gpus().items():
        assert int(name.rpartition("-")[2].rstrip("g")) == card.memory_gb
        numbers = {"memory_gb", "bf16_tflops", "memory_gb_per_s", "nvlink_gb_per_s", "network_gb_per_s"}
        assert numbers <= set(card.sources.read) <= numbers | {"device"} and card.sources.not_checked
        assert all(page.startswith("https://") for page in (card.sources.vendor, *card.sources.read.values()))


def test_export_cards_differ_from_the_others_in_their_links_alone() -> None:
    links, origin = {"nvlink_gb_per_s"}, {"name", "device", "sources"}
    for export, whole in (("a800-80g", "a100-80g"), ("h800-80g", "h100-80g")):
        ours, theirs = gpu(export).model_dump(), gpu(whole).model_dump()
        assert {key for key in ours if ours[key] != theirs[key]} == links | origin
        assert ours["nvlink_gb_per_s"] == 200


def test_an_unknown_card_is_one_line() -> None:
    with pytest.raises(LwzError, match="--gpu h900: unknown, choose one of a100-80g"):
        gpu("h900")
    assert DEFAULT in gpus()
