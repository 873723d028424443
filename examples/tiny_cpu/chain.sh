#!/usr/bin/env bash
# The order of the paper's runs on two CPU cores: a base model, SFT from it, GRPO without and with thinking, the best
# thinking as 1 % of a corpus, continual pretraining on it, GRPO again, evaluation. Every stage runs under another layout
# than the one it begins from. About half an hour; the sizes below may be set from outside. RUNS picks the folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUNS=${RUNS:-runs/chain-$(date +%Y%m%d-%H%M%S)}
SEED=${SEED:-1234}
DOCUMENTS=${DOCUMENTS:-8000}
PRETRAIN_STEPS=${PRETRAIN_STEPS:-500}
SFT_STEPS=${SFT_STEPS:-60}
GRPO_STEPS=${GRPO_STEPS:-20}
CONTINUED_STEPS=${CONTINUED_STEPS:-100}
GRPO_SETTINGS=${GRPO_SETTINGS:-}                  # more settings of the GRPO runs, e.g. "grpo.group_size=4"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

stage() { torchrun --nproc-per-node 2 -m "megatron_lwz.cli.$1" "examples/tiny_cpu/$2" run.seed="$SEED" "${@:3}"; }
grpo() { stage train_grpo config.yaml training.steps="$GRPO_STEPS" "$@" $GRPO_SETTINGS; }

echo "chain: all outputs go to $RUNS"
python tools/make_tiny_data.py --out "$RUNS/data" --documents "$DOCUMENTS" --good "$((DOCUMENTS / 5))"

echo "0. the base model: pretraining, data parallel 2"
stage pretrain pretrain.yaml run.dir="$RUNS/0_base" model.tokenizer="$RUNS/data" training.steps="$PRETRAIN_STEPS" \
    data.corpus="[$RUNS/data/corpus.jsonl]" data.validation="{texts: [$RUNS/data/corpus.jsonl]}"

echo "the comparator: SFT from the base model's checkpoint, tensor parallel 2"
stage train_sft sft.yaml run.dir="$RUNS/sft_base" model.tokenizer="$RUNS/data" checkpoint.load="$RUNS/0_base" \
    data.instructions="[$RUNS/data/good.jsonl]" training.steps="$SFT_STEPS" parallel.tensor=2

echo "1. Base-nothink: GRPO with the direct prompt from the base model's Hugging Face weights, pipeline parallel 2"
grpo run.dir="$RUNS/1_base_nothink" model.hf="$RUNS/0_base/hf" data.prompt_template=direct \
    parallel.tensor=1 parallel.pipeline=2

echo "2. Base-think: the same with the think prompt, tensor parallel 2"
grpo run.dir="$RUNS/2_base_think" model.hf="$RUNS/0_base/hf" data.prompt_template=think

echo "3. the corpus: 1 % of it the best thinking of run 2"
cat >"$RUNS/3_corpus.yaml" <<CORPUS
tokenizer: data
validation: 0.02
sources:
  - {name: texts, paths: [data/corpus.jsonl]}
  - {name: thoughts, format: journal, paths: [2_base_think], weight: 0.01}
CORPUS
lwz corpus "$RUNS/3_corpus.yaml" --out "$RUNS/corpus" --workers 2

echo "4. continual pretraining from the base model's checkpoint, context parallel 2"
stage pretrain pretrain.yaml run.dir="$RUNS/4_pretrain" model.tokenizer="$RUNS/data" checkpoint.load="$RUNS/0_base" \
    training.steps="$CONTINUED_STEPS" data.corpus="[$RUNS/corpus/manifest.json]" optimizer.lr=1.0e-3 parallel.context=2 \
    data.validation="{texts: [$RUNS/data/corpus.jsonl]}"

echo "5. GRPO with the think prompt from the checkpoint of 4, tensor parallel 2"
grpo run.dir="$RUNS/5_grpo" model.hf="$RUNS/0_base/hf" checkpoint.load="$RUNS/4_pretrain" data.prompt_template=think

echo "6. evaluation on the held-out prompts, side by side"
found=()
for policy in 0_base:think sft_base:think 1_base_nothink:direct 2_base_think:think 5_grpo:think; do
    name=${policy%:*} folder=$RUNS/6_evaluation/${policy%:*}
    lwz evaluate generate examples/tiny_cpu/held_out.jsonl --output "$folder/responses.jsonl" --model "$RUNS/$name" \
        --style bare --template "${policy#*:}" --preset training --max-tokens 640 --threads 1
    lwz evaluate text "$folder/responses.jsonl" --output "$folder"
    found+=("$name=$folder")
done
lwz evaluate compare "${found[@]}" --output "$RUNS/6_evaluation"
