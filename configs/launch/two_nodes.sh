#!/usr/bin/env bash
# Several machines with one shared --output-dir; start it on each of them with the same options.
# Usage: HEAD=host-of-the-first two_nodes.sh OPTIONS...
# NODES (default 2), PROCESSES a machine (default: one for each GPU), PORT (default 29400) of the first machine.
# The shards may be read from anywhere; only the first rank writes to --output-dir.
# To stop: a signal to one launcher saves and ends the ranks of all, but the other launchers may wait five minutes for that one.
set -euo pipefail

exec torchrun --nnodes "${NODES:-2}" --nproc-per-node "${PROCESSES:-gpu}" \
  --rdzv-backend c10d --rdzv-id "${RUN_ID:-stream_pretrain}" --rdzv-endpoint "${HEAD:?host of the first machine}:${PORT:-29400}" \
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -m stream_pretrain "$@"
