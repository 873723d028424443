#!/usr/bin/env bash
#SBATCH --job-name=lwz-3_distil
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# Step 3, the corpus: texts of all sources and the best thoughts of step 2 as indexed datasets with exact shares. No GPU.
# From the repository's root: sbatch examples/longwriter_zero_32b_64xh100/3_distil.sh
# Submitted again, it goes on with what is not done. See docs/corpus.md.
set -euo pipefail
lwz corpus examples/longwriter_zero_32b_64xh100/3_corpus.yaml --out corpora/longwriter_zero \
    --workers "${SLURM_CPUS_ON_NODE:-8}"
