#!/usr/bin/env bash
#SBATCH --job-name=lwz-1_base_nothink
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# Step 1, Base-nothink: 150 steps of GRPO on the base model, which answers without thinking.
# From the repository's root: sbatch examples/longwriter_zero_32b_64xh100/1_base_nothink.sh [section.key=value …]
# Submitted again, it goes on from its last checkpoint.
set -euo pipefail
TRAINER_NODES=4
source examples/longwriter_zero_32b_64xh100/cluster.sh

serve_engines "models/Qwen2.5-32B" "$RUNS/1_base_nothink/engines"
train train_grpo "$STEPS/1_base_nothink.yaml" rollout.urls="[$urls]" "$@"
export_policy "$RUNS/1_base_nothink"
