"""§2: the files of a prepared data set, its shards: written in several processes, read record by record.

Each holds up to `EXAMPLES_PER_SHARD` images and is a function of its items alone: so the result is the same, byte for
byte, whatever the number of processes, and whether the writing was interrupted or not.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import processes
from alexnet_jax.data.images import ENCODINGS, Pixels, Sums, upright_rgb
from alexnet_jax.files import sha256, write_whole
from alexnet_jax.options import InputError
from alexnet_jax.reading import ArrayForm, archive, read_arrays

EXAMPLES_PER_SHARD = 1024
VERSION = 2  # of what is written; another one makes nothing of what an interrupted run of before has left


class Item(NamedTuple):
    """One image of a source.

    path: as messages name it. name: as it is stored. label: its class, or -1 where `read` gives it.
    read: → the bytes of an image file, or pixels (uint8, RGB); with label -1 → (those, label). It is sent to other
    processes. Raises OSError or ValueError where there is nothing to read.
    """

    path: str
    name: str
    label: int
    read: Callable[[], Any]


class Shard(NamedTuple):
    """One file to write. key: text that differs where its content would."""

    split: str
    number: int
    items: Sequence[Item]
    size: int
    encoding: str
    class_names: tuple[str, ...]
    on_error: str
    max_pixels: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.split}-{self.number:05}"

    def key(self) -> str:
        """A digest of all that decides what is written: a shard of the same key need not be written again."""
        of_items = [(item.path, item.name, item.label) for item in self.items]
        form = (
            VERSION,
            self.split,
            self.size,
            self.encoding,
            ENCODINGS[self.encoding].form,
            self.class_names,
        )
        return hashlib.sha256(repr((form, of_items)).encode()).hexdigest()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_missing(folder: Path, shards: list[Shard], workers: int, progress: Callable[[int], None]) -> None:
    """Writes those that `folder` does not hold yet; `progress` is told of the images done, in all those."""
    missing = [shard for shard in shards if not is_done(folder, shard)]
    progress(sum(len(shard.items) for shard in shards) - sum(len(shard.items) for shard in missing))
    for shard in missing:
        for end in ("shard", "npz"):
            remove(folder / f"{shard.name}.{end}")
    if workers == 1 or sum(len(shard.items) for shard in missing) <= EXAMPLES_PER_SHARD:
        for shard in missing:
            _write_shard(folder, shard, progress)
    else:
        functions = (item.read for shard in missing for item in shard.items)
        script = any(processes.is_of_the_script(function) for function in functions)
        write = functools.partial(_write_shard, folder)
        processes.share(write, missing, workers, progress, what=str(folder), needs_script=script)


def _write_shard(folder: Path, shard: Shard, progress: Callable[[int], None]) -> None:
    """Writes NAME.shard, and then NAME.npz, which says that it is whole and what is in it."""
    file = folder / f"{shard.name}.shard"
    counts, sums = np.zeros(len(shard.class_names), np.int64), Sums(shard.size)
    seen = np.empty((shard.size, shard.size, 3), np.uint8)
    skipped, num_bytes, encoding = [], 0, ENCODINGS[shard.encoding]
    try:
        # Compressing again would cost time, in reading too, and gain nothing for JPEGs and a tenth for raw images.
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        try:
            for item in shard.items:
                try:
                    pixels, label = _load(item, shard)
                    if not 0 <= label < len(counts):
                        raise ValueError(f"has the label {label}, which is none of the {len(counts)} classes")
                except ValueError as error:
                    if shard.on_error == "stop":
                        raise InputError(f"{item.path}: {error}; --on_error=skip leaves such files out") from error
                    skipped.append(f"{item.path}: {error}")
                    continue
                finally:
                    progress(1)
                stored = encoding.encode(pixels)
                record = _record(stored, label, item.name)
                writer.write(record)
                num_bytes += len(record)
                counts[label] += 1
                if shard.split == "train":
                    encoding.decode(stored, seen)  # as training will see it
                    sums.add(seen)
        finally:
            writer.close()
    except RuntimeError as error:  # array_record's own
        raise InputError(f"{folder}: cannot be written ({str(error).split(';')[0]})") from error
    account = archive(
        key=shard.key(), sha256=sha256(file), num_bytes=num_bytes, counts=counts, skipped=np.array(skipped, np.str_),
        pixels=sums.pixels, products=sums.products,
    )  # fmt: skip
    remove(folder / f"{shard.name}.npz.partial")
    write_whole(folder / f"{shard.name}.npz", account)


def _load(item: Item, shard: Shard) -> tuple[Pixels, int]:
    """The pixels and the label. Raises ValueError, saying what is wrong."""
    try:
        found = item.read()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error
    image, label = found if item.label == -1 else (found, item.label)
    return upright_rgb(image, shard.size, shard.max_pixels), label


def _record(image: bytes, label: int, name: str) -> bytes:
    """An example as TFDS stores those that have `features_of`."""
    # Built and parsed here, since TFDS, made for all features that there may be, takes 5 % of the time to prepare an
    # image, and 15 % of the time to read one.
    example = tf_example_pb2.Example()
    field = example.features.feature
    field["image"].bytes_list.value.append(image)
    field["label"].int64_list.value.append(label)
    field["name"].bytes_list.value.append(name.encode())
    return example.SerializeToString(deterministic=True)  # not in the order that this process hashes the fields in


def features_of(class_names: Sequence[str], size: int, encoding: str) -> tfds.features.FeaturesDict:
    """What TFDS is told of an example: an image of size × size × 3, its label and the name of its file."""
    shape = (size, size, 3)
    return tfds.features.FeaturesDict(
        {
            "image": ENCODINGS[encoding].feature(tfds.features, shape),
            "label": tfds.features.ClassLabel(names=list(class_names)),
            "name": tfds.features.Text(),
        }
    )


class _Part(NamedTuple):
    """Of a shard, the records from `skip` on, as array_record is told it."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Records:
    """The examples of one split as they are stored: {"image": bytes, "label": int, "name": str}, by their number."""

    def __init__(self, folder: Path, images: Mapping[str, int]):
        """images: {name of a shard: how many it holds}, in their order. Raises ValueError where one is not there."""
        for name, count in images.items():
            if not (folder / name).is_file():
                raise ValueError(f"{name} is missing")
            if count > (folder / name).stat().st_size:  # before memory is taken for as many
                raise ValueError(f"{name} is too short for the {count:,} images of its manifest")
        # As numbers, so that no file is opened before it is read from; and no text, in which brackets have a meaning.
        self._files = [_Part(str(folder / name), 0, count, count) for name, count in images.items()]
        self._source = ArrayRecordDataSource(self._files)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises InputError, naming the shard, where the record is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            field = tf_example_pb2.Example.FromString(self._source[index]).features.feature
            return {
                "image": field["image"].bytes_list.value[0],
                "label": field["label"].int64_list.value[0],
                "name": field["name"].bytes_list.value[0].decode(),
            }
        except Exception as error:  # array_record and protobuf raise types of their own
            raise InputError(f"{self.place(index)}: cannot be read ({str(error).split(';')[0]})") from error

    def place(self, index: int) -> str:
        """Where a record lies, for messages: the shard, and its number in it."""
        shard = 0
        while index >= self._files[shard].take:
            index -= self._files[shard].take
            shard += 1
        return f"{self._files[shard].filename}, record {index}"


def account(folder: Path, shard: Shard) -> dict[str, np.ndarray]:
    """What NAME.npz says of a shard. Raises FileNotFoundError, or InputError where it is damaged."""
    forms = {
        "key": ArrayForm("U"), "sha256": ArrayForm("U"), "num_bytes": ArrayForm("iu", (), 0),
        "counts": ArrayForm("iu", (len(shard.class_names),), 0), "skipped": ArrayForm("U", ("skipped",)),
        "pixels": ArrayForm("iu", (shard.size, shard.size, 3), 0), "products": ArrayForm("iu", (3, 3), 0),
    }  # fmt: skip
    return read_arrays(folder / f"{shard.name}.npz", forms)


def is_done(folder: Path, shard: Shard) -> bool:
    """Whether it was written already, from the same images, and is whole."""
    try:
        found = account(folder, shard)
        same = str(found["key"]) == shard.key() and str(found["sha256"]) == sha256(folder / f"{shard.name}.shard")
        return same and (shard.on_error == "skip" or not len(found["skipped"]))
    except (InputError, OSError):  # what a run that died has left may be anything
        return False


def remove(path: Path) -> None:
    """A file or folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
