#!/usr/bin/env bash
# One node: GPUs 0 to 3 train, GPUs 4 to 7 serve, as the section `launch` of config.yaml says (docs/launch.md). vLLM is the command
# launch.engines.command, in a virtual environment of its own (requirements/rollout-vllm.txt). Further arguments are settings
# (section.key=value).
set -euo pipefail
cd "$(dirname "$0")/../.."
exec lwz launch torchrun examples/qwen2.5_7b_8xh100/config.yaml "$@" --submit
