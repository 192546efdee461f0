"""(seed, step) → batch: the order of the images, and reading them, on the host."""

import contextlib
import functools
import queue
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Int32, UInt8

from alexnet_jax.data import shards
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.data.images import ENCODINGS
from alexnet_jax.options import InputError

PART = 64  # images that one thread reads in a row


class Batch(NamedTuple):
    """images: RGB, 0-255. labels: -1 where the row only fills up the last batch of an evaluation.

    On the host, or once it is sharded on the devices.
    """

    images: UInt8[np.ndarray | jax.Array, "batch size size 3"]
    labels: Int32[np.ndarray | jax.Array, "batch"]


def training_batches(
    dataset: Dataset, batch_size: int, seed: int, steps: range, rows: range | None = None, threads: int | None = None
) -> Iterator[Batch]:
    """The batches of these steps, read ahead by threads.

    The images are shuffled anew each time through the training set, and each is seen once each time; batches
    run on across the end of it. Batch number i is a function of (data set, seed, i) alone.

    Args:
      rows: the part of each batch to read, for one host of several; by default all of it.
      threads: by default one for each core, 16 at most.
    """
    order = _Shuffled(len(dataset.splits["train"]), seed)
    return _read(dataset, "train", order, batch_size, steps, rows or range(batch_size), threads)


def training_indices(
    dataset: Dataset, batch_size: int, seed: int, steps: range, rows: range | None = None
) -> Iterator[Int32[np.ndarray, "batch"]]:
    """The same batches as the numbers of their images in the training set."""
    order = _Shuffled(len(dataset.splits["train"]), seed)
    for step in steps:
        yield np.array([order[step * batch_size + row] for row in rows or range(batch_size)], np.int32)


def evaluation_batches(dataset: Dataset, split: str, *, batch_size: int, rows: range | None = None) -> Iterator[Batch]:
    """A split in order, once, in batches of `batch_size`; the last is filled up with black rows of label -1."""
    images = len(dataset.splits[split])
    steps = range(-(-images // batch_size))
    return _read(dataset, split, range(images), batch_size, steps, rows or range(batch_size), None)


def batch_of(dataset: Dataset, split: str, numbers: Sequence[int] | np.ndarray) -> Batch:
    """The images of a split with these numbers, as one batch."""
    images = np.empty((len(numbers), dataset.size, dataset.size, 3), np.uint8)
    labels = [_load(dataset, split, int(number), image) for number, image in zip(numbers, images, strict=True)]
    return Batch(images, np.array(labels, np.int32))


def whole_split(dataset: Dataset, split: str) -> Batch:
    """All images of a split, in order, as one batch."""
    (batch,) = evaluation_batches(dataset, split, batch_size=len(dataset.splits[split]))
    return batch


class _Shuffled:
    """The numbers of all images, again and again without an end, each time in another order. A function of (seed,
    epoch) that takes a microsecond an image at most: small networks see tens of thousands a second.
    """

    def __init__(self, images: int, seed: int):
        self._images = images
        self._of_epoch = functools.lru_cache(maxsize=2)(  # threads still read from the last
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(images)
        )

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._images)
        return int(self._of_epoch(epoch)[place])


def _read(
    dataset: Dataset,
    split: str,
    order: _Shuffled | range,
    batch_size: int,
    steps: range,
    rows: range,
    threads: int | None,
) -> Iterator[Batch]:
    """The rows of the batches of these steps: row r of step s holds image order[s · batch_size + r].

    Threads read parts of a batch into one array, so that all of them work on the batch that comes next. No more than
    four batches, or two parts a thread, are held here.
    """
    parts = [rows[first : first + PART] for first in range(0, len(rows), PART)]
    started: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    memory = _Memory()
    lock = threading.Lock()

    def read(number: int) -> int:
        step, part = steps[number // len(parts)], parts[number % len(parts)]
        with lock:
            if step not in started:
                images = memory.array((len(rows), dataset.size, dataset.size, 3))
                started[step] = images, np.full(len(rows), -1, np.int32)
            images, labels = started[step]
            positions = range(step * batch_size + part[0], step * batch_size + part[-1] + 1)
            indices = [int(order[position]) for position in positions if position < len(order)]
        for place, index in enumerate(indices, start=part[0] - rows[0]):
            labels[place] = _load(dataset, split, index, images[place])
        images[part[0] - rows[0] + len(indices) : part[-1] + 1 - rows[0]] = 0
        return step

    threads = threads or min(shards.cores(), 16)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * max(threads, len(parts)))
    done = grain.MapDataset.range(len(steps) * len(parts)).map(read).to_iter_dataset(options)
    with contextlib.closing(iter(done)) as in_order:  # at an error nothing more is read
        for number, step in enumerate(in_order, start=1):
            if number % len(parts) == 0:
                yield Batch(*started.pop(step))


def with_timeout(batches: Iterator[Batch], seconds: float, what: str) -> Iterator[Batch]:
    """`batches`, one of which is fetched ahead; raises InputError where one takes longer than `seconds`.

    what: names in the message what is read.
    """
    arrived: queue.Queue[Any] = queue.Queue(maxsize=1)
    closed = threading.Event()

    def fetch() -> None:
        try:
            for batch in batches:
                arrived.put(batch)
                if closed.is_set():
                    return
            arrived.put(StopIteration())
        except Exception as error:
            arrived.put(error)

    # A daemon, since a read from a disk that is gone may never come back.
    threading.Thread(target=fetch, daemon=True).start()
    try:
        while True:
            try:
                batch = arrived.get(timeout=seconds)
            except queue.Empty:
                raise InputError(
                    f"{what}: no batch was read in {seconds:g} s (--stall_timeout); is its disk or network gone?"
                ) from None
            if isinstance(batch, StopIteration):
                return
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        closed.set()
        with contextlib.suppress(queue.Empty):
            arrived.get_nowait()


class _Memory:
    """Arrays whose memory is used again when nothing refers to them any more: new memory costs a tenth of the reading.

    Not before: an array on JAX's CPU device may still be the one on the host.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of arbitrary content; of one shape at all calls."""
        block = self._free.pop() if self._free else np.empty(shape, np.uint8)
        # Through a memoryview, since views of a view would refer to `block` and not to it.
        array = np.asarray(block.data)
        weakref.finalize(array, self._free.append, block)
        return array


def _load(dataset: Dataset, split: str, index: int, out: UInt8[np.ndarray, "size size 3"]) -> int:
    """Decodes an image into `out`, and returns its label."""
    records = dataset.splits[split]
    example = records[index]
    try:
        ENCODINGS[dataset.encoding].decode(example["image"], out)
    except ValueError as error:
        raise InputError(f"{records.place(index)}: the image is damaged ({error})") from error
    if not 0 <= example["label"] < len(dataset.class_names):
        raise InputError(f"{records.place(index)}: its label is {example['label']}, which is no class of the data set")
    return example["label"]
