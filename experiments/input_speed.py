"""How fast training images are read: this package's input pipeline against PyTorch's DataLoader.

  pip install torch                     (a CPU build is enough)
  python -m alexnet_jax.prepare --source=PHOTOS --output=jpeg
  python -m alexnet_jax.prepare --source=PHOTOS --output=raw --encoding=raw
  python experiments/input_speed.py --jpeg=jpeg --raw=raw                a quarter of an hour

Both read the same records in random order and hand out batches of 128 × 256 × 256 × 3 uint8, JPEGs decoded by the same
library (simplejpeg). The DataLoader's worker processes read records either through TFDS as here ("records"), or each
image from a file of its own ("files"); its batches are put together by its default collate function. Interleaved,
median of the repeats; workers are started, and two batches a worker read, before the clock starts. Expected on
two cores: JPEG at least 1.3 times the DataLoader's best, raw at least 4,000 images/s.
"""

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import save

from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.data.images import ENCODINGS

BATCH = 128


class Records(torch.utils.data.Dataset):
    """The training images of a prepared data set, each opened and decoded in the worker."""

    def __init__(self, path: str):
        self.dataset = open_dataset(path)
        self.records = self.dataset.splits["train"]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        example = self.records[index]
        return self.decoded(example["image"]), int(example["label"])

    def decoded(self, stored: bytes) -> torch.Tensor:
        image = np.empty((self.dataset.size, self.dataset.size, 3), np.uint8)
        ENCODINGS[self.dataset.encoding].decode(stored, image)
        return torch.from_numpy(image)


class Files(Records):
    """The same, each in a file of its own."""

    def __init__(self, path: str, folder: Path):
        super().__init__(path)
        self.folder, self.labels = folder, []
        for index, example in enumerate(self.records):
            (folder / str(index)).write_bytes(example["image"])
            self.labels.append(int(example["label"]))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.decoded((self.folder / str(index)).read_bytes()), self.labels[index]


def loader(dataset: Records, workers: int) -> Iterator[Any]:
    sampler = torch.utils.data.RandomSampler(dataset, num_samples=10**7)
    return iter(torch.utils.data.DataLoader(dataset, BATCH, sampler=sampler, num_workers=workers, prefetch_factor=4))


def ours(path: str, threads: int) -> Iterator[Any]:
    steps = range(10**6)
    return input_pipeline.training_batches(open_dataset(path), batch_size=BATCH, seed=0, steps=steps, threads=threads)


def undecoded(path: str, threads: int) -> Iterator[Any]:
    """What one process can read at most, however many cores decode: its threads take turns in Python."""
    before = input_pipeline.ENCODINGS
    input_pipeline.ENCODINGS = {name: of._replace(decode=lambda *_: None) for name, of in before.items()}
    try:
        yield from ours(path, threads)
    finally:
        input_pipeline.ENCODINGS = before


def rate(open_batches: Callable[[], Iterator[Any]], workers: int, batches: int) -> float:
    """Images/s of the next `batches`."""
    iterator = open_batches()
    for _ in range(2 * workers):
        next(iterator)
    start = time.perf_counter()
    for images, labels in itertools.islice(iterator, batches):
        assert images.shape[0] == labels.shape[0] == BATCH
    seconds = time.perf_counter() - start
    if hasattr(iterator, "close"):
        iterator.close()
    return batches * BATCH / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jpeg", required=True)
    parser.add_argument("--raw", required=True)
    parser.add_argument("--workers", default="1,2,3,4")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    paths = {"jpeg": arguments.jpeg, "raw": arguments.raw}
    with tempfile.TemporaryDirectory() as scratch:
        readers: dict[tuple[str, str], Callable[[int], Iterator[Any]]] = {}
        for encoding, path in paths.items():
            (folder := Path(scratch) / encoding).mkdir()
            readers[encoding, "alexnet_jax"] = functools.partial(ours, path)
            if encoding == "jpeg":
                readers[encoding, "alexnet_jax, not decoded"] = functools.partial(undecoded, path)
            readers[encoding, "DataLoader, records"] = functools.partial(loader, Records(path))
            readers[encoding, "DataLoader, files"] = functools.partial(loader, Files(path, folder))
        rates: dict[tuple[str, str, int], list[float]] = {}
        for _ in range(arguments.repeats):
            for workers in map(int, arguments.workers.split(",")):
                for (encoding, reader), open_batches in readers.items():
                    found = rate(functools.partial(open_batches, workers), workers, arguments.batches)
                    rates.setdefault((encoding, reader, workers), []).append(found)
                    print(f"{encoding}, {reader}, {workers} workers: {found:,.0f} images/s", flush=True)
    train = {encoding: open_dataset(path).splits["train"] for encoding, path in paths.items()}
    save(
        "input_speed",
        batch_size=BATCH,
        images={encoding: len(records) for encoding, records in train.items()},
        mean_bytes={
            encoding: round(statistics.mean(len(example["image"]) for example in records))
            for encoding, records in train.items()
        },
        other_versions={name: version(name) for name in ("torch", "simplejpeg", "array_record")},
        images_per_second=[
            {"encoding": encoding, "reader": reader, "workers": workers, "median": round(statistics.median(found)),
             "all": [round(one) for one in found]}
            for (encoding, reader, workers), found in rates.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
