
# On one machine: bash SCRIPT. On several: bash SCRIPT NODE HOST … on each, with its number and the addresses of all, trainers
# first; LWZ_LAUNCH_ID, the same on all, tells two starts apart.
if (($#)); then
    start "$1" "${LWZ_LAUNCH_ID:-lwz}" "${@:2}"
else
    start 0 "${LWZ_LAUNCH_ID:-lwz}" 127.0.0.1
fi
