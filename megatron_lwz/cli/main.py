"""The console script `lwz <command>`, for all commands that run in one process.

Training stages run under torchrun instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_lwz.cli import common, lifetime

COMMANDS = {
    "plan": ("megatron_lwz.cli.plan", "whether a run fits, how long it takes, which layout to choose; needs no GPU"),
    "simulate": (
        "megatron_lwz.cli.simulate",
        "step time, idle time and staleness of a run, from numbers that are measured or planned",
    ),
    "launch": ("megatron_lwz.cli.launch", "write or submit what starts a run: torchrun, Slurm, Kubernetes, SkyPilot"),
    "prompts": ("megatron_lwz.cli.prompts", "conversations with users → prompt rows with length ranges"),
    "pairs": ("megatron_lwz.cli.pairs", "texts, human pairs or a run's siblings → preference pairs"),
    "corpus": ("megatron_lwz.cli.corpus", "texts and journals → indexed datasets for pretraining"),
    "convert": ("megatron_lwz.cli.convert", "Hugging Face folder ↔ checkpoint: import, export, verify"),
    "serve-engine": ("megatron_lwz.cli.serve_engine", "serve a policy over HTTP, with vLLM's routes"),
    "serve-reward": ("megatron_lwz.cli.serve_reward", "serve a reward model over HTTP"),
    "evaluate": ("megatron_lwz.cli.evaluate", "measure writing: without a judge, or on the public benchmarks"),
    "config": ("megatron_lwz.cli.config", "show, compare and explain settings; a JSON schema for editors"),
    "runs": ("megatron_lwz.cli.runs", "the runs below a folder: state, step, last scores"),
    "doctor": ("megatron_lwz.cli.doctor", "look whether this machine can run the stages"),
    "ui": ("megatron_lwz.cli.ui", "watch runs and read their rollouts in a browser"),
    "report": ("megatron_lwz.cli.report", "write report.html of a run folder again"),
    "replay": ("megatron_lwz.cli.replay", "compute one step of a GRPO run again, from checkpoint and journal"),
    "rescore": ("megatron_lwz.cli.rescore", "stored rollouts under another reward config: what would change"),
    "bench-kernels": ("megatron_lwz.cli.bench_kernels", "time, memory and error of the log-prob op on this machine"),
    "build-cuda": ("megatron_lwz.cli.build_cuda", "compile the CUDA epilogue for Hopper, with nvcc"),
}
"""Name → (module with `main(argv)`, description). A module is imported only when its command is called."""


def main() -> int:
    """Runs `lwz`. Returns the exit status."""
    return common.run(dispatch)


def dispatch(argv: Sequence[str]) -> None:
    """Runs the command `argv[0]` with the other arguments. Raises UsageError for an unknown command."""
    if argv and argv[0] in COMMANDS:
        lifetime.import_command(COMMANDS[argv[0]][0]).main(argv[1:])
        return
    if argv and argv[0] not in ("-h", "--help"):
        raise common.UsageError(f"lwz has no command '{argv[0]}': choose one of {', '.join(COMMANDS)}")
    lines = [f"  {name:<14} {what}" for name, (_, what) in COMMANDS.items()]
    names = "train_grpo | train_sft | train_reward_model | train_dpo | pretrain | score"
    stages = f"Stages: torchrun --nproc-per-node N -m megatron_lwz.cli.<{names}> CONFIG"
    text = "\n".join(["usage: lwz <command> … [--traceback]", "", *lines, "", stages])
    common.console().print(text, markup=False)


if __name__ == "__main__":
    sys.exit(main())
