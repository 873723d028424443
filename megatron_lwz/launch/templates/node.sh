# What a node does. The settings above are all that differs between launches.

fail() {
    echo "error: $*" >&2
    exit 2
}

# prepare: the folder, the setup file, the variables and the secrets of every process on this node.
prepare() {
    local line name
    cd "$folder" 2>/dev/null || fail "launch.folder $folder is not on $(uname -n): every node must see it"
    if [[ -n $setup ]]; then
        [[ -r $setup ]] || fail "launch.setup $setup cannot be read on $(uname -n)"
        # shellcheck disable=SC1090
        source "$setup"
    fi
    for line in "${variables[@]}"; do export "${line?}"; done
    if [[ -n $secrets_file ]]; then
        [[ -r $secrets_file ]] || fail "launch.secrets_file $secrets_file cannot be read on $(uname -n)"
        [[ $(stat -L -c %A "$secrets_file") == ????------ ]] ||
            fail "launch.secrets_file $secrets_file can be read by others: chmod 600 it"
        while IFS= read -r line || [[ -n $line ]]; do
            for name in "${secrets[@]}"; do
                if [[ $line == "$name="* ]]; then export "${line?}"; fi
            done
        done <"$secrets_file"
    fi
    for name in "${secrets[@]}"; do
        [[ -n ${!name:-} ]] || fail "the secret $name is not set on $(uname -n): export it, or name launch.secrets_file"
    done
    : "${started:=$(date +%s)}"
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else ranks that are started again find the addresses of those that ended
}

# make_token: a token for the engines, unless the environment has one.
make_token() {
    if [[ -z ${!token:-} ]]; then export "$token=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"; fi
}

# check NODE NODES ID: whether this node can do its part. One line and status 2 if not.
check() {
    python -m megatron_lwz.cli.launch_node check "${arguments[@]}" --node "$1" --nodes "$2" --id "$3" --state "$state"
}

# visible FIRST COUNT: the numbers of GPUs, from those that the scheduler gave to this node.
visible() {
    local all
    IFS=, read -ra all <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s , 0 $((gpus - 1)))}"
    (IFS=, && echo "${all[*]:$1:$2}")
}

# serve INDEX ADDRESS HOST: one engine of this node, started again when it ends. In the background only: it ends its shell.
serve() {
    local child='' status=0 attempt=0 line log="$state/engine-$3-$1.log"
    trap 'kill "$child" 2>/dev/null || true; wait "$child" || true; exit 143' TERM
    (umask 077 && : >>"$log")
    line=("${engine[@]}" --host "$2" --port $((engine_port + $1)))
    if [[ ${engine[1]} == serve-engine ]]; then
        export LWZ_ENGINE_TOKEN=${!token}
        line+=(--allow-host "$3")
    else
        # the guard of vLLM's routes is loaded from this folder
        export VLLM_SERVER_DEV_MODE=1 VLLM_API_KEY=${!token} PYTHONPATH=$PWD
    fi
    if ((engine_gpus)); then
        CUDA_VISIBLE_DEVICES=$(visible $((first_gpu + $1 * engine_gpus)) "$engine_gpus")
        export CUDA_VISIBLE_DEVICES
    fi
    for ((attempt = 0; attempt <= restarts; attempt++)); do
        "${line[@]}" >>"$log" 2>&1 &
        child=$!
        wait "$child" && status=0 || status=$?
        echo "engine http://$3:$((engine_port + $1)) ended with status $status, see $log" >&2
        ((status != 2)) || break # what it was told is wrong
        sleep 1
    done
    echo "engine http://$3:$((engine_port + $1)) ended with status $status, see $log" >"$state/failed-$3-$1"
    exit 1
}

# serve_all ADDRESS HOST: the engines of this node, in the background. Their processes are in `served`.
serve_all() {
    local index
    mkdir -p "$state"
    served=()
    first_gpu=$((engine_nodes ? 0 : ranks))
    for ((index = 0; index < engines; index++)); do
        serve "$index" "$1" "$2" &
        served+=($!)
    done
}

# addresses HOST …: the engines of these nodes, in `urls`.
addresses() {
    local host index
    urls=()
    for host in "$@"; do
        for ((index = 0; index < engines; index++)); do urls+=("http://$host:$((engine_port + index))"); done
    done
}

# wait_for_engines: returns when all of `urls` answer and fit the run. One line and status 2 if not.
wait_for_engines() {
    python -m megatron_lwz.cli.launch_node engines "${arguments[@]}" --state "$state" --within "$engine_seconds" \
        --url "${urls[@]}"
}

# train NODES HEAD ID: the stage on this node, with the engines in `urls`; returns torchrun's status. SIGTERM goes to torchrun,
# SIGUSR1 to the ranks: they save and end. torchrun itself must ignore it.
train() {
    local status=0 heard child more=()
    if [[ -n ${save_by:-} ]]; then
        : # the config says it
    elif [[ -n ${SLURM_JOB_END_TIME:-} ]]; then
        more+=(run.must_save_by=slurm)
    elif ((seconds)); then
        more+=("run.must_save_by=$(date -u -d "@$((started + seconds))" +%Y-%m-%dT%H:%M:%SZ)")
    fi
    if ((${#urls[@]})); then more+=("rollout.urls=[$(IFS=, && echo "${urls[*]}")]"); fi
    mkdir -p "$state"
    export LWZ_UNFINISHED_NOTE=$state/unfinished
    (
        trap '' USR1
        if ((engines && ! engine_nodes && gpus)); then
            CUDA_VISIBLE_DEVICES=$(visible 0 "$ranks")
            export CUDA_VISIBLE_DEVICES
        fi
        exec torchrun --nnodes "$1" --nproc-per-node "$ranks" --rdzv-backend c10d --rdzv-id "$3" \
            --rdzv-endpoint "$2:$port" --max-restarts "$restarts" \
            -m "megatron_lwz.cli.$stage" "${arguments[@]}" "${more[@]}"
    ) &
    child=$!
    trap 'heard=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
    trap 'heard=1; pkill -USR1 -P "$child" || true' USR1
    while :; do
        heard=
        wait "$child" && status=0 || status=$?
        [[ -n $heard ]] || break
    done
    trap - TERM INT
    trap '' USR1
    return "$status"
}

# begin: forgets what an earlier start left. Before `check`, on the first node alone.
begin() {
    if ! { mkdir -p "$state" && rm -f "$state/unfinished" "$state"/failed-*; }; then
        fail "$state cannot be written: name another run.dir, or change its permissions"
    fi
}

# outcome STATUS: how the run ended, as a status: 0 it is finished, 75 it has saved and must be started again.
outcome() {
    ls "$state" "$(dirname "$summary")" >/dev/null 2>&1 || true # NFS then looks again
    if [[ -f $state/unfinished ]]; then
        echo 75
    elif [[ -f $summary ]]; then
        echo 0
    else
        echo "$(($1 ? $1 : 1))"
    fi
}

# start NODE ID HOST …: all that this node does, where no batch script directs the nodes. The first nodes train, the others
# have engines. ID is the same on all nodes.
start() {
    local node=$1 id=$2 hosts=("${@:3}") status=0
    urls=() served=()
    trap '' USR1
    trap 'exit 143' TERM
    started=$(date +%s)
    ((${#hosts[@]} == nodes + engine_nodes)) || fail "${#hosts[@]} hosts are given, the launch has $((nodes + engine_nodes))"
    prepare
    if ((node >= nodes)); then
        serve_until_over "$node" "$id" "${hosts[node]}"
        return
    fi
    if ((node == 0)); then begin; fi
    check "$node" "${#hosts[@]}" "$id"
    if ((engines)); then
        if ((engine_nodes == 0)); then
            make_token
            serve_all 127.0.0.1 127.0.0.1
            addresses 127.0.0.1
        else
            addresses "${hosts[@]:nodes}"
        fi
        trap stop_engines EXIT
        wait_for_engines
    fi
    train "$nodes" "${hosts[0]}" "$id" || status=$?
    if ((node == 0)); then touch "$state/over"; fi
    exit "$(outcome "$status")"
}

stop_engines() {
    if ((${#served[@]})); then kill "${served[@]}" 2>/dev/null || true; fi
    wait
}

# serve_until_over NODE ID HOST: the engines of this node, until the trainer has ended (Kubernetes: until they are deleted).
serve_until_over() {
    mkdir -p "$state" || fail "$state cannot be written: the run folder must lie where all nodes can"
    if [[ -n ${forever:-} ]]; then
        printf %s "$2" >"$state/node-$1" # its image may lack what the other checks need
    else
        check "$1" $((nodes + engine_nodes)) "$2"
    fi
    touch "$state/serving-$1"
    trap stop_engines EXIT
    trap 'exit 143' TERM
    serve_all 0.0.0.0 "$3"
    while [[ -n ${forever:-} || ! $state/over -nt $state/serving-$1 ]]; do
        kill -0 "${served[@]}" 2>/dev/null || fail "an engine of $3 has ended for good: see $state"
        sleep 2 &
        wait $! || true
    done
}
