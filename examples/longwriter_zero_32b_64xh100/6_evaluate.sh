#!/usr/bin/env bash
#SBATCH --job-name=lwz-6_evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# Step 6, evaluation as in the paper: WritingBench, Arena-Write and LongBench-Write of every policy there is, with the
# model card's sampling, then side by side (docs/evaluation.md). One node: a policy on four GPUs, the critic on the others.
#   BENCHMARKS   folder with the authors' files: WritingBench/, arena_write.jsonl, longbench_write.jsonl; default data/benchmarks
#   CRITIC       WritingBench's critic model; default models/WritingBench-Critic-Model-Qwen-7B
#   JUDGE_URL, JUDGE_MODEL, JUDGE_KEY   the pairwise judge and LongBench-Write's (the paper's: Qwen2.5-72B, C)
# From the repository's root: JUDGE_URL=… JUDGE_MODEL=… sbatch examples/longwriter_zero_32b_64xh100/6_evaluate.sh
# Submitted again, it goes on where it was: no response is written and no reply is paid for twice.
set -euo pipefail
: "${JUDGE_URL:?the pairwise judge}" "${JUDGE_MODEL:?its name}"
RUNS=runs/longwriter_zero_32b
OUT=$RUNS/6_evaluation
BENCHMARKS=${BENCHMARKS:-data/benchmarks}
CRITIC=${CRITIC:-models/WritingBench-Critic-Model-Qwen-7B}
VLLM=${VLLM:-.venv-vllm/bin/vllm}
LWZ_ENGINE_TOKEN=${LWZ_ENGINE_TOKEN:-$(openssl rand -hex 24)}
export LWZ_ENGINE_TOKEN JUDGE_KEY=${JUDGE_KEY:-}
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT

# serve GPUS PORT MODEL NAME [option …]: vLLM on loopback; returns when it answers. Its process is in `server`.
serve() {
    CUDA_VISIBLE_DEVICES=$1 VLLM_API_KEY=$LWZ_ENGINE_TOKEN "$VLLM" serve "$3" --served-model-name "$4" --dtype bfloat16 \
        --host 127.0.0.1 --port "$2" --max-model-len 32768 "${@:5}" >"$OUT/$4.log" 2>&1 &
    server=$!
    until curl --silent --fail --output /dev/null "http://127.0.0.1:$2/health"; do
        kill -0 "$server" || { echo "$4 ended, see $OUT/$4.log" >&2; exit 1; }
        sleep 2
    done
}

mkdir -p "$OUT"
serve 4,5 8001 "$CRITIC" critic --tensor-parallel-size 2
critic=(judge.url=http://127.0.0.1:8001/v1 judge.model=critic judge.api_key_env=LWZ_ENGINE_TOKEN judge.concurrency=64)
judge=(judge.url="$JUDGE_URL" judge.model="$JUDGE_MODEL" judge.api_key_env=JUDGE_KEY judge.concurrency=32)

players=() found=()
for policy in 1_base_nothink:direct 2_base_think:think 5_longwriter_zero:think sft_base:direct sft_pretrained:direct; do
    name=${policy%:*} folder=$OUT/${policy%:*}
    [ -d "$RUNS/$name/hf" ] || { echo "no $RUNS/$name/hf, left out"; continue; }
    serve 0,1,2,3 8000 "$RUNS/$name/hf" "$name" --tensor-parallel-size 4
    for task in WritingBench/benchmark_query/benchmark_all arena_write longbench_write; do
        lwz evaluate generate "$BENCHMARKS/$task.jsonl" --output "$folder/${task##*/}.jsonl" --preset longwriter-zero \
            --url http://127.0.0.1:8000/v1 --served-model "$name" --template "${policy#*:}" --concurrency 64
    done
    kill "$server"; wait "$server" || true
    lwz evaluate text "$folder/arena_write.jsonl" --output "$folder"
    lwz evaluate writing-bench --benchmark "$BENCHMARKS/WritingBench" --responses "$folder/benchmark_all.jsonl" \
        --output "$folder" --name "$name" "${critic[@]}"
    lwz evaluate longbench-write --prompts "$BENCHMARKS/longbench_write.jsonl" --responses "$folder/longbench_write.jsonl" \
        --output "$folder" --name "$name" "${judge[@]}"
    players+=(--responses "$name=$folder/arena_write.jsonl") found+=("$name=$folder")
done
lwz evaluate arena-write --prompts "$BENCHMARKS/arena_write.jsonl" "${players[@]}" --pairs all --output "$OUT" "${judge[@]}"
lwz evaluate compare "${found[@]}" --output "$OUT"
