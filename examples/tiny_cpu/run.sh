#!/usr/bin/env bash
# The demo: make data, pretrain a tiny policy, teach it by GRPO to plan, to answer and to keep the asked length.
# Two ranks on two CPU cores, ten minutes at most. RUNS picks the output folder, SEED the seed; more settings follow as
# section.key=value and go to the GRPO stage.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUNS=${RUNS:-runs/demo-$(date +%Y%m%d-%H%M%S)}
SEED=${SEED:-1234}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

echo "demo: all outputs go to $RUNS"
python tools/make_tiny_data.py --out "$RUNS/data"
torchrun --nproc-per-node 2 -m megatron_lwz.cli.pretrain examples/tiny_cpu/pretrain.yaml \
    run.dir="$RUNS/pretrain" run.seed="$SEED" model.tokenizer="$RUNS/data" data.corpus="[$RUNS/data/corpus.jsonl]"
torchrun --nproc-per-node 2 -m megatron_lwz.cli.train_grpo examples/tiny_cpu/config.yaml \
    run.dir="$RUNS/grpo" run.seed="$SEED" model.hf="$RUNS/pretrain/hf" "$@"
