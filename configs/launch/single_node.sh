#!/usr/bin/env bash
# All GPUs of one machine. Usage: single_node.sh OPTIONS..., for example single_node.sh --config my.yaml
# PROCESSES: how many ranks (default: one for each GPU). The same command goes on after a stop of any kind.
set -euo pipefail

exec torchrun --standalone --nproc-per-node "${PROCESSES:-gpu}" \
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -m stream_pretrain "$@"
