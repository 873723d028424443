"""TCP ports: find a free one, and say in one line when one is taken."""

from __future__ import annotations

import errno
import socket

from megatron_lwz.errors import EnvironmentSetupError


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on now. Another process may take it before you do: bind soon."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


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
