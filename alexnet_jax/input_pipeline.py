"""(seed, step) → batch: the order of the images, and reading them, on the host."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Int32, UInt8

from alexnet_jax.config import InputError
from alexnet_jax.datasets import Dataset
from alexnet_jax.images import decode


class Batch(NamedTuple):
    """images: RGB, 0-255. labels: -1 where the row only fills up the last batch of an evaluation.

    On the host, or once it is sharded on the devices.
    """

    images: UInt8[np.ndarray | jax.Array, "batch size size 3"]
    labels: Int32[np.ndarray | jax.Array, "batch"]


def training_batches(dataset: Dataset, *, batch_size: int, seed: int, steps: range) -> Iterable[Batch]:
    """The batches of these steps, read ahead by threads.

    The images are shuffled anew each time through the training set, and each is seen once each time; batches
    run on across the end of it. Batch number i is a function of (data set, seed, i) alone.
    """
    images = len(dataset.splits["train"])
    indices = grain.MapDataset.range(images).seed(seed).shuffle().repeat().batch(batch_size)
    return _read(dataset, "train", indices, batch_size, steps)


def evaluation_batches(dataset: Dataset, split: str, *, batch_size: int) -> Iterable[Batch]:
    """A split in order, once, in batches of `batch_size`; the last is filled up with rows of label -1."""
    indices = grain.MapDataset.range(len(dataset.splits[split])).batch(batch_size)
    return _read(dataset, split, indices, batch_size, range(len(indices)))


def _read(dataset: Dataset, split: str, indices: Any, batch_size: int, steps: range) -> Iterable[Batch]:
    def load(indices: np.ndarray) -> Batch:
        return _load(dataset, split, indices, batch_size)

    # A batch an element: read-ahead stays within a few batches, and threads share no batch.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return indices.slice(slice(steps.start, steps.stop)).map(load).to_iter_dataset(options)


def _load(dataset: Dataset, split: str, indices: np.ndarray, batch_size: int) -> Batch:
    images = np.zeros((batch_size, dataset.size, dataset.size, 3), np.uint8)
    labels = np.full(batch_size, -1, np.int32)
    for row, index in enumerate(indices.tolist()):
        try:
            example = dataset.splits[split][index]
            decode(example["image"], dataset.encoding, images[row])
        except Exception as error:  # array_record and the JPEG decoder raise types of their own
            raise InputError(f"{dataset.path}: record {index} of '{split}' is damaged ({error})") from error
        labels[row] = example["label"]
    return Batch(images, labels)
