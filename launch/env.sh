#!/usr/bin/env bash
# Environment that is worth having on accelerators; the other files of this folder source it.
# A variable that is set already keeps its value.

# Hides the exchange of gradients behind computation. JAX overlaps them on TPUs by itself.
export XLA_FLAGS=${XLA_FLAGS:---xla_gpu_enable_latency_hiding_scheduler=true}
# JAX takes 75 % of a GPU by default; nothing else runs on the GPUs of a training job.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
# Without it CPU processes cannot exchange arrays. It has no effect on accelerators.
export JAX_CPU_COLLECTIVES_IMPLEMENTATION=${JAX_CPU_COLLECTIVES_IMPLEMENTATION:-gloo}
# Progress reaches the log of the job at once, not when a buffer is full.
export PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1}
