#!/usr/bin/env bash
# One process on two CPU cores; a step takes some minutes. The same command goes on from the last checkpoint.
# Further arguments are settings: bash examples/qwen2.5_0.5b_cpu/run.sh model.hf=/models/Qwen2.5-0.5B run.dir=runs/try
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

python -m megatron_lwz.cli.train_grpo examples/qwen2.5_0.5b_cpu/config.yaml "$@"
