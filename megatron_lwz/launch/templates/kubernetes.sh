
# A pod: trainers by the index of their Job, engines by the number of their StatefulSet, which is the end of the pod's name.
if [[ -n ${JOB_COMPLETION_INDEX:-} ]]; then
    start "$JOB_COMPLETION_INDEX" lwz "${hosts[@]}"
else
    forever=1 start $((nodes + ${HOSTNAME##*-})) lwz "${hosts[@]}"
fi
