"""§2: prepared data sets: opening them; the built-in one. No TensorFlow.

A prepared data set is a folder that `writing.write` made: a TFDS data set in array_record format (any TFDS tool reads
it), `statistics.npz` and `manifest.json`. Each example is {"image": a JPEG or raw pixels, RGB, size × size,
"label": int, "name": the file that it came from}.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import resource
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from alexnet_jax.data import manifest, shapes, shards
from alexnet_jax.data.images import Pixels, Statistics
from alexnet_jax.data.writing import write
from alexnet_jax.files import check_text
from alexnet_jax.options import InputError
from alexnet_jax.reading import ArrayForm, read_arrays
from alexnet_jax.shown import reason, say

# The form of statistics.npz.
STATISTICS = {
    "mean_image": ArrayForm("f", ("size", "size", 3), 0, 255),
    "covariance": ArrayForm("f", (3, 3), -(255.0**2), 255.0**2),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    name: by which `open_dataset` finds it. encoding: of its images, one of `images.ENCODINGS`.
    """

    name: str
    path: Path
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    size: int
    encoding: str
    splits: Mapping[str, shards.Records] = dataclasses.field(repr=False)
    statistics: Statistics = dataclasses.field(repr=False)

    def fingerprint(self) -> str:
        """Short text that differs where the classes, the numbers of images or the training images differ."""
        counts = {split: len(records) for split, records in self.splits.items()}
        digest = hashlib.sha256(repr((self.class_names, self.size, counts)).encode())
        digest.update(self.statistics.mean_image.tobytes() + self.statistics.covariance.tobytes())
        return digest.hexdigest()[:16]


def open_dataset(name: str | Path) -> Dataset:
    """Opens the prepared data set at a path, or the built-in one ('shapes'), which is drawn where it is missing.

    Raises InputError where there is none, or it is damaged or was not written by this package.
    """
    name = str(name)
    path = builtin_shapes() if name == "shapes" else Path(name).expanduser()
    check_text(path, f"--dataset={name}")
    if not path.is_dir():
        raise InputError(
            f"--dataset={name}: neither a folder nor the built-in data set 'shapes'; "
            "make one of your images with python -m alexnet_jax.prepare"
        )
    _allow_many_files()
    try:
        found = manifest.read(path)
        statistics = Statistics(**read_arrays(path / "statistics.npz", STATISTICS))
        splits = {split: shards.Records(path, found.of_split(split)) for split in found.images}
    except Exception as error:
        raise InputError(
            f"--dataset={name}: {path} is not a data set that alexnet_jax.prepare wrote ({reason(error)})"
        ) from error
    size = len(statistics.mean_image)
    return Dataset(name, path, found.class_names, size, found.encoding, splits, statistics)


def _allow_many_files() -> None:
    """array_record keeps each file open that it has read from: ImageNet's 1,301 are more than is often allowed."""
    allowed, possible = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where the system does not keep to its own limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(allowed, min(possible, 100_000)), possible))


def builtin_shapes(train: int = 4000, validation: int = 500) -> Path:
    """The folder of the built-in data set (see shapes.py), drawn at the first call into the user's cache folder."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise InputError("XDG_CACHE_HOME=DIR is needed to draw the built-in data set: there is no HOME") from error
    path = cache / "alexnet_jax" / f"shapes{shapes.VERSION}-{train}-{validation}"
    if path.is_dir():
        return path
    say(f"drawing the built-in data set, {train + validation:,} pictures, once: {path}")
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
        write(path, names, splits, size=256)
    except (InputError, OSError) as error:
        if not path.is_dir():  # else another process was faster, and drew the same pictures
            raise InputError(f"XDG_CACHE_HOME={cache}: set it to a folder that can be written ({error})") from error
    return path


def _draw(label: int, seed: tuple[int, int]) -> Pixels:
    return shapes.draw(label, np.random.default_rng(seed))
