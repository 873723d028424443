#!/usr/bin/env bash
#SBATCH --job-name=lwz-sft
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# The SFT comparators; not part of the chain. START=base (default) or START=pretrained (after step 4) sbatch … sft.sh
# From the repository's root: START=pretrained sbatch examples/longwriter_zero_32b_64xh100/sft.sh [section.key=value …]
set -euo pipefail
TRAINER_NODES=8
source examples/longwriter_zero_32b_64xh100/cluster.sh

case ${START:-base} in
    base) model=models/Qwen2.5-32B ;;
    pretrained) model=$RUNS/4_pretrain/hf ;;
    *) echo "START is base or pretrained, not $START" >&2; exit 2 ;;
esac
train train_sft "$STEPS/sft.yaml" run.dir="$RUNS/sft_${START:-base}" model.hf="$model" "$@"
