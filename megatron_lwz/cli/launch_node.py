"""What the scripts of `lwz launch` call on their nodes: `python -m megatron_lwz.cli.launch_node check | engines CONFIG …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.cli import common, option_types
from megatron_lwz.config import load_config
from megatron_lwz.distributed import environment
from megatron_lwz.launch import checks, engines


def main(argv: Sequence[str]) -> None:
    """Checks this node, or waits for engines. Raises LwzError."""
    parser = common.Parser(prog="launch_node", description="The checks of a launch.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="check | engines")
    check = actions.add_parser("check", help="whether this node can do its part")
    check.add_argument("--node", type=option_types.not_negative, required=True, help="its number, trainers first")
    check.add_argument("--nodes", type=option_types.positive, required=True, help="nodes of the launch")
    check.add_argument("--id", required=True, help="the same on all nodes of this start")
    wait = actions.add_parser("engines", help="wait for engines, and check that they fit the run")
    wait.add_argument("--within", type=option_types.positive_number, required=True, help="seconds")
    wait.add_argument("--url", nargs="+", required=True)
    for action in (check, wait):
        action.add_argument("--state", type=Path, required=True, help="the launch's folder, beside the run folder")
        action.add_argument("given", nargs="+", metavar="CONFIG [section.key=value …]")
    asked = parser.parse_args(argv)
    config = load_config(asked.given[0], asked.given[1:])
    if asked.action == "engines":
        token = environment.get(config.rollout.api_key_env or "LWZ_ENGINE_TOKEN")
        engines.wait_for_engines(config, asked.url, token, asked.state, within=asked.within)
        return
    section = config.launch
    trains = asked.node < section.nodes
    serves = section.engines.per_node > 0 and (not trains or not section.engines.nodes)
    if trains:
        checks.check_files(config)
        checks.check_room(config)
    checks.check_gpus(config)
    checks.check_ports(config, first=asked.node == 0, engines=serves)
    if serves:
        checks.check_engine_command(config)
    checks.check_shared(asked.state, asked.node, asked.nodes, asked.id)


if __name__ == "__main__":
    sys.exit(common.run(main))
