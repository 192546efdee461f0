"""§2: opening prepared data sets, and the built-in one. No TensorFlow.

A prepared data set is a folder that `shards.write` made: a TFDS data set in array_record format (any TFDS tool reads
it), `statistics.npz` and `manifest.json`. Each example is {"image": a JPEG or raw pixels, RGB, size × size,
"label": int, "name": the file that it came from}.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax import shapes, shards
from alexnet_jax.config import InputError
from alexnet_jax.images import Pixels, Statistics


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    encoding: of its images, "jpeg" or "raw". splits: random access to the encoded examples of each.
    """

    path: Path
    class_names: tuple[str, ...]
    size: int
    encoding: str
    splits: Mapping[str, Sequence[Mapping[str, Any]]]
    statistics: Statistics

    def fingerprint(self) -> str:
        """Short text that differs where the classes, the numbers of images or the training images differ."""
        counts = {split: len(records) for split, records in self.splits.items()}
        digest = hashlib.sha256(repr((self.class_names, self.size, counts)).encode())
        digest.update(self.statistics.mean_image.tobytes() + self.statistics.covariance.tobytes())
        return digest.hexdigest()[:16]


def open_dataset(name: str) -> Dataset:
    """Opens the prepared data set at a path, or the built-in one ('shapes'), which is drawn where it is missing.

    Raises InputError where there is none, or it is damaged or was not written by this package.
    """
    path = builtin_shapes() if name == "shapes" else Path(name).expanduser()
    if not path.is_dir():
        raise InputError(
            f"--dataset={name}: neither a folder nor the built-in data set 'shapes'; "
            "make one of your images with python -m alexnet_jax.prepare"
        )
    try:
        with np.load(path / "statistics.npz", allow_pickle=False) as file:
            statistics = Statistics(file["mean_image"], file["covariance"])
        builder = tfds.builder_from_directory(path)
        label, image = builder.info.features["label"], builder.info.features["image"]
        decoders = {"image": tfds.decode.SkipDecoding()}
        splits = {split: builder.as_data_source(split=split, decoders=decoders) for split in builder.info.splits}
        missing = {"train", "validation"} - set(splits)
        if missing:
            raise ValueError(f"it has no split '{missing.pop()}'")
        encoding = "jpeg" if isinstance(image, tfds.features.Image) else "raw"
        return Dataset(path, tuple(label.names), image.shape[0], encoding, splits, statistics)
    except Exception as error:  # TFDS raises many types for a damaged folder
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"--dataset={name}: {path} is not a data set that alexnet_jax.prepare wrote ({reason})"
        ) from error


def builtin_shapes(train: int = 4000, validation: int = 500) -> Path:
    """The folder of the built-in data set (see shapes.py), drawn at the first call into the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "alexnet_jax" / f"shapes{shapes.VERSION}-{train}-{validation}"
    if path.is_dir():
        return path
    print(f"drawing the built-in data set, {train + validation:,} pictures, once: {path}", flush=True)
    names = tuple(shapes.SHAPES)

    def item(split: int, index: int) -> shards.Item:
        label = index % len(names)
        name = f"{names[label]}-{split}-{index}"
        return shards.Item(name, name, label, functools.partial(_draw, label, (split, index)))

    splits = {
        "train": [item(0, index) for index in range(train)],
        "validation": [item(1, index) for index in range(validation)],
    }
    try:
        shards.write(path, names, splits, size=256)
    except InputError:
        if not path.is_dir():  # else another process was faster, and drew the same pictures
            raise
    return path


def _draw(label: int, seed: tuple[int, int]) -> Pixels:
    return shapes.draw(label, np.random.default_rng(seed))
