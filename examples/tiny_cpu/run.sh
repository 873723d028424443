#!/usr/bin/env bash
# The demo: make data, pretrain a tiny policy, teach a reward model what is wrong with spoilt texts, then teach the policy by
# GRPO to plan, to answer, to keep the asked length and to write what the reward model likes.
# Two ranks on two CPU cores, about ten minutes. RUNS picks the output folder, SEED the seed; more settings follow as
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
lwz pairs --documents "$RUNS/data/good.jsonl" --out "$RUNS/pairs" --held-out 0.06
torchrun --nproc-per-node 2 -m megatron_lwz.cli.train_reward_model examples/tiny_cpu/reward_model.yaml \
    run.dir="$RUNS/reward_model" run.seed="$SEED" model.hf="$RUNS/pretrain/hf" \
    reward_model.pairs="[$RUNS/pairs/train.jsonl]" reward_model.held_out="[$RUNS/pairs/held_out.jsonl]"
torchrun --nproc-per-node 2 -m megatron_lwz.cli.train_grpo examples/tiny_cpu/config.yaml \
    run.dir="$RUNS/grpo" run.seed="$SEED" model.hf="$RUNS/pretrain/hf" reward.writing.hf="$RUNS/reward_model/hf" "$@"
