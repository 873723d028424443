#!/usr/bin/env bash
#SBATCH --job-name=lwz-4_pretrain
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# Step 4, continual pretraining of the base model on the corpus of step 3; leaves RUN/hf for step 5 (docs/supervised.md).
# From the repository's root: sbatch examples/longwriter_zero_32b_64xh100/4_pretrain.sh [section.key=value …]
# Submitted again, it goes on from its last checkpoint, also on another number of nodes.
set -euo pipefail
TRAINER_NODES=8
source examples/longwriter_zero_32b_64xh100/cluster.sh

train pretrain "$STEPS/4_pretrain.yaml" "$@"
