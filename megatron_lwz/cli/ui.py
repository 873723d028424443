"""`lwz ui RUN…`: a local page to watch runs and read their rollouts, also while they go on."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.cli import common, option_types
from megatron_lwz.distributed import environment
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.http.hosts import Hosts, is_loopback
from megatron_lwz.http.listen import serve_until_signalled
from megatron_lwz.http.ports import bind, free_port
from megatron_lwz.ui.run import open_runs
from megatron_lwz.ui.server import make_ui

TOKEN = "LWZ_UI_TOKEN"
_SHORTEST = 16


def main(argv: Sequence[str]) -> None:
    """Serves until SIGINT or SIGTERM. Raises LwzError."""
    options = _parser().parse_args(list(argv))
    token = environment.get(TOKEN) or secrets.token_urlsafe(24)
    if len(token) < _SHORTEST:
        raise EnvironmentSetupError(f"{TOKEN} has {len(token)} characters: take at least {_SHORTEST}, or unset it")
    port = options.port or free_port(options.host)
    runs = open_runs(options.runs, tokenizer=options.tokenizer)
    listener = bind(options.host, port)
    name = "127.0.0.1" if is_loopback(options.host) or options.host in ("0.0.0.0", "::") else options.host
    shown = f"[{name}]" if ":" in name else name
    print_ = common.console().print
    print_(
        f"reading {len(runs)} run{'s' if len(runs) > 1 else ''}; open this address in a browser, ^C ends it:",
        markup=False,
    )
    print_(f"http://{shown}:{port}/?token={token}", markup=False)
    serve_until_signalled(make_ui(runs, token, Hosts(options.host, options.allow_host)), listener)


def _parser() -> common.Parser:
    parser = common.Parser(prog="lwz ui", description="Watch runs and read their rollouts in a browser.")
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="a run folder: it holds metrics.jsonl or journal.sqlite"
    )
    parser.add_argument("--port", type=option_types.port, default=0, help="default: any free port")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default loopback only")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name of this server; may be repeated",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="folder with tokenizer.json, where the run's own is not on this machine"
    )
    return parser


if __name__ == "__main__":
    sys.exit(common.run(main))
