#!/usr/bin/env bash
# Several machines with one shared OUT; start it on each of them with the same options. Beside it lies single_node.sh, which
# says how it ends. Usage: HEAD=host-of-the-first two_nodes.sh OUT OPTIONS...
# NODES (default 2), PROCESSES a machine (default: one for each GPU), PORT (default 29400) of the first machine.
# The shards may be read from anywhere; only the first rank writes to OUT.
# To stop: a signal to one launcher saves and ends the ranks of all, but the other launchers may wait five minutes for that one.
set -euo pipefail

export RENDEZVOUS="--nnodes ${NODES:-2} --rdzv-backend c10d --rdzv-id ${RUN_ID:-stream_pretrain} \
  --rdzv-endpoint ${HEAD:?host of the first machine}:${PORT:-29400}"
exec "$(dirname "$0")/single_node.sh" "$@"
