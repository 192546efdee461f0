"""§6: trained networks on a whole split, each alone and averaged, and what is reported of them."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from alexnet_jax import figures
from alexnet_jax.data import imagenet, input_pipeline
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.data.input_pipeline import Batch
from alexnet_jax.device import parallel
from alexnet_jax.files import write_whole
from alexnet_jax.networks.loading import load
from alexnet_jax.networks.network import Trained
from alexnet_jax.options import InputError
from alexnet_jax.paper import evaluate
from alexnet_jax.paper.evaluate import Errors
from alexnet_jax.reading import ArrayForm, archive, read_arrays
from alexnet_jax.shown import csv_line, say

RESAMPLES = 1000  # of the images, for the intervals
# Of saved answers.
FORMS = {
    "name": ArrayForm("U"), "logits": ArrayForm("f", ("images", "classes")), "labels": ArrayForm("iu", ("images",), 0),
    "class_names": ArrayForm("U", ("classes",)), "data": ArrayForm("U"),
}  # fmt: skip


class Answers(NamedTuple):
    """What a network, or several, said of a whole split, in its order.

    logits: whose softmax are the probabilities. data: the data set's fingerprint and the split.
    """

    name: str
    logits: Float[np.ndarray, "n classes"]
    labels: Int[np.ndarray, "n"]
    class_names: tuple[str, ...]
    data: str

    def save(self, file: Path) -> None:
        """As an .npz, whole or not at all."""
        write_whole(file, archive(**{**self._asdict(), "class_names": np.array(self.class_names)}))

    @classmethod
    def load(cls, file: Path) -> "Answers":
        """Raises InputError where the file is not one that `save` wrote."""
        try:
            found = read_arrays(file, FORMS)
        except FileNotFoundError:
            raise InputError(f"{file}: is not there") from None
        names, labels = tuple(found["class_names"].tolist()), found["labels"]
        if not len(labels) or labels.max() >= len(names):
            raise InputError(f"{file}: cannot be read (labels: must be of the {len(names)} class_names)")
        return cls(str(found["name"]), found["logits"], labels, names, str(found["data"]))


def answers_of(network: Trained, dataset: Dataset, split: str, *, views: int, batch_size: int) -> Answers:
    """Of one network, on all devices of this host. Raises InputError where it was made for other images or classes."""
    network.check_size(dataset)
    classes = imagenet.named(dataset.class_names)
    if imagenet.named(network.class_names[: len(classes)]) != classes:
        raise InputError(f"{network.source}: was trained on other classes than those of {dataset.path}")
    devices = jax.local_devices()
    batch_size = math.ceil(batch_size / len(devices)) * len(devices)
    logits = network.make_logits(views=views)

    def of_batch(params: PyTree, batch: Batch) -> Array:
        answers = logits(params, jnp.asarray(batch.images))
        return lax.all_gather(answers, parallel.AXIS, tiled=True)

    step = parallel.pmap_step(of_batch, devices)
    params = parallel.replicate(network.params, devices)
    found, labels = [], []
    for batch in input_pipeline.evaluation_batches(dataset, split, batch_size=batch_size):
        labels.append(np.array(batch.labels))
        found.append(np.asarray(step(params, parallel.shard(batch, devices))))
    images = len(dataset.splits[split])
    return Answers(
        f"{network.source}, step {network.step}",
        np.concatenate(found)[:images],
        np.concatenate(labels)[:images],
        network.class_names,
        _data(dataset, split),
    )


def _data(dataset: Dataset, split: str) -> str:
    return f"{dataset.fingerprint()} {split}"


def averaged(all_answers: Sequence[Answers], weights: Sequence[float] = ()) -> Answers:
    """The mean of the softmax outputs, weighted if there are weights. Raises InputError where the images differ."""
    first, *others = all_answers
    for other in others:
        same = (other.data, other.class_names) == (first.data, first.class_names)
        if not same or not np.array_equal(other.labels, first.labels):
            raise InputError(f"{other.name}: is of other images or classes than {first.name}")
    shares = np.array(weights or [1.0] * len(all_answers)) / (sum(weights) or len(all_answers))
    probabilities = sum(
        share * np.asarray(jax.nn.softmax(answers.logits.astype(np.float32)), np.float64)
        for share, answers in zip(shares, all_answers, strict=True)
    )
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities).astype(np.float32)
    return first._replace(name=f"{len(all_answers)} networks", logits=logits) if others else first


def outcomes(answers: Answers) -> dict[str, Float[np.ndarray, "n"]]:
    """Of each image: whether it is wrong at top-1 and top-5, and its negative log-likelihood in nats."""
    logits, labels = jnp.asarray(answers.logits), jnp.asarray(answers.labels)
    ranks = np.asarray(evaluate.label_ranks(logits, labels))
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
    return {"top1_error": 1.0 * (ranks >= 1), "top5_error": 1.0 * (ranks >= 5), "nll": np.asarray(nll, np.float64)}


def intervals(of_images: dict[str, np.ndarray], seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % of the means over as many images, drawn from these with replacement (bootstrap), lie between the two."""
    rng = np.random.default_rng(seed)
    images = len(next(iter(of_images.values())))
    draws = [rng.integers(0, images, images) for _ in range(RESAMPLES)]
    means = {name: [values[draw].mean() for draw in draws] for name, values in of_images.items()}
    return {name: tuple(np.quantile(of, [0.025, 0.975]).tolist()) for name, of in means.items()}


def confusion(answers: Answers) -> Int[np.ndarray, "classes classes"]:
    """How many images of each class (row) were taken for each class (column)."""
    classes = len(answers.class_names)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (answers.labels, answers.logits.argmax(1)), 1)
    return counts


def evaluate_networks(
    sources: Sequence[str],
    output: Path,
    *,
    views: int = 1,
    checkpoint: str = "latest",
    split: str = "validation",
    dataset: str = "",
    weights: Sequence[float] = (),
    batch_size: int = 128,
) -> Errors:
    """Evaluates runs, or answers of theirs that were saved (.npz), each alone and averaged, and writes into `output`
    what came out: result.json, answers.npz, classes.csv, confusion.csv and .png.

    dataset: by default that of the first run. Raises InputError where they do not fit together.
    """
    if weights and (len(weights) != len(sources) or min(weights) < 0 or not sum(weights)):
        raise InputError(f"--weights: must be one number above 0 for each of the {len(sources)} networks")
    all_answers: list[Answers] = []
    for source in sources:
        if source.endswith(".npz"):
            all_answers.append(Answers.load(Path(source).expanduser()))
            continue
        network = load(source, checkpoint)
        data = network.open_dataset(dataset)
        if split not in data.splits:
            raise InputError(f"--split={split}: {data.path} has {', '.join(data.splits)}")
        all_answers.append(answers_of(network, data, split, views=views, batch_size=batch_size))
    together = averaged(all_answers, weights)
    rows: list[dict[str, Any]] = []
    for answers in [*all_answers, *([together] if len(all_answers) > 1 else [])]:
        of_images = outcomes(answers)
        means = {name: float(values.mean()) for name, values in of_images.items()}
        row: dict[str, Any] = {"name": answers.name, **means, "intervals": intervals(of_images)}
        rows.append(row)
        low, high = row["intervals"]["top1_error"]
        say(
            f"{answers.name}: top-1 error {row['top1_error']:.2%} (95 %: {low:.2%} to {high:.2%}), "
            f"top-5 {row['top5_error']:.2%}, nll {row['nll']:.3f}"
        )
    output.mkdir(parents=True, exist_ok=True)
    result = {"views": views, "split": split, "examples": len(together.labels), "networks": rows}
    write_whole(output / "result.json", json.dumps(result, indent=2) + "\n")
    together.save(output / "answers.npz")
    counts = confusion(together)
    named = ([name, *row] for name, row in zip(together.class_names, counts, strict=True))
    _write_table(output / "confusion.csv", ["true class", *together.class_names], named)
    _write_table(output / "classes.csv", ["class", "images", "top1_error", "top5_error"], _by_class(together))
    figures.save_confusion(counts, together.class_names, output / "confusion.png")
    say(f"{output}: result.json, answers.npz, classes.csv, confusion.csv, confusion.png")
    return Errors(rows[-1]["top1_error"], rows[-1]["top5_error"], rows[-1]["nll"], len(together.labels))


def _by_class(answers: Answers) -> Iterable[list[Any]]:
    of_images = outcomes(answers)
    for number, name in enumerate(answers.class_names):
        own = answers.labels == number
        if own.any():
            yield [name, own.sum(), *(round(of_images[kind][own].mean(), 4) for kind in ("top1_error", "top5_error"))]


def _write_table(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    write_whole(file, "".join(f"{csv_line(row)}\n" for row in [header, *rows]))
