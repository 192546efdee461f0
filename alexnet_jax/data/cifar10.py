"""CIFAR-10 as its owners publish it: two archives of the same images, one of them of Python's pickles."""

import functools
import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from alexnet_jax import pickles
from alexnet_jax.data import tars
from alexnet_jax.data.layouts import Source
from alexnet_jax.data.shards import Item
from alexnet_jax.data.tars import Place
from alexnet_jax.options import InputError
from alexnet_jax.pickles import Maker, Stub

ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
TRAIN, TEST = tuple(f"data_batch_{number}" for number in range(1, 6)), "test_batch"
RECORD = 1 + 32 * 32 * 3  # bytes: a label, then the red, green and blue planes


def in_tar(path: Path, scratch: Path) -> dict[str, Place]:
    """The files of an archive, by name."""
    found = tars.members(tars.uncompressed(path, scratch))
    return {Path(name).name: place for name, place in found if isinstance(place, Place)}


def in_folder(path: Path) -> dict[str, Place]:
    """The files of a folder, by name."""
    return {file.name: Place(file, 0, file.stat().st_size) for file in path.iterdir() if file.is_file()}


def cifar10(files: dict[str, Place], path: Path, scratch: Path) -> Source:
    """CIFAR-10 from the files of either of its archives, at its own 32 × 32, raw. Its test images become validation."""
    binary = f"{TEST}.bin" in files
    end, names = (".bin", "batches.meta.txt") if binary else ("", "batches.meta")
    missing = [name for name in (*(f"{batch}{end}" for batch in (*TRAIN, TEST)), names) if name not in files]
    if missing:
        raise InputError(f"{path}: {missing[0]} is missing")
    if binary:
        class_names = tuple(files[names].read().decode().split())
    else:
        class_names = _class_names(unpickled(files[names].read()))
        files = {batch: _as_binary(files[batch].read(), scratch / f"{batch}.bin") for batch in (*TRAIN, TEST)}

    def items(batch: str) -> list[Item]:
        file, start, size, pieces = files[f"{batch}{end}"]
        if not size or size % RECORD or pieces is not None:
            raise InputError(f"{path}: {batch}{end} is not whole: {size} bytes{' with holes' * (pieces is not None)}")
        labels = np.frombuffer(files[f"{batch}{end}"].read(), np.uint8)[::RECORD]
        if labels.max() >= len(class_names):
            raise InputError(
                f"{path}: {batch}{end} has a label of {labels.max()}, beyond the {len(class_names)} classes"
            )
        return [
            Item(f"{path}:{batch}#{number}", f"{batch}/{number}", int(label),
                 functools.partial(_pixels, Place(file, start + number * RECORD + 1, RECORD - 1)))
            for number, label in enumerate(labels)
        ]  # fmt: skip

    splits = {"train": [item for batch in TRAIN for item in items(batch)], "validation": items(TEST)}
    return Source("CIFAR-10", class_names, splits, size=32, encoding="raw")


def _pixels(place: Place) -> UInt8[np.ndarray, "32 32 3"]:
    planes = np.frombuffer(place.read(), np.uint8)
    return np.ascontiguousarray(planes.reshape(3, 32, 32).transpose(1, 2, 0))


def _class_names(meta: dict[Any, Any]) -> tuple[str, ...]:
    names = meta.get(b"label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes) for name in names):
        raise ValueError("batches.meta has no label_names")
    return tuple(name.decode() for name in names)


def _as_binary(pickled: bytes, file: Path) -> Place:
    """A batch of the Python archive as one of the binary archive."""
    batch = unpickled(pickled)
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if (
        not isinstance(data, _Array)
        or not isinstance(labels, list)
        or data.shape != (len(labels), RECORD - 1)
        or not all(type(label) is int and 0 <= label < 256 for label in labels)
    ):
        raise ValueError(f"{file.stem} holds other arrays than CIFAR-10's")
    pixels = np.frombuffer(data.content, np.uint8).reshape(data.shape)
    file.write_bytes(np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1).tobytes())
    return Place(file, 0, file.stat().st_size)


class _Bytes(Stub):
    """Stands for NumPy's type of bytes, the only one that these files have."""

    def __init__(self, name: Any, *others: Any):
        if name not in ("u1", b"u1"):
            raise ValueError("an array of another type than bytes")

    def __setstate__(self, state: Any) -> None:
        """Its layout in memory: for bytes there is only one."""


class _Array(Stub):
    """Stands for NumPy's array of bytes: its shape and its content, of which nothing is made here."""

    def __init__(self, *of_nothing: Any):
        self.shape: tuple[int, ...] = ()
        self.content = b""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, content = state
        right = isinstance(kind, _Bytes) and not by_columns and isinstance(content, bytes)
        numbers = type(shape) is tuple and all(type(of) is int and 0 <= of < 2**31 for of in shape)
        if not right or not numbers or len(shape) != 2 or math.prod(shape) != len(content):
            raise ValueError("an array that is not as it is written")
        self.shape, self.content = shape, content


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): Maker(_Array),
    ("numpy._core.multiarray", "_reconstruct"): Maker(_Array),
    ("numpy", "ndarray"): Maker(_Array),
    ("numpy", "dtype"): Maker(_Bytes),
    ("_codecs", "encode"): Maker(pickles.encoded),
}


def unpickled(content: bytes) -> dict[Any, Any]:
    """What is in a pickle of CIFAR-10. Raises UnpicklingError for any other."""
    found = pickles.unpickled(io.BytesIO(content), _KNOWN, encoding="bytes")
    if not isinstance(found, dict):
        raise pickle.UnpicklingError("a pickle of something else")
    return found
