#!/usr/bin/env bash
# One GPU. Further arguments are settings: bash examples/qwen2.5_0.5b_1gpu/run.sh run.seed=7 optimizer.lr=2e-6
set -euo pipefail
cd "$(dirname "$0")/../.."
TRAINER_NODES=1
TRAINER_GPUS=1

torchrun --nproc-per-node "$TRAINER_GPUS" -m megatron_lwz.cli.train_grpo examples/qwen2.5_0.5b_1gpu/config.yaml "$@"
