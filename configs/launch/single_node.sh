#!/usr/bin/env bash
# All GPUs of one machine. Usage: single_node.sh OUT OPTIONS..., for example single_node.sh runs/a --config my.yaml
# PROCESSES: how many ranks (default: one for each GPU). The same command goes on after a stop of any kind.
# Ends as the run does: 0 finished; 75 stopped, lost, or a temporary failure; 130 Ctrl-C; 1 failed; 2 options.
set -uo pipefail

OUT=${1:?folder of the run}
shift
before=$(cat "$OUT/run.json" 2>/dev/null)
errors=$(mktemp -d) # of the ranks, for torchrun
handled=SIGTERM,SIGINT,SIGQUIT,SIGUSR1
[ -n "$(trap -p HUP)" ] || handled+=,SIGHUP # under nohup it is ignored: torchrun would heed it all the same
told=no ranks=
for signal in TERM INT USR1 HUP; do
  # shellcheck disable=SC2064 # the signal of now
  trap "told=$signal; [ -z \"\$ranks\" ] || kill -$signal \"\$ranks\"" "$signal"
done
# shellcheck disable=SC2086 # several options in one variable
torchrun ${RENDEZVOUS:---standalone} --nproc-per-node "${PROCESSES:-gpu}" \
  --log-dir "$errors" --signals-to-handle "$handled" \
  -m stream_pretrain --output-dir "$OUT" "$@" &
ranks=$!
[ "$told" = no ] || kill -TERM "$ranks" # told before there were ranks
# A trapped signal ends `wait`: wait again until the ranks have saved and left.
while status=0; wait "$ranks" || status=$?; kill -0 "$ranks" 2>/dev/null; do :; done

# The launcher's exit code does not tell a stop from a failure; run.json does, if this start has begun the run.
after=$(cat "$OUT/run.json" 2>/dev/null)
state=$(sed -n 's/^ *"state": "\([a-z]*\)".*/\1/p' <<< "$after")
code=$(sed -n 's/^ *"exit_code": \([0-9]*\).*/\1/p' <<< "$after")
if [ "$after" = "$before" ] && [ "$told" != no ]; then
  state=stopped code=
elif [ -z "$after" ] || { [ "$after" = "$before" ] && [ "$status" != 0 ]; }; then
  state=refused code=$(grep -rohs '"exit_code": [0-9]*' "$errors" | sed 1q) # as the ranks have told torchrun
  code=${code##* }
fi
case $state in
  finished) code=0 ;;
  failed | refused) code=${code:-1} ;;
  stopped) [ "$told" = INT ] && code=130 || code=75 ;;
  *) code=${code:-75} ;; # preempted; running: lost
esac
rm -rf "$errors"
echo "run $OUT: $state, exit code $code"
exit "$code"
