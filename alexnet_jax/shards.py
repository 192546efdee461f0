"""§2: writing a prepared data set, shard by shard, in several processes; and checking one.

What is written is a TFDS data set in array_record format, `statistics.npz` and `manifest.json`. Each shard holds up to
`EXAMPLES_PER_SHARD` images and is a function of its items alone: so the result is the same, byte for byte, whatever the
number of processes, and whether the writing was interrupted or not. No TensorFlow.
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_info, example_serializer, naming
from tensorflow_datasets.core import splits as tfds_splits

from alexnet_jax.config import InputError
from alexnet_jax.images import JPEG_QUALITY, Pixels, Sums, decode, encode, upright_rgb

NAME = "images"  # of the data set, as TFDS has it
MANIFEST = "manifest.json"
EXAMPLES_PER_SHARD = 1024
ENCODINGS = ("jpeg", "raw")
VERSION = 1  # of what is written; another one makes nothing of what an interrupted run of before has left


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

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05}"

    def key(self) -> str:
        of_items = [(item.path, item.name, item.label) for item in self.items]
        form = (
            VERSION,
            self.split,
            self.size,
            self.encoding,
            self.encoding == "jpeg" and JPEG_QUALITY,
            self.class_names,
        )
        return hashlib.sha256(repr((form, of_items)).encode()).hexdigest()


def write(
    output: Path,
    class_names: Sequence[str],
    splits: Mapping[str, Sequence[Item]],
    *,
    size: int,
    encoding: str = "jpeg",
    on_error: str = "stop",
    workers: int = 1,
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[dict[str, int], list[str]]:
    """Writes a prepared data set; returns the number of images in each split, and what was left out, with the reasons.

    It grows in the folder `output`.incomplete, which is renamed at the very end: `output` is a whole data set or is not
    there. Where this is interrupted, the same call continues with the shards that are missing.

    Args:
      splits: what to write; must contain "train", over which the statistics are taken.
      on_error: "stop" at an image that cannot be read, or "skip" it.
      workers: processes. With one, or a single shard's worth of images, all is done in this one.
      progress: told the number of images done since it was last told.

    Raises:
      InputError: `output` exists or cannot be written, another process writes it, the disk is full, an image cannot be
        read, or a split or class stays empty.
    """
    output = output.absolute()
    if output.exists():
        raise InputError(f"{output}: already exists; choose another output or delete it")
    shards = [
        Shard(split, number, items[start : start + EXAMPLES_PER_SHARD], size, encoding, tuple(class_names), on_error)
        for split, items in splits.items()
        for number, start in enumerate(range(0, len(items), EXAMPLES_PER_SHARD))
    ]
    folder = output.with_name(f"{output.name}.incomplete")
    try:
        with _only_writer(folder):
            if output.exists():
                raise InputError(f"{output}: already exists; another process wrote it meanwhile")
            missing = [shard for shard in shards if not _is_done(folder, shard)]
            progress(sum(len(shard.items) for shard in shards) - sum(len(shard.items) for shard in missing))
            _write_shards(folder, missing, workers, progress)
            counts, skipped = _finish(folder, shards)
            os.rename(folder, output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from error
    return counts, skipped


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Makes the folder, and holds it against other processes; removes it where it holds no whole shard in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise InputError(f"{folder}: is being written by another process") from error
    try:
        yield
    finally:
        if folder.exists() and not any(folder.glob("*.npz")):
            shutil.rmtree(folder)
        os.close(handle)


def _write_shards(folder: Path, shards: list[Shard], workers: int, progress: Callable[[int], None]) -> None:
    if workers == 1 or sum(len(shard.items) for shard in shards) <= EXAMPLES_PER_SHARD:
        for shard in shards:
            _write_shard(folder, shard, progress)
        return
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    done, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(workers, context, _in_worker, (done, stop)) as pool:
        told = 0
        pending: set[Future] = {pool.submit(_write_shard, folder, shard) for shard in shards}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                now = done.value
                progress(now - told)
                told = now
                for future in finished:
                    future.result()
        except BrokenProcessPool as error:
            raise InputError(
                f"{folder}: a worker process was killed (out of memory?); the same command continues"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


_worker: Any = None  # in a worker process: (images done by all, whether to stop)


def _in_worker(done: Any, stop: Any) -> None:
    global _worker
    _worker = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one tells the others


def _told_in_worker(images: int) -> None:
    done, stop = _worker
    with done.get_lock():
        done.value += images
    if stop.is_set():
        raise InputError("stopped")


def _write_shard(folder: Path, shard: Shard, progress: Callable[[int], None] = _told_in_worker) -> None:
    """Writes NAME.shard, and then NAME.npz, which says that it is whole and what is in it."""
    file = folder / f"{shard.name}.shard"
    features = _features(shard.class_names, shard.size, shard.encoding)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    counts, sums = np.zeros(len(shard.class_names), np.int64), Sums(shard.size)
    seen = np.empty((shard.size, shard.size, 3), np.uint8)
    skipped, num_bytes = [], 0
    try:
        # Compressing again would cost time, in reading too, and gain nothing for JPEGs and a tenth for raw images.
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        try:
            for item in shard.items:
                try:
                    pixels, label = _load(item, shard.size)
                except ValueError as error:
                    if shard.on_error == "stop":
                        raise InputError(f"{item.path}: {error}; --on_error=skip leaves such files out") from error
                    skipped.append(f"{item.path}: {error}")
                    continue
                finally:
                    progress(1)
                stored = encode(pixels, shard.encoding)
                decode(stored, shard.encoding, seen)  # as training will see it
                image = stored if shard.encoding == "jpeg" else pixels
                example = features.encode_example({"image": image, "label": label, "name": item.name})
                # Not in the order that this process happens to hash the fields in.
                record = serializer.get_tf_example(example).SerializeToString(deterministic=True)
                writer.write(record)
                num_bytes += len(record)
                counts[label] += 1
                if shard.split == "train":
                    sums.add(seen)
        finally:
            writer.close()
    except RuntimeError as error:  # array_record's own
        raise InputError(f"{folder}: cannot be written ({str(error).split(';')[0]})") from error
    with (folder / f"{shard.name}.npz.partial").open("wb") as whole:
        np.savez(
            whole, key=shard.key(), sha256=_sha256(file), num_bytes=num_bytes, counts=counts, skipped=skipped,
            pixels=sums.pixels, products=sums.products,
        )  # fmt: skip
    os.replace(folder / f"{shard.name}.npz.partial", folder / f"{shard.name}.npz")


def _load(item: Item, size: int) -> tuple[Pixels, int]:
    """The pixels and the label. Raises ValueError, saying what is wrong."""
    try:
        found = item.read()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error
    image, label = found if item.label == -1 else (found, item.label)
    return upright_rgb(image, size), label


def _features(class_names: Sequence[str], size: int, encoding: str) -> tfds.features.FeaturesDict:
    shape = (size, size, 3)
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape, encoding_format="jpeg")
            if encoding == "jpeg"
            else tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes"),
            "label": tfds.features.ClassLabel(names=list(class_names)),
            "name": tfds.features.Text(),
        }
    )


def _is_done(folder: Path, shard: Shard) -> bool:
    try:
        with np.load(folder / f"{shard.name}.npz", allow_pickle=False) as whole:
            return str(whole["key"]) == shard.key() and str(whole["sha256"]) == _sha256(folder / f"{shard.name}.shard")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _finish(folder: Path, shards: list[Shard]) -> tuple[dict[str, int], list[str]]:
    """Makes the data set out of the whole shards: their names, the statistics, TFDS's metadata, the manifest."""
    class_names, size = shards[0].class_names, shards[0].size
    counts = {shard.split: np.zeros(len(class_names), np.int64) for shard in shards}
    lengths: dict[str, list[int]] = {split: [] for split in counts}
    num_bytes = dict.fromkeys(counts, 0)
    sums, skipped, files = Sums(size), [], {}
    for shard in shards:
        with np.load(folder / f"{shard.name}.npz", allow_pickle=False) as whole:
            counts[shard.split] += whole["counts"]
            skipped += whole["skipped"].tolist()
            num_bytes[shard.split] += int(whole["num_bytes"])
            if shard.split == "train":
                sums.images += int(whole["counts"].sum())
                sums.pixels += whole["pixels"]
                sums.products += whole["products"]
            if whole["counts"].any():
                name = f"{NAME}-{shard.split}.array_record-{len(lengths[shard.split]):05}"
                files[name] = (shard, {"sha256": str(whole["sha256"]), "images": int(whole["counts"].sum())})
                lengths[shard.split].append(int(whole["counts"].sum()))
    for split, of_class in counts.items():
        if not of_class.any():
            raise InputError(f"the split '{split}' has no readable image")
    if not counts["train"].all():
        empty = class_names[int(np.argmin(counts["train"]))]
        raise InputError(f"the class '{empty}' has no readable image for training")

    statistics = sums.statistics()
    np.savez(folder / "statistics.npz", mean_image=statistics.mean_image, covariance=statistics.covariance)
    identity = dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=_features(class_names, size, shards[0].encoding))
    info.set_file_format("array_record")
    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )  # fmt: skip
    info.set_splits(
        tfds_splits.SplitDict(
            [
                tfds_splits.SplitInfo(split, lengths[split], num_bytes[split], template.replace(split=split))
                for split in counts
            ]
        )
    )
    info.write_to_directory(folder)
    manifest = {
        "version": VERSION,
        "encoding": shards[0].encoding,
        "images": {split: dict(zip(class_names, of_class.tolist(), strict=True)) for split, of_class in counts.items()},
        "shards": {name: values for name, (_, values) in files.items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    for name, (shard, _) in files.items():
        os.replace(folder / f"{shard.name}.shard", folder / name)
    for left in [*folder.glob("*.npz"), *folder.glob("*.shard"), *folder.glob("*.partial")]:
        if left.name != "statistics.npz":
            left.unlink()
    return {split: int(of_class.sum()) for split, of_class in counts.items()}, skipped


def verify(path: Path) -> dict[str, Any]:
    """Checks every file of a prepared data set against its manifest, which is returned.

    Raises InputError naming the first file that is missing or is not as it was written.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        shards = manifest["shards"].items()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / MANIFEST}: cannot be read ({error})") from error
    for name, expected in shards:
        file = path / name
        if not file.exists():
            raise InputError(f"{file}: is missing")
        if _sha256(file) != expected["sha256"]:
            raise InputError(f"{file}: is not as it was written")
    return manifest
