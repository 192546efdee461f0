#!/usr/bin/env bash
# What is measured first where there is a GPU, the most wanted first; each command takes less than ten minutes.
#
#   pip install -e '.[test,cuda]' torch
#   bash experiments/on_a_gpu.sh PHOTOS     a folder or archive of photographs, for the third step
#
# A step that fails is named, and the others go on. Logs: experiments/results/.
set -u
cd "$(dirname "$0")/.."
photos=${1:?"PHOTOS: a folder or archive of photographs"}
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT

run() { echo "== $*"; timeout 600 "$@" || echo "error: $* (exit code $?)" >&2; }

# The training step beside PyTorch's.
contenders="alexnet_jax,PyTorch channels_last,PyTorch compiled"
run python experiments/throughput.py --tasks=train --tables=paper,torchvision --precisions=bfloat16 \
  --batches=1024,128 "--contenders=$contenders"

# Where its time goes, beside what the compiled program says that it moves.
run python experiments/step_profile.py --precision=bfloat16 --batch=1024

# Whether it waits for its images.
run python -m alexnet_jax.prepare --source="$photos" --output="$data/jpeg"
run python -m alexnet_jax.prepare --source="$photos" --output="$data/raw" --encoding=raw
run python experiments/feeding.py --jpeg="$data/jpeg" --raw="$data/raw" --batch_size=1024 --dtype=bfloat16 --steps=100

# Float32, multiplied as JAX does it by default (TF32), and exactly.
run python experiments/throughput.py --log=throughput_gpu_float32 --tasks=train --tables=paper --precisions=float32 \
  --batches=1024 "--contenders=$contenders"
