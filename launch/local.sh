#!/usr/bin/env bash
# Several processes on this machine, as on several machines:
#   launch/local.sh COUNT --config=configs/nash_md.py [flags of nlhf_jax.main]
set -euo pipefail
count=${1:?'give the number of processes first, as launch/local.sh 2 --config=configs/nash_md.py'}
shift
port=$((20000 + RANDOM % 20000))
export JAX_CPU_COLLECTIVES_IMPLEMENTATION=${JAX_CPU_COLLECTIVES_IMPLEMENTATION:-gloo}
trap '' INT # Ctrl-C is for the processes, which stop at a safe place
trap 'kill -TERM $(jobs -pr) 2>/dev/null || true' TERM
for ((number = 0; number < count; number++)); do
  "${PYTHON:-python3}" -m nlhf_jax.main --cluster="127.0.0.1:$port,$count,$number" "$@" &
done
while ((count > 0)); do
  status=0
  wait -n -p ended || status=$?
  if [[ -z ${ended:-} ]]; then continue; fi # a signal ended the waiting
  count=$((count - 1))
  if ((status == 0)); then continue; fi
  # One that fails leaves the others waiting for it.
  for ((second = 0; second < 10 && $(jobs -pr | wc -l) > 0; second++)); do sleep 1; done
  kill -KILL $(jobs -pr) 2>/dev/null || true
  exit "$status"
done
