# Sourced by the steps, from the repository's root inside a Slurm allocation: what runs on which node.
# The first TRAINER_NODES nodes train; serve_engines puts two engines of four GPUs on every other node. The engines listen
# on the cluster's network, every route but /health asks for the token; it travels in the clear, so keep the network private.
TRAINER_GPUS=8
STEPS=examples/longwriter_zero_32b_64xh100
RUNS=runs/longwriter_zero_32b
VLLM=${VLLM:-.venv-vllm/bin/vllm}
LWZ_ENGINE_TOKEN=${LWZ_ENGINE_TOKEN:-$(openssl rand -hex 24)}
export LWZ_ENGINE_TOKEN VLLM
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_ON_NODE   # otherwise a task may get a single core
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1     # else ranks that torchrun restarts find the addresses of those that ended

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT

# train STAGE CONFIG [section.key=value …]: the stage on the trainer nodes, one process per GPU. After a failure torchrun starts
# it again on the same nodes, and it goes on from its last checkpoint. It saves and ends before the job's time is over, and
# after SIGUSR1 (#SBATCH --signal), which torchrun must ignore; the step then has to be submitted again.
train() {
    local stage=$1 trainers run given
    trainers=$(IFS=,; echo "${nodes[*]:0:TRAINER_NODES}")
    srun --nodes="$TRAINER_NODES" --ntasks="$TRAINER_NODES" --nodelist="$trainers" \
        bash -c 'trap "" USR1; exec "$@"' bash \
        torchrun --nnodes "$TRAINER_NODES" --nproc-per-node "$TRAINER_GPUS" --rdzv-backend c10d \
        --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "${nodes[0]}:29500" --max-restarts "${RESTARTS:-3}" \
        -m "megatron_lwz.cli.$stage" "$2" ${SLURM_JOB_END_TIME:+run.must_save_by=slurm} "${@:3}"
    run=$RUNS/$(basename "$2" .yaml)
    for given in "${@:3}"; do [[ $given != run.dir=* ]] || run=${given#run.dir=}; done
    [[ -f $run/summary.json ]] || { echo "$run has not come to its last step: submit this step again" >&2; exit 75; }
}

# serve_engines MODEL LOGS: vLLM on the other nodes; returns when all answer. Their addresses are in `urls`, comma-separated.
serve_engines() {
    local node url started=()
    mkdir -p "$2"
    export MODEL=$1
    for node in "${nodes[@]:TRAINER_NODES}"; do
        srun --nodes=1 --ntasks=1 --nodelist="$node" --output="$2/$node.log" bash -c '
            trap "" USR1   # it asks the trainer to save, not the engines to end
            # why each option is there: docs/vllm.md; the guard is loaded from this folder
            export VLLM_SERVER_DEV_MODE=1 VLLM_API_KEY=$LWZ_ENGINE_TOKEN PYTHONPATH=$PWD
            serve() { "$VLLM" serve "$MODEL" --served-model-name policy --dtype bfloat16 --tensor-parallel-size 4 \
                --max-model-len 16384 --max-num-seqs 128 --logprobs-mode processed_logprobs --generation-config vllm \
                --enable-prefix-caching --middleware megatron_lwz.rollout.vllm_guard.RequireToken \
                --disable-uvicorn-access-log --host 0.0.0.0 --port "$1"; }
            CUDA_VISIBLE_DEVICES=0,1,2,3 serve 8000 &
            CUDA_VISIBLE_DEVICES=4,5,6,7 serve 8001 &
            wait -n' &
        started+=("http://$node:8000" "http://$node:8001")
    done
    for url in "${started[@]}"; do
        timeout 1800 bash -c "until curl --silent --fail --output /dev/null $url/health; do sleep 5; done" \
            || { echo "engine $url did not start within 30 minutes, see $2" >&2; exit 1; }
    done
    urls=$(IFS=,; echo "${started[*]}")
}

# export_policy RUN: the newest checkpoint of a GRPO run as a Hugging Face folder, RUN/hf.
export_policy() {
    srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" torchrun --nproc-per-node "$TRAINER_GPUS" \
        -m megatron_lwz.cli.convert export --checkpoint "$1" --out "$1/hf" --tensor "$TRAINER_GPUS"
}
