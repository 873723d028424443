#!/usr/bin/env bash
#SBATCH --job-name=lwz-2_base_think
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# Step 2, Base-think: the same with the think prompt. Needs nothing of step 1.
# From the repository's root: sbatch examples/longwriter_zero_32b_64xh100/2_base_think.sh [section.key=value …]
# Submitted again, it goes on from its last checkpoint.
set -euo pipefail
TRAINER_NODES=4
source examples/longwriter_zero_32b_64xh100/cluster.sh

serve_engines "models/Qwen2.5-32B" "$RUNS/2_base_think/engines"
train train_grpo "$STEPS/2_base_think.yaml" rollout.urls="[$urls]" "$@"
export_policy "$RUNS/2_base_think"
