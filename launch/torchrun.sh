#!/usr/bin/env bash
# One node:   launch/torchrun.sh train RECIPE [--section.key VALUE ...]
# Many nodes: NODES=4 MASTER_ADDR=node0 launch/torchrun.sh train RECIPE …   on each; they meet at node0, one of them
# `launch/torchrun.sh doctor`, likewise, says whether they can. RANKS is the processes of a node, by default its GPUs.
set -euo pipefail

# A restarted rank must not read where the dead ones listened (pytorch issue 135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# A scheduler's warning reaches every rank, and each has this many seconds to save.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-300}

NODES=${NODES:-1}
exec torchrun \
    --nnodes "$NODES" \
    --nproc-per-node "${RANKS:-auto}" \
    --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "${MASTER_ADDR:-localhost}:${MASTER_PORT:-$((NODES > 1 ? 29400 : 0))}" \
    --rdzv-id "${JOB:-dgan}" \
    -m dgan "$@"
