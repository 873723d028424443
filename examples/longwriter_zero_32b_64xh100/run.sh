#!/usr/bin/env bash
# The whole chain as Slurm jobs, each after the one before: from the repository's root on a login node
#     bash examples/longwriter_zero_32b_64xh100/run.sh [FIRST_STEP]
# A step that failed or was killed is submitted again by itself (sbatch …/N_step.sh) and goes on where it was;
# FIRST_STEP (1 to 6, default 1) submits the chain from there.
set -euo pipefail
steps=(1_base_nothink 2_base_think 3_distil 4_pretrain 5_longwriter_zero 6_evaluate)
job=
for step in "${steps[@]:${1:-1}-1}"; do
    job=$(sbatch --parsable ${job:+--dependency=afterok:$job} "examples/longwriter_zero_32b_64xh100/$step.sh")
    echo "$step: job $job"
done
