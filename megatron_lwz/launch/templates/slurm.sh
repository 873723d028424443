
# The parts of the job, one for each node of a step. srun runs this script again, with the name of the part.
check_node() {
    prepare
    check $((first_node + SLURM_PROCID)) "$1" "$2"
}

engine_node() {
    trap '' USR1 # it asks the trainer to save, not the engines to end
    prepare
    if ((engine_nodes)); then serve_all 0.0.0.0 "$SLURMD_NODENAME"; else serve_all 127.0.0.1 127.0.0.1; fi
    trap stop_engines EXIT
    wait -n
    fail "an engine of $SLURMD_NODENAME has ended for good: see $state"
}

train_node() {
    urls=("${@:3}")
    trap '' USR1
    prepare
    train "$nodes" "$1" "$2"
}

# step PART_OF_THE_JOB OPTION … -- ARGUMENT …: srun of this script. In the background only: its shell becomes srun.
step() {
    local part=$1 options=()
    shift
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    if [[ $part == engine_node ]]; then options+=("${engine_container[@]}"); else options+=("${container[@]}"); fi
    exec srun "${options[@]}" bash -c "$script" lwz "$part" "${@:2}"
}

on_trainers=() on_engines=() trainer_hosts=() engine_hosts=()
find_nodes() {
    local all=() chosen
    if [[ -n ${SLURM_JOB_NODELIST_HET_GROUP_0:-} ]]; then
        mapfile -t trainer_hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST_HET_GROUP_0")
        # shellcheck disable=SC2153
        mapfile -t engine_hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST_HET_GROUP_1")
        on_trainers=(--het-group=0) on_engines=(--het-group=1)
    else
        mapfile -t all < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
        trainer_hosts=("${all[@]:0:nodes}") engine_hosts=("${all[@]:nodes}")
    fi
    ((${#trainer_hosts[@]} == nodes && ${#engine_hosts[@]} == engine_nodes)) ||
        fail "the job has ${#trainer_hosts[@]} + ${#engine_hosts[@]} nodes, the launch $nodes + $engine_nodes"
    chosen=$(IFS=, && echo "${trainer_hosts[*]}")
    on_trainers+=(--nodes="$nodes" --ntasks="$nodes" --nodelist="$chosen")
    if ((engine_nodes)); then
        chosen=$(IFS=, && echo "${engine_hosts[*]}")
        on_engines+=(--nodes="$engine_nodes" --ntasks="$engine_nodes" --nodelist="$chosen")
    fi
}

# requeue WHY: puts the job back into the queue, which ends it here.
requeue() {
    if ((${SLURM_RESTART_COUNT:-0} >= requeues)); then
        echo "$1, and launch.max_requeues = $requeues is reached: submit it again to go on" >&2
        exit 75
    fi
    echo "$1: back to the queue" >&2
    scontrol requeue "$SLURM_JOB_ID" || echo "the job cannot be requeued: submit it again to go on" >&2
}

# last_call: requeues a job that has not ended in time. Slurm would end it without.
last_call() {
    local left=$((SLURM_JOB_END_TIME - margin - $(date +%s)))
    sleep $((left > 0 ? left : 0)) &
    trap 'kill $! 2>/dev/null; exit' TERM
    wait $!
    requeue "the time is over"
}

job() {
    local id=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} status=0
    script=$(<"${BASH_SOURCE[0]}")
    urls=() served=()
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_ON_NODE:-1} # otherwise a task may get a single core
    prepare
    trap stop EXIT
    export started
    find_nodes
    begin
    export first_node=0
    step check_node "${on_trainers[@]}" -- $((nodes + engine_nodes)) "$id" &
    if ((engine_nodes)); then first_node=$nodes step check_node "${on_engines[@]}" -- $((nodes + engine_nodes)) "$id" & fi
    for part in $(jobs -p); do wait "$part" || status=$?; done
    ((status == 0)) || exit 2
    if ((engines)); then
        make_token
        if ((engine_nodes)); then
            step engine_node "${on_engines[@]}" --kill-on-bad-exit=0 -- &
            addresses "${engine_hosts[@]}"
        else
            on_trainers+=(--overlap) # engines and trainer are steps of one node
            step engine_node "${on_trainers[@]}" -- &
            addresses 127.0.0.1
        fi
        wait_for_engines
    fi
    if [[ -n ${SLURM_JOB_END_TIME:-} ]]; then last_call & fi
    step train_node "${on_trainers[@]}" -- "${trainer_hosts[0]}" "$id" "${urls[@]}" &
    wait $! || status=$?
    status=$(outcome "$status")
    if ((status == 75)); then requeue "the run has saved in time"; fi
    exit "$status"
}

stop() {
    local running
    for running in $(jobs -p); do kill "$running" 2>/dev/null || true; done
    wait
}

if (($#)); then "$@"; else job; fi
