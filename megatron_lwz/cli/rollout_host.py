"""`python -m megatron_lwz.cli.rollout_host --socket FD`: started by a trainer with `rollout.controller: process`."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

from megatron_lwz.cli import common, lifetime
from megatron_lwz.distributed import termination
from megatron_lwz.errors import LwzError
from megatron_lwz.orchestrator.connection import Connection, describe_error
from megatron_lwz.orchestrator.service import serve


def main(argv: Sequence[str]) -> int:
    """Serves the trainer at the other end of the inherited socket. Returns the exit status.

    An LwzError is sent to the trainer over the socket.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    options = parser.parse_args(argv)
    common.start_log()
    connection = Connection(socket.socket(fileno=options.socket))
    with lifetime.running(), termination.watched(forced=lambda: None, until_exit=True):
        try:
            serve(connection)
        except LwzError as error:
            connection.send({"parting": describe_error(error)})
            return common.USER_ERROR
        except termination.Terminated:
            return 0
    return 0


if __name__ == "__main__":
    _status = main(sys.argv[1:])
    lifetime.ends_with(_status)
    sys.exit(_status)
