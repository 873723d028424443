#!/usr/bin/env bash
# One node: GPUs 0 and 1 train, GPUs 2 and 3 serve, as the section `launch` of config.yaml says (docs/launch.md). vLLM is the command
# launch.engines.command, in a virtual environment of its own (requirements/rollout-vllm.txt). Further arguments are settings
# (section.key=value).
set -euo pipefail
cd "$(dirname "$0")/../.."
exec lwz launch torchrun examples/qwen3_4b_4xa800/config.yaml "$@" --submit
