"""`lwz launch TARGET CONFIG`: writes what starts a run on a cluster, from the config's section `launch`, or starts it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.cli import common
from megatron_lwz.config import load_config
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.launch.description import describe
from megatron_lwz.launch.targets import TARGETS
from megatron_lwz.writing import naming, write_text


def main(argv: Sequence[str]) -> None:
    """Prints or writes a launch, and submits it if asked. Raises LwzError."""
    options = _parser().parse_intermixed_args(list(argv))
    config = load_config(options.config, options.overrides)
    launch = describe(config, [str(options.config), *options.overrides], options.target, Path.cwd())
    kind = TARGETS[options.target]
    text = kind.render(launch)
    if options.shown:
        sys.stdout.write(text)
        return
    folder = options.output or Path(f"{config.run.dir}.launch")
    with naming(folder / kind.file):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / kind.file, text)
    command = [*kind.start(launch), str(folder / kind.file)]
    if options.submit:
        _submit(command)
        return
    console = common.console()
    console.print(f"written: {folder / kind.file}", markup=False)
    console.print(f"start it: {shlex.join(command)}", markup=False)


def _parser() -> common.Parser:
    what = "Write what starts a run on a cluster, from the config's section `launch` (docs/launch.md)."
    parser = common.Parser(prog="lwz launch", description=what)
    parser.add_argument("target", metavar="TARGET", choices=tuple(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file, or a folder that holds config.yaml")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings that win over the file's")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--print", action="store_true", dest="shown", help="print it, and write no file")
    how.add_argument(
        "--submit", action="store_true", help="also start it: bash, sbatch, kubectl apply, sky jobs launch"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder of the file; default: RUN.launch")
    return parser


def _submit(command: Sequence[str]) -> None:
    """Becomes the command that starts the launch."""
    if shutil.which(command[0]) is None:
        raise EnvironmentSetupError(f"--submit needs the command {command[0]}, which is not on the PATH")
    sys.stdout.flush()
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    sys.exit(common.run(main))
