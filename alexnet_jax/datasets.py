"""§2: prepared data sets, TFDS data sets in array_record format: writing, statistics, opening. No TensorFlow.

A prepared data set is a folder of TFDS's own files (any TFDS tool reads them) and `statistics.npz`. Each example is
{"image": a JPEG, RGB, size × size, "label": int, "name": the file that it came from}.
"""

import dataclasses
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from jaxtyping import Float64, UInt8
from tensorflow_datasets.core import dataset_info, sequential_writer

from alexnet_jax import shapes
from alexnet_jax.config import InputError

EXAMPLES_PER_SHARD = 4096
CHUNK = 128  # examples a write: TFDS rewrites its metadata each time
JPEG_QUALITY = 95

Pixels = UInt8[np.ndarray, "size size 3"]


class Example(NamedTuple):
    """One image on its way to disk."""

    pixels: Pixels
    label: int
    name: str


@dataclasses.dataclass(frozen=True)
class Statistics:
    """§2's mean and §4.1's colour PCA of a training split, in grey levels (0-255), float64.

    mean_image: of each pixel. covariance: of the RGB values over all pixels of all images.
    """

    mean_image: Float64[np.ndarray, "size size 3"]
    covariance: Float64[np.ndarray, "3 3"]

    @property
    def color_pca(self) -> Float64[np.ndarray, "3 3"]:
        """Columns: principal components of the RGB values, each times the standard deviation along it."""
        eigenvalues, eigenvectors = np.linalg.eigh(self.covariance)
        return eigenvectors * np.sqrt(np.maximum(eigenvalues, 0))


class _Accumulator:
    """Exact sums over images, for Statistics: of integers, below 2⁵³, in float64."""

    def __init__(self, size: int):
        self.images = 0
        self.sum = np.zeros((size, size, 3))
        self.products = np.zeros((3, 3))

    def add(self, pixels: Pixels) -> None:
        self.images += 1
        self.sum += pixels
        colors = pixels.reshape(-1, 3).astype(np.float64)
        self.products += colors.T @ colors

    def statistics(self) -> Statistics:
        mean_image = self.sum / self.images
        mean_color = mean_image.mean((0, 1))
        pixels = self.images * mean_image.shape[0] * mean_image.shape[1]
        return Statistics(mean_image, self.products / pixels - np.outer(mean_color, mean_color))


def write(
    output: Path,
    class_names: Sequence[str],
    splits: Mapping[str, Iterable[Any]],
    load: Callable[[Any], Example | None],
    *,
    size: int,
) -> dict[str, int]:
    """Writes a prepared data set, streaming; returns the number of examples in each split.

    It is written beside `output` and renamed at the very end, so `output` is a whole data set or is not there.

    Args:
      splits: what to write; must contain "train", over which the statistics are taken.
      load: makes an Example of each item (in threads, in order), or None to leave it out.

    Raises:
      InputError: `output` exists or cannot be written, the disk is full, or a split or class stays empty.
    """
    output = output.absolute()
    if output.exists():
        raise InputError(f"{output}: already exists; choose another output or delete it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{output.name}.incomplete-", dir=output.parent))
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror})") from error
    try:
        counts = _write_splits(partial, class_names, splits, load, size)
        os.chmod(partial, 0o755)
        os.rename(partial, output)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise InputError(f"{output}: already exists; another process wrote it meanwhile") from error
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from error
    except RuntimeError as error:  # array_record's own
        raise InputError(f"{output}: cannot be written ({str(error).split(';')[0]})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _write_splits(partial: Path, class_names: Sequence[str], splits: Mapping[str, Iterable[Any]],
                  load: Callable[[Any], Example | None], size: int) -> dict[str, int]:  # fmt: skip
    features = {
        "image": tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=list(class_names)),
        "name": tfds.features.Text(),
    }
    identity = dataset_info.DatasetIdentity(
        name="images",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(partial),
        module_name=__name__,
    )
    writer = sequential_writer.SequentialWriter(
        tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features)),
        max_examples_per_shard=EXAMPLES_PER_SHARD,
        file_format="array_record",
    )
    writer.initialize_splits(list(splits))
    totals = _Accumulator(size)
    counts = {split: np.zeros(len(class_names), int) for split in splits}

    def encode(item: Any) -> tuple[Example, bytes] | None:
        example = load(item)
        return example and (example, simplejpeg.encode_jpeg(example.pixels, quality=JPEG_QUALITY))

    with ThreadPoolExecutor() as pool:
        for split, items in splits.items():
            for chunk in _chunks(items):
                encoded = [pair for pair in pool.map(encode, chunk) if pair]
                for example, jpeg in encoded:
                    counts[split][example.label] += 1
                    if split == "train":
                        totals.add(decode(jpeg))  # as training will see it
                records = [{"image": jpeg, "label": e.label, "name": e.name} for e, jpeg in encoded]
                writer.add_examples({split: records})
    writer.close_all()
    for split, of_class in counts.items():
        if not of_class.any():
            raise InputError(f"the split '{split}' has no readable image")
    if not counts["train"].all():
        empty = class_names[int(np.argmin(counts["train"]))]
        raise InputError(f"the class '{empty}' has no readable image for training")
    statistics = totals.statistics()
    np.savez(partial / "statistics.npz", mean_image=statistics.mean_image, covariance=statistics.covariance)
    return {split: int(of_class.sum()) for split, of_class in counts.items()}


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def decode(jpeg: bytes) -> Pixels:
    """Pixels of a JPEG. Raises ValueError where it is damaged."""
    return simplejpeg.decode_jpeg(jpeg, "RGB")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set. splits: random access to the encoded examples of each."""

    path: Path
    class_names: tuple[str, ...]
    size: int
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
        return Dataset(path, tuple(label.names), image.shape[0], splits, statistics)
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

    def load(item: tuple[int, int]) -> Example:
        split, index = item
        label = index % len(names)
        return Example(shapes.draw(label, np.random.default_rng(item)), label, f"{names[label]}-{split}-{index}")

    splits = {"train": ((0, i) for i in range(train)), "validation": ((1, i) for i in range(validation))}
    try:
        write(path, names, splits, load, size=256)
    except InputError:
        if not path.is_dir():  # else another process was faster, and drew the same pictures
            raise
    return path
