#!/usr/bin/env bash
# Trains on a TPU pod of virtual machines, all workers at once:
#   launch/tpu_vm.sh create    asks for the pod (queued: it may take hours) and waits until it is there
#   launch/tpu_vm.sh run       installs the checkout on all workers, and starts or resumes the run
#   launch/tpu_vm.sh stop      asks the run to save and end
#   launch/tpu_vm.sh delete    gives the pod back, which ends its cost
# Change three names: NAME, ZONE and STORE, the folder of a bucket that keeps the run, to which the
# pod's service account may write. Each worker has a WORKDIR of its own, on its disk.
set -euo pipefail
NAME=${NAME:-nlhf}
ZONE=${ZONE:-us-central2-b}
STORE=${STORE:-gs://my-bucket/nash_md}
WORKDIR=${WORKDIR:-runs/nash_md}
CONFIG=${CONFIG:-nash_md}
TYPE=${TYPE:-v4-32}
VERSION=${VERSION:-tpu-ubuntu2204-base}

on_all() { # a command, run by every worker
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

create() {
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$VERSION" --spot
  until [[ $(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
    --format='value(state.state)') == ACTIVE ]]; do sleep 30; done
}

run() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:nlhf.tar.gz" --zone="$ZONE" --worker=all
  rm "$archive"
  on_all 'mkdir -p nlhf && tar xzf nlhf.tar.gz -C nlhf && cd nlhf && python3.11 -m venv .venv &&
    .venv/bin/pip install --quiet -c launch/docker/constraints.txt ".[tpu,gcs]"'
  on_all "cd nlhf && source launch/env.sh && exec .venv/bin/python -m nlhf_jax.main --cluster=auto \
    --config='$CONFIG' --workdir='$WORKDIR' --store='$STORE'"
}

stop() { on_all 'pkill -TERM -f "[n]lhf_jax.main"'; }

delete() { gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force; }

case ${1:-} in
  create | run | stop | delete) "$1" ;;
  *)
    echo "error: '${1:-}' is not create, run, stop or delete." >&2
    exit 2
    ;;
esac
