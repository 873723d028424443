#!/usr/bin/env bash
# One node: GPUs 0 to 3 train, GPUs 4 to 7 serve. VLLM names the vllm command of its own virtual environment
# (requirements/rollout-vllm.txt). Further arguments are settings (section.key=value).
set -euo pipefail
cd "$(dirname "$0")/../.."
TRAINER_NODES=1
TRAINER_GPUS=4
VLLM=${VLLM:-.venv-vllm/bin/vllm}
MODEL=${MODEL:-models/Qwen2.5-7B}
LOGS=runs/qwen2.5_7b_8xh100/engines
LWZ_ENGINE_TOKEN=${LWZ_ENGINE_TOKEN:-$(openssl rand -hex 24)}
export LWZ_ENGINE_TOKEN

mkdir -p "$LOGS"
engines=()
trap 'kill "${engines[@]}" 2>/dev/null || true; wait' EXIT
for index in 0 1 2 3; do
    # Why each option is there: docs/vllm.md. The guard is loaded from this folder.
    CUDA_VISIBLE_DEVICES=$((4 + index)) VLLM_SERVER_DEV_MODE=1 VLLM_API_KEY=$LWZ_ENGINE_TOKEN PYTHONPATH=$PWD \
        "$VLLM" serve "$MODEL" --served-model-name policy --dtype bfloat16 --max-model-len 16384 --max-num-seqs 128 \
        --logprobs-mode processed_logprobs --generation-config vllm --enable-prefix-caching \
        --middleware megatron_lwz.rollout.vllm_guard.RequireToken --disable-uvicorn-access-log \
        --host 127.0.0.1 --port $((8000 + index)) \
        >"$LOGS/$index.log" 2>&1 &
    engines+=($!)
done
for index in 0 1 2 3; do
    until curl --silent --fail --output /dev/null "http://127.0.0.1:$((8000 + index))/health"; do
        kill -0 "${engines[$index]}" || { echo "engine $index ended, see $LOGS/$index.log" >&2; exit 1; }
        sleep 2
    done
done

CUDA_VISIBLE_DEVICES=0,1,2,3 torchrun --nproc-per-node "$TRAINER_GPUS" --max-restarts "${RESTARTS:-3}" \
    -m megatron_lwz.cli.train_grpo examples/qwen2.5_7b_8xh100/config.yaml model.hf="$MODEL" "$@"
