#!/usr/bin/env bash
# launch/deepspeed.sh HOSTFILE RECIPE [--section.key VALUE ...]        once, where pdsh and ssh without a password reach all
# Without ssh: NODE_RANK=0 MASTER_ADDR=node0 launch/deepspeed.sh …     on each node, NODE_RANK its line in HOSTFILE from 0
# HOSTFILE has a line a node, `node0 slots=8`. What ranks need of the environment goes into ~/.deepspeed_env.
set -euo pipefail

options=(--hostfile "$1" --master_port "${MASTER_PORT:-29500}")
shift
if [ -n "${NODE_RANK:-}" ]; then
    options+=(--no_ssh --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR")
fi
exec deepspeed "${options[@]}" --module dgan train "$@" --parallel.strategy deepspeed
