"""TCP ports: find a free one, and say in one line when one is taken."""

from __future__ import annotations

import errno
import random
import socket

from megatron_lwz.errors import EnvironmentSetupError

BELOW_EPHEMERAL = range(20_000, 32_000)
"""Linux gives 32768 … 60999, others 49152 and above."""
PORTS_TRIED = 100


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on now, outside the range from which systems give ports to whoever asks for any.

    So only a program that wants this very port can take it before a server that needs seconds to start.
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
    """A bound TCP socket, ready to be served (port 0: any free one).

    Raises EnvironmentSetupError if the port is taken, not ours to take, or the host is not an address of this machine.
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
            advice = error.strerror or str(error)
        raise EnvironmentSetupError(f"cannot listen on {host}:{port}: {advice}") from error
    return listener
