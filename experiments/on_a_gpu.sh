#!/usr/bin/env bash
# What is measured first where there is a GPU, the most wanted first; each command takes less than ten minutes.
#
#   pip install -e '.[test,cuda]' torch
#   bash experiments/on_a_gpu.sh IMAGENETTE CIFAR10 [DIR]     their archives; where trainings are kept
#
# A step that fails is named, and the others go on. Logs: experiments/results/.
set -u
cd "$(dirname "$0")/.."
photos=${1:?"IMAGENETTE: its archive, as imagenette2.tgz"}
small=${2:?"CIFAR10: its archive, as cifar-10-python.tar.gz"}
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

# The paper's network on Imagenette, and the normalisation's two points of §3.3. Finished
# trainings stay in DIR, and the same command goes on after them.
kept=${3:-$data}
for seed in 0 1 2; do
  run python experiments/imagenette.py --workdir="$kept/imagenette" --source="$photos" --seed=$seed
done
run python -m alexnet_jax.prepare --source="$small" --output="$data/cifar10" --encoding=raw
for seeds in 0 1 2 0,1,2; do
  run python experiments/lrn_cifar10.py --dataset="$data/cifar10" --workdir="$kept/lrn" --seeds=$seeds
done

# Float32, multiplied as JAX does it by default (TF32), and exactly.
run python experiments/throughput.py --log=throughput_gpu_float32 --tasks=train --tables=paper --precisions=float32 \
  --batches=1024 "--contenders=$contenders"
