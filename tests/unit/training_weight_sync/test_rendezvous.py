"""The message in the store is what vLLM un-pickles; the store listens where it was told to, and nobody is waited for."""

import ctypes
import pickle
import pickletools
import secrets
import socket
import sys
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from megatron_lwz.errors import EngineError, EnvironmentSetupError
from megatron_lwz.training.weight_sync.rendezvous import UNIQUE_ID_KEY, MeetingPoint, address_towards, unique_id_message
from tests import weight_peer


@pytest.fixture
def their_class(monkeypatch: pytest.MonkeyPatch) -> type[ctypes.Structure]:
    before = dict(sys.modules)
    weight_peer.install_class()
    yield weight_peer.ncclUniqueId
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def test_the_unique_id_arrives_as_the_peers_own_structure(their_class: type[ctypes.Structure]) -> None:
    unique_id = secrets.token_bytes(128)
    found = pickle.loads(unique_id_message(unique_id))  # noqa: S301 (as the peer does)
    assert type(found) is their_class and bytes(found) == unique_id


def test_the_message_does_what_a_pickle_of_the_structure_does(their_class: type[ctypes.Structure]) -> None:
    unique_id = secrets.token_bytes(128)

    def steps(message: bytes) -> list[tuple[str, object]]:
        told = [(code.name, value) for code, value, _ in pickletools.genops(message)]
        return [(name, value) for name, value in told if name not in ("MEMOIZE", "FRAME")]

    theirs = pickle.dumps(their_class.from_buffer_copy(unique_id), protocol=4)
    assert steps(unique_id_message(unique_id)) == steps(theirs)


def test_an_id_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="128 bytes, not 3"):
        unique_id_message(b"abc")


def test_a_client_reads_the_message_from_the_store() -> None:
    started = time.monotonic()
    point = MeetingPoint("127.0.0.1", 0, size=3, timeout=20)
    unique_id = secrets.token_bytes(128)
    point.publish(unique_id)
    assert time.monotonic() - started < 5, "it waited for clients"
    client = dist.TCPStore("127.0.0.1", point.port, 3, False, timedelta(seconds=5), use_libuv=False)
    assert client.get(UNIQUE_ID_KEY) == unique_id_message(unique_id)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", point.port), timeout=2):
        pass  # bound to one address only


def test_a_taken_port_is_one_line() -> None:
    point = MeetingPoint("127.0.0.1", 0, size=1, timeout=5)
    with pytest.raises(EnvironmentSetupError, match=rf"cannot listen on 127.0.0.1:{point.port}: another process"):
        MeetingPoint("127.0.0.1", point.port, size=1, timeout=5)


def test_the_address_is_the_one_that_leads_to_the_engine() -> None:
    assert address_towards("http://127.0.0.1:8000") == "127.0.0.1"
    with pytest.raises(EngineError, match=r"no-such-host\.invalid.*weight_sync\.address"):
        address_towards("http://no-such-host.invalid:8000")
