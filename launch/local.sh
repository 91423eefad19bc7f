#!/usr/bin/env bash
# Starts several processes on this machine, as if on several machines:
#   launch/local.sh COUNT --config=nash_md [flags of nlhf run]
# Ends with the status of the first process that fails, after all have ended.
set -euo pipefail
count=${1:?'the number of processes is missing; try launch/local.sh 2 --config=nash_md'}
shift
port=$((20000 + RANDOM % 20000))
export JAX_CPU_COLLECTIVES_IMPLEMENTATION=${JAX_CPU_COLLECTIVES_IMPLEMENTATION:-gloo}
declare -A numbers # process id -> number

signal_all() { # processes that have ended are not there to be signalled
  for process in "${!numbers[@]}"; do kill "-$1" "$process" 2>/dev/null || true; done
}

trap '' INT # Ctrl-C reaches the processes, which stop after a step
trap 'signal_all TERM' TERM
for ((number = 0; number < count; number++)); do
  "${PYTHON:-python3}" -m nlhf_jax.main --cluster="127.0.0.1:$port,$count,$number" "$@" &
  numbers[$!]=$number
done
while ((${#numbers[@]} > 0)); do
  status=0
  wait -n -p ended "${!numbers[@]}" || status=$?
  if [[ -z ${ended:-} ]]; then continue; fi # a signal interrupted wait
  number=${numbers[$ended]}
  unset "numbers[$ended]"
  if ((status == 0)); then continue; fi
  if ((status > 128 && status != 130)); then
    echo "error: process $number was killed by signal $((status - 128)), so that all are ended;" \
      'run the same command again to resume from what was saved.' >&2
  fi
  # The others notice within ten seconds, print a sentence and exit.
  for ((second = 0; second < 12 && $(jobs -pr | wc -l) > 0; second++)); do sleep 1; done
  signal_all KILL
  exit "$status"
done
