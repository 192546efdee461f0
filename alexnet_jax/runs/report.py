"""At the end of a run: its pictures, and result.json."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from alexnet_jax import figures
from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.device import xla
from alexnet_jax.files import write_whole
from alexnet_jax.paper.evaluate import Errors, all_class_names, likeliest
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.reading import Count, Fraction, Positive, fitted, read_json
from alexnet_jax.runs.log import METRICS, read_metrics
from alexnet_jax.shown import say

RESULT = "result.json"
SHOWN = 8  # images, from all over the validation split


class Result(msgspec.Struct):
    """The form of result.json, as far as it is read."""

    top1_error: Fraction
    top5_error: Fraction
    nll: Positive
    examples: Count
    steps: Count


def read(file: Path) -> dict[str, Any]:
    """What is read of a run's result.json; nothing of an evaluation's. Raises InputError where it is damaged."""
    found = read_json(file, dict[str, Any])
    return {} if "networks" in found else msgspec.to_builtins(fitted(found, Result, f"{file}:"))


def write(
    workdir: Path,
    dataset: Dataset,
    net: AlexNet,
    params: PyTree,
    logits: Callable[[PyTree, UInt8[Array, "n size size 3"]], Float[Array, "n classes"]],
    errors: Errors,
    result: dict[str, Any],
) -> None:
    """Learning curves, the first layer's kernels, answers to some validation images; and result.json with `errors`,
    `result` and the median of images/s.

    params: on this host. logits: from `evaluate.make_logits`.
    """
    lines = read_metrics(workdir / METRICS)
    figures.save_curves(lines, workdir / "figures" / "curves.png")
    gpus = getattr(net.layers[1], "groups", 1)  # whose halves see half of the first layer each
    figures.save_kernels(params["conv1"]["kernel"], workdir / "figures" / "conv1.png", gpus=gpus)
    count = len(dataset.splits["validation"])
    some = input_pipeline.batch_of(dataset, "validation", np.linspace(0, count - 1, min(SHOWN, count)).astype(int))
    compiled = jax.jit(logits, compiler_options=xla.compiler_options())
    rows = np.asarray(jax.nn.softmax(compiled(params, some.images)))
    names = all_class_names(dataset.class_names, rows.shape[1])
    figures.save_predictions(
        list(np.asarray(some.images)),
        [likeliest(row, names) for row in rows],
        [dataset.class_names[label] for label in some.labels],
        workdir / "figures" / "predictions.png",
    )
    rates = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    result = {**errors._asdict(), **result, "images_per_second": statistics.median(rates) if rates else None}
    write_whole(workdir / RESULT, json.dumps(result, indent=2) + "\n")
    say(
        f"top-1 error {errors.top1_error:.1%}, top-5 error {errors.top5_error:.1%}, nll {errors.nll:.3f} nats "
        f"on {errors.examples:,} validation images after {result['steps']:,} steps",
        f"{workdir}: result.json, metrics.jsonl, figures/: curves, conv1, predictions; tensorboard/",
    )
