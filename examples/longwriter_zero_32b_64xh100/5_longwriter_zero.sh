#!/usr/bin/env bash
#SBATCH --job-name=lwz-5_longwriter_zero
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# Step 5, LongWriter-Zero: GRPO with the think prompt on the continually pretrained model of step 4.
# From the repository's root: sbatch examples/longwriter_zero_32b_64xh100/5_longwriter_zero.sh [section.key=value …]
# Submitted again, it goes on from its last checkpoint.
set -euo pipefail
TRAINER_NODES=4
source examples/longwriter_zero_32b_64xh100/cluster.sh

serve_engines "$RUNS/4_pretrain/hf" "$RUNS/5_longwriter_zero/engines"
train train_grpo "$STEPS/5_longwriter_zero.yaml" rollout.urls="[$urls]" "$@"
export_policy "$RUNS/5_longwriter_zero"
