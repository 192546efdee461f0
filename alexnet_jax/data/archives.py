"""Images as their owners publish them: ImageNet's tars, CIFAR-10's archives, TFDS data sets."""

import codecs
import functools
import io
import pickle
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from tensorflow_datasets.core import read_only_builder

from alexnet_jax.config import InputError
from alexnet_jax.data.shards import Item
from alexnet_jax.data.sources import SPLIT_NAMES, Source, read_range, reason, uncompressed
from alexnet_jax.shown import say

IMAGENET = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
CIFAR10 = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
CIFAR10_TRAIN, CIFAR10_TEST = tuple(f"data_batch_{number}" for number in range(1, 6)), "test_batch"
CIFAR10_RECORD = 1 + 32 * 32 * 3  # bytes: a label, then the red, green and blue planes


def recognised(source: str, data_dir: str, scratch: Path) -> Source | None:
    """The source, where it is one of these: by its name, or by the names of the files in it.

    Raises InputError where one of these is damaged or not whole.
    """
    if source.startswith("tfds:"):
        return tfds_dataset(source.removeprefix("tfds:"), data_dir)
    path = Path(source).expanduser()
    try:
        if path.is_dir() and (path / IMAGENET[0]).exists():
            return imagenet(path)
        if path.name in CIFAR10 and path.is_file():
            return cifar10(_cifar10_in_tar(path, scratch), path, scratch)
        if path.is_dir() and any((path / f"{CIFAR10_TEST}{end}").exists() for end in ("", ".bin")):
            files = [file for file in path.iterdir() if file.is_file()]
            return cifar10({file.name: (file, 0, file.stat().st_size) for file in files}, path, scratch)
    except (OSError, tarfile.TarError, EOFError, ValueError, pickle.UnpicklingError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--source={source}: cannot be read ({reason(error)})") from error
    return None


def imagenet(folder: Path) -> Source:
    """ILSVRC-2012 from its two tars, read where they lie: the training one is a tar of a tar for each synset.

    The validation labels and the order of the classes are those in tensorflow-datasets.
    """
    train, validation = (folder / name for name in IMAGENET)
    if not validation.exists():
        raise InputError(f"{validation}: is missing beside {train.name}")
    synsets = _lines("labels.txt")
    splits: dict[str, list[tuple[str, str, Any]]] = {"train": [], "validation": []}  # (synset, name, read)
    with tarfile.open(train, "r:") as outer:
        for member in outer:
            synset = Path(member.name).stem
            if synset not in synsets:
                raise InputError(f"{train}: {member.name}: no synset of ILSVRC-2012")
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                for name, start, size in _members(inner):
                    read = functools.partial(read_range, train, member.offset_data + start, size)
                    splits["train"].append((synset, f"{synset}/{name}", read))
    labels = _lines("validation_labels.txt")
    with tarfile.open(validation, "r:") as archive:
        for name, start, size in _members(archive):
            found = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
            if not found or not 1 <= int(found[1]) <= len(labels):
                raise InputError(f"{validation}: {name}: no validation image of ILSVRC-2012")
            read = functools.partial(read_range, validation, start, size)
            splits["validation"].append((labels[int(found[1]) - 1], name, read))
    present = {synset for synset, _, _ in splits["train"]}
    class_names = tuple(synset for synset in synsets if synset in present)
    label_of = {synset: label for label, synset in enumerate(class_names)}
    if len(class_names) < len(synsets):
        say(f"{train}: {len(class_names)} of the {len(synsets):,} synsets; validation images of these only")
    items = {
        split: [
            Item(f"{path}:{name}", name, label_of[synset], read) for synset, name, read in images if synset in label_of
        ]
        for (split, images), path in zip(splits.items(), (train, validation), strict=True)
    }
    return Source("ImageNet", class_names, items)


def _lines(name: str) -> list[str]:
    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, int, int]]:
    """(name, offset in the tar, bytes) of each file."""
    for member in archive:
        if member.isreg():
            yield Path(member.name).name, member.offset_data, member.size


Place = tuple[Path, int, int]  # of a file: (file that holds it, offset, bytes)


def _cifar10_in_tar(path: Path, scratch: Path) -> dict[str, Place]:
    plain = uncompressed(path, scratch)
    with tarfile.open(plain, "r:") as archive:
        return {name: (plain, start, size) for name, start, size in _members(archive)}


def cifar10(files: dict[str, Place], path: Path, scratch: Path) -> Source:
    """CIFAR-10 from the files of either of its archives, at its own 32 × 32, raw. Its test images become validation."""
    binary = f"{CIFAR10_TEST}.bin" in files
    end, names = (".bin", "batches.meta.txt") if binary else ("", "batches.meta")
    missing = [
        name for name in (*(f"{batch}{end}" for batch in (*CIFAR10_TRAIN, CIFAR10_TEST)), names) if name not in files
    ]
    if missing:
        raise InputError(f"{path}: {missing[0]} is missing")
    if binary:
        class_names = tuple(read_range(*files[names]).decode().split())
    else:
        class_names = tuple(name.decode() for name in _arrays(read_range(*files[names]))[b"label_names"])
        files = {
            batch: _as_binary(read_range(*files[batch]), scratch / f"{batch}.bin")
            for batch in (*CIFAR10_TRAIN, CIFAR10_TEST)
        }

    def items(batch: str) -> list[Item]:
        file, start, size = files[f"{batch}{end}"]
        if not size or size % CIFAR10_RECORD:
            raise InputError(f"{path}: {batch}{end} is not whole: {size} bytes")
        labels = np.frombuffer(read_range(file, start, size), np.uint8)[::CIFAR10_RECORD]
        if labels.max() >= len(class_names):
            raise InputError(
                f"{path}: {batch}{end} has a label of {labels.max()}, beyond the {len(class_names)} classes"
            )
        return [
            Item(f"{path}:{batch}#{number}", f"{batch}/{number}", int(label),
                 functools.partial(_cifar10_pixels, file, start + number * CIFAR10_RECORD + 1))
            for number, label in enumerate(labels)
        ]  # fmt: skip

    splits = {"train": [item for batch in CIFAR10_TRAIN for item in items(batch)], "validation": items(CIFAR10_TEST)}
    return Source("CIFAR-10", class_names, splits, size=32, encoding="raw")


def _cifar10_pixels(file: Path, start: int) -> UInt8[np.ndarray, "32 32 3"]:
    planes = np.frombuffer(read_range(file, start, CIFAR10_RECORD - 1), np.uint8)
    return np.ascontiguousarray(planes.reshape(3, 32, 32).transpose(1, 2, 0))


def _as_binary(pickled: bytes, file: Path) -> Place:
    """A batch of the Python archive as one of the binary archive."""
    batch = _arrays(pickled)
    data, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    if (
        data.dtype != np.uint8
        or data.shape != (len(labels), CIFAR10_RECORD - 1)
        or not ((labels >= 0) & (labels < 256)).all()
    ):
        raise ValueError(f"{file.stem} holds other arrays than CIFAR-10's")
    file.write_bytes(np.concatenate([labels.astype(np.uint8)[:, None], data], axis=1).tobytes())
    return file, 0, file.stat().st_size


class _Arrays(pickle.Unpickler):
    """Builds NumPy arrays, and Python's own lists, texts and numbers: nothing that runs code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in _OF_NUMPY:
            return _OF_NUMPY[name]
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return codecs.encode
        raise pickle.UnpicklingError(f"a pickle that asks for {module}.{name}")


_OF_NUMPY = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": np.empty(0).__reduce__()[0]}


def _arrays(pickled: bytes) -> dict[bytes, Any]:
    try:
        found = _Arrays(io.BytesIO(pickled), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # damaged pickles raise any type
        raise pickle.UnpicklingError(f"a damaged pickle: {reason(error)}") from error
    if not isinstance(found, dict):
        raise pickle.UnpicklingError("a pickle of something else")
    return found


def tfds_dataset(name: str, data_dir: str) -> Source:
    """A TFDS data set that was prepared elsewhere in array_record format, with images and one label each."""
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir or None)
        features = builder.info.features
        class_names = tuple(features["label"].names)
        splits = {}
        for split, info in builder.info.splits.items():
            if split.lower() in SPLIT_NAMES:
                splits[SPLIT_NAMES[split.lower()]] = [
                    Item(f"tfds:{name}/{split}#{number}", f"{split}/{number}", -1,
                         functools.partial(_read_tfds, str(builder.data_path), split, number))
                    for number in range(info.num_examples)
                ]  # fmt: skip
        _opened(str(builder.data_path), next(iter(builder.info.splits)))
    except Exception as error:  # TFDS raises many types
        where = f" in {data_dir}" if data_dir else ""
        raise InputError(
            f"--source=tfds:{name}: no array_record data set of labelled images{where} ({reason(error)})"
        ) from error
    test = splits.pop("test", [])  # in ImageNet and others without labels
    if test and "validation" not in splits:
        splits["validation"] = test
    if not {"train", "validation"} <= set(splits):
        raise InputError(f"--source=tfds:{name}: has no split of training and one of validation or test")
    return Source("TFDS", class_names, splits)


@functools.lru_cache
def _opened(folder: str, split: str) -> Any:
    return tfds.builder_from_directory(folder).as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )


def _read_tfds(folder: str, split: str, number: int) -> tuple[Any, int]:
    example = _opened(folder, split)[number]
    return example["image"], int(example["label"])
