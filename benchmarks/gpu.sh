#!/usr/bin/env bash
# All that is measured on one NVIDIA GPU, in at most nine minutes; on a CPU it runs at toy size.
#
#   bash benchmarks/gpu.sh [PYTHON]
#
# PYTHON has nlhf_jax and, for a GPU, jax[cuda13]. Writes benchmarks/results/.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
device=$("$python" -c 'import jax; print(jax.default_backend())')
echo "device: $device"
"$python" benchmarks/attention_kernels.py --compute bfloat16
if [[ $device == cpu ]]; then
  "$python" benchmarks/training.py --model small --batches 2 --compute bfloat16 --alone
else
  "$python" benchmarks/training.py --model smollm2 --batches 64 --compute bfloat16 --alone
  "$python" benchmarks/training.py --model 1b --batches 64 --compute bfloat16 --alone
fi
