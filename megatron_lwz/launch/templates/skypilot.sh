
# SkyPilot runs this on every node. The first nodes train, the others have engines.
mapfile -t addresses_of_nodes <<<"$SKYPILOT_NODE_IPS"
start "$SKYPILOT_NODE_RANK" "$SKYPILOT_TASK_ID" "${addresses_of_nodes[@]}"
