"""The names by which a server may be called, so that a web page cannot reach it through a name of its own.

A page in a browser on this machine can give its own domain a loopback address (DNS rebinding). Its requests then reach
our server, but they carry that domain in the Host header.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_ANY = frozenset({"", "0.0.0.0", "::"})


class Hosts:
    """Decides whether a Host header names this server."""

    def __init__(self, listening: str = "127.0.0.1", names: Iterable[str] = ()) -> None:
        """Takes the address that the server listens on, and further names that clients call it by.

        A server on every address of the machine also accepts the machine's own name and every numeric address.
        """
        self._anywhere = listening in _ANY
        own = {socket.gethostname(), socket.getfqdn()} if self._anywhere else {listening}
        self._names = LOOPBACK | {name.lower() for name in (*own, *names)}

    def __contains__(self, header: str) -> bool:
        """Whether the header, a name or address with or without a port, names this server."""
        name = _without_port(header).lower().rstrip(".")
        return name in self._names or (self._anywhere and _is_numeric(name))


def is_loopback(host: str) -> bool:
    """Returns whether only programs of this machine can reach a server that listens on `host`."""
    return host in LOOPBACK or (_is_numeric(host) and ipaddress.ip_address(host).is_loopback)


def _without_port(header: str) -> str:
    if header.startswith("["):  # an IPv6 address
        return header[1:].partition("]")[0]
    name, _, port = header.rpartition(":")
    return name if port.isascii() and port.isdigit() else header


def _is_numeric(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
