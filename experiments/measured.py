"""Which files the numbers of each experiment come from, and whether they are still what they were.

A log keeps a digest of each of these files (`record.circumstances`). tables.py marks a table where one of them has
changed since; a log without digests is of older code. Whether the rest of the checkout was committed, where the log
says "-dirty", does not count. Nothing of this asks git: a shallow clone is enough.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAPER = tuple(f"alexnet_jax/paper/{name}.py" for name in ("layers", "normalization", "model", "optim", "train_step"))
TRAINING = (*PAPER, "alexnet_jax/paper/augment.py", "alexnet_jax/data/input_pipeline.py", "alexnet_jax/train.py",
            "alexnet_jax/train_setup.py")  # fmt: skip
CIFAR = (*TRAINING, "experiments/cifar.py", "experiments/training.py")
SPEED = (*PAPER, *(f"alexnet_jax/device/{name}.py" for name in ("forms", "tuned", "onednn", "xla")))
PARALLEL = (*PAPER, *(f"alexnet_jax/device/{name}.py" for name in ("parallel", "spread", "model_parallel")),
            "experiments/program_text.py")  # fmt: skip
READING = tuple(
    f"alexnet_jax/data/{name}.py" for name in ("input_pipeline", "datasets", "images", "shards", "preprocessing")
)
PICTURES = tuple(f"alexnet_jax/data/{name}.py" for name in ("pictures", "side_data", "bmp", "preprocessing", "images"))
PREPARING = (
    *READING,
    *PICTURES,
    "alexnet_jax/data/processes.py",
    "alexnet_jax/data/writing.py",
    "alexnet_jax/prepare.py",
)

MEASURED: dict[str, tuple[str, ...]] = {  # by experiment; its own file counts as well
    "ablations": (*TRAINING, "experiments/training.py", "alexnet_jax/paper/architectures.py"),
    "breakdown": SPEED,
    "compiled": (*SPEED, "alexnet_jax/device/accelerator_forms.py", "experiments/program_text.py"),
    "feeding": (*SPEED, *READING),
    "fine_tuning": (*TRAINING, "alexnet_jax/networks/transfer.py", "experiments/training.py"),
    "first_minutes": (*SPEED, *TRAINING, "alexnet_jax/data/shapes.py"),
    "first_runs": (*SPEED, *TRAINING, "alexnet_jax/data/shapes.py"),
    "imagenette": (*TRAINING, "alexnet_jax/networks/ensemble.py", "experiments/kernels_and_neighbors.py"),
    "imagenet_rehearsal": (
        *PREPARING,
        *(f"alexnet_jax/data/{name}.py" for name in ("archives", "tars", "manifest")),
        "alexnet_jax/runs/checkpoint.py",
        "experiments/numbered_images.py",
        "experiments/watched.py",
    ),
    "input_speed": READING,
    "jpeg_decoders": (),
    "kills": (
        "alexnet_jax/train.py",
        "alexnet_jax/train_setup.py",
        *(f"alexnet_jax/runs/{name}.py" for name in ("checkpoint", "states", "stopping", "workdir", "log")),
    ),
    "large_batches": CIFAR,
    "lrn_cifar10": CIFAR,
    "mutations": (
        "experiments/changed_fields.py",
        "alexnet_jax/reading.py",
        "alexnet_jax/runs/workdir.py",
        "alexnet_jax/runs/checkpoint.py",
    ),
    "overfitting": CIFAR,
    "kernels_and_neighbors": (*TRAINING, "alexnet_jax/networks/layer_outputs.py"),
    "package_size": ("setup.cfg", "alexnet_jax/__init__.py", "alexnet_jax/networks/network.py"),
    "picture_fuzzer": ("experiments/damaged_pictures.py", *PICTURES),
    "precision": TRAINING,
    "prediction_speed": (*SPEED, *PICTURES, "alexnet_jax/data/ahead.py", "alexnet_jax/networks/network.py"),
    "prepare_speed": PREPARING,
    "pretrained_minutes": (
        *(f"alexnet_jax/networks/{name}.py" for name in ("pretrained", "interchange", "pth", "explain", "onnx")),
        *(f"alexnet_jax/{name}.py" for name in ("downloads", "features", "predict", "weights", "data/preprocessing")),
    ),
    "relu_vs_tanh": CIFAR,
    "scaling": (*SPEED, *PARALLEL, "experiments/hosts.py"),
    "small_claims": CIFAR,
    "specialisation": (),
    "step_profile": (*SPEED, "alexnet_jax/device/accelerator_forms.py", "experiments/contenders.py"),
    "startup": (*SPEED, "alexnet_jax/train.py"),
    "table2": (*TRAINING, "alexnet_jax/networks/transfer.py", "alexnet_jax/networks/ensemble.py"),
    "throughput": (*SPEED, "experiments/contenders.py"),
    "exchange": PARALLEL,
    "two_gpus": PARALLEL,
}


def digests(experiment: str) -> dict[str, str]:
    """Of the files that an experiment measures, by path from the root of the checkout."""
    files = (f"experiments/{experiment}.py", *MEASURED.get(experiment, ()))
    return {file: _digest(file) for file in files}


def _digest(file: str) -> str:
    """ "" where there is no such file."""
    path = ROOT / file
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


def _circumstances(values: Any) -> Iterator[dict[str, Any]]:
    """What a log says of its own making, and of that of each training in it."""
    if isinstance(values, dict):
        if "commit" in values and "date" in values:
            yield values
        for value in values.values():
            yield from _circumstances(value)
    elif isinstance(values, list):
        for value in values:
            yield from _circumstances(value)


def outdated(values: dict[str, Any]) -> str:
    """Why a log may be of other code than there is now, in a few words; "" where it is of this code."""
    changed: set[str] = set()
    for made in _circumstances(values):
        if "measured" not in made:
            return "code that was not committed" if str(made["commit"]).endswith("-dirty") else "older code"
        for file, digest in made["measured"].items():
            if _digest(file) != digest:
                changed.add(file)
    return f"code before {', '.join(sorted(changed))} changed" if changed else ""
