"""Finds free TCP ports and binds them, with a one-line error for a port that is taken."""

from __future__ import annotations

import errno
import random
import socket

from megatron_lwz.errors import EnvironmentSetupError

BELOW_EPHEMERAL = range(20_000, 32_000)
"""Ports below the ephemeral range, which is 32768 … 60999 on Linux, 49152 and above on other systems."""
PORTS_TRIED = 100


def free_port(host: str = "127.0.0.1") -> int:
    """Returns a TCP port that is free now, outside the ephemeral range from which systems assign ports.

    A server may need seconds to start. Until then, only a program that requests exactly this port can take it.
    """
    for port in random.SystemRandom().sample(BELOW_EPHEMERAL, PORTS_TRIED):  # a seeded run must not repeat its ports
        try:
            bind(host, port).close()
        except EnvironmentSetupError:
            continue
        return port
    raise EnvironmentSetupError(
        f"no free port on {host} among {PORTS_TRIED} of {BELOW_EPHEMERAL}: stop what holds them"
    )


def bind(host: str, port: int) -> socket.socket:
    """Returns a bound TCP socket, ready for a server (port 0: any free port).

    Raises EnvironmentSetupError if the port is taken or not permitted, or if the host is not an address of this
    machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            advice = "another process listens there; choose another port or stop that process"
        else:
            advice = f"{error.strerror or error}; choose an address of this machine, and a port above 1023"
        raise EnvironmentSetupError(f"cannot listen on {host}:{port}: {advice}") from error
    return listener
