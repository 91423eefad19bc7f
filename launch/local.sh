#!/usr/bin/env bash
# Starts several processes on this machine, as if on several machines:
#   launch/local.sh COUNT --config=nash_md [flags of nlhf run]
set -euo pipefail
count=${1:?'the number of processes is missing; try launch/local.sh 2 --config=nash_md'}
shift
port=$((20000 + RANDOM % 20000))
export JAX_CPU_COLLECTIVES_IMPLEMENTATION=${JAX_CPU_COLLECTIVES_IMPLEMENTATION:-gloo}
trap '' INT # Ctrl-C reaches the processes, which stop after a step
trap 'kill -TERM $(jobs -pr) 2>/dev/null || true' TERM
for ((number = 0; number < count; number++)); do
  "${PYTHON:-python3}" -m nlhf_jax.main --cluster="127.0.0.1:$port,$count,$number" "$@" &
done
while ((count > 0)); do
  status=0
  wait -n -p ended || status=$?
  if [[ -z ${ended:-} ]]; then continue; fi # a signal interrupted wait
  count=$((count - 1))
  if ((status == 0)); then continue; fi
  # A process failed: give the others ten seconds, for they would wait for it for ever.
  for ((second = 0; second < 10 && $(jobs -pr | wc -l) > 0; second++)); do sleep 1; done
  kill -KILL $(jobs -pr) 2>/dev/null || true
  exit "$status"
done
