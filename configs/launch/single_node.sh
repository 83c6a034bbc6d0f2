#!/usr/bin/env bash
# All GPUs of one machine. Usage: single_node.sh OUT OPTIONS..., for example single_node.sh runs/a --config my.yaml
# PROCESSES: how many ranks (default: one for each GPU). The same command goes on after a stop of any kind.
# Ends with 0 when the run has finished, 1 when it was stopped or lost, 3 when it has failed or was refused.
set -uo pipefail

OUT=${1:?folder of the run}
shift
before=$(cat "$OUT/run.json" 2>/dev/null)
handled=SIGTERM,SIGINT,SIGQUIT,SIGUSR1
[ -n "$(trap -p HUP)" ] || handled+=,SIGHUP # under nohup it is ignored: torchrun would heed it all the same
told=no ranks=
for signal in TERM INT USR1 HUP; do
  # shellcheck disable=SC2064 # the signal of now
  trap "told=yes; [ -z \"\$ranks\" ] || kill -$signal \"\$ranks\"" "$signal"
done
# shellcheck disable=SC2086 # several options in one variable
torchrun ${RENDEZVOUS:---standalone} --nproc-per-node "${PROCESSES:-gpu}" \
  --signals-to-handle "$handled" \
  -m stream_pretrain --output-dir "$OUT" "$@" &
ranks=$!
[ "$told" = no ] || kill -TERM "$ranks" # told before there were ranks
# `wait` returns at every trapped signal: wait again until the ranks have saved and left.
while kill -0 "$ranks" 2>/dev/null; do
  wait "$ranks"
done

# The launcher's exit code does not tell a stop from a failure; run.json does, if the run was begun and OUT is there.
after=$(cat "$OUT/run.json" 2>/dev/null)
state=$(sed -n 's/^ *"state": "\([a-z]*\)".*/\1/p' <<< "$after")
{ [ -n "$after" ] && [ "$after" != "$before" ]; } || state=refused
echo "run $OUT: $state"
case $state,$told in
  finished,*) exit 0 ;;
  failed,* | refused,no) exit 3 ;;
  *) exit 1 ;;
esac
