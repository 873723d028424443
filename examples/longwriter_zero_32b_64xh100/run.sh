#!/usr/bin/env bash
#SBATCH --job-name=longwriter-zero
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# From the repository's root: sbatch examples/longwriter_zero_32b_64xh100/run.sh [section.key=value …]
# The first TRAINER_NODES nodes train; every other node runs two engines on four GPUs each. The engines listen on the
# cluster's network: keep it private, their weight routes are not guarded by the token.
set -euo pipefail
TRAINER_NODES=4
TRAINER_GPUS=8
VLLM=${VLLM:-.venv-vllm/bin/vllm}
MODEL=${MODEL:-models/Qwen2.5-32B}
LOGS=runs/longwriter_zero_32b/engines
LWZ_ENGINE_TOKEN=${LWZ_ENGINE_TOKEN:-$(openssl rand -hex 24)}
export LWZ_ENGINE_TOKEN VLLM MODEL
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_ON_NODE   # otherwise a task may get a single core

mkdir -p "$LOGS"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
trainers=$(IFS=,; echo "${nodes[*]:0:TRAINER_NODES}")
urls=()
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
for node in "${nodes[@]:TRAINER_NODES}"; do
    srun --nodes=1 --ntasks=1 --nodelist="$node" --output="$LOGS/$node.log" bash -c '
        export VLLM_SERVER_DEV_MODE=1 VLLM_API_KEY=$LWZ_ENGINE_TOKEN
        serve() { "$VLLM" serve "$MODEL" --served-model-name policy --dtype bfloat16 --tensor-parallel-size 4 \
            --max-model-len 16384 --logprobs-mode processed_logprobs --host 0.0.0.0 --port "$1"; }
        CUDA_VISIBLE_DEVICES=0,1,2,3 serve 8000 &
        CUDA_VISIBLE_DEVICES=4,5,6,7 serve 8001 &
        wait -n' &
    urls+=("http://$node:8000" "http://$node:8001")
done
for url in "${urls[@]}"; do
    timeout 1800 bash -c "until curl --silent --fail --output /dev/null $url/health; do sleep 5; done" \
        || { echo "engine $url did not start within 30 minutes, see $LOGS" >&2; exit 1; }
done

srun --nodes="$TRAINER_NODES" --ntasks="$TRAINER_NODES" --nodelist="$trainers" \
    torchrun --nnodes "$TRAINER_NODES" --nproc-per-node "$TRAINER_GPUS" --rdzv-backend c10d \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "${nodes[0]}:29500" \
    -m megatron_lwz.cli.train_grpo examples/longwriter_zero_32b_64xh100/config.yaml \
    model.hf="$MODEL" rollout.urls="[$(IFS=,; echo "${urls[*]}")]" "$@"
