"""What a trained network says of pictures: the outputs of its layers as features, of a whole split, and their files."""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int32

from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.device import xla
from alexnet_jax.files import named_in_errors, partial_of
from alexnet_jax.networks.network import Trained
from alexnet_jax.options import InputError
from alexnet_jax.paper.table import named, output_names, step_names


def last_hidden(network: Trained) -> str:
    """The output before the last layer, without dropout, fc7:relu in the paper's network: what its Figure 4 compares
    images by.
    """
    name, layer = [*named(network.net.layers).items()][-2]
    outputs = [of for of in step_names(name, layer) if not of.partition(":")[2].startswith("dropout")]
    return [name, *outputs][-1]


def shapes(network: Trained) -> dict[str, tuple[int, ...]]:
    """Of one picture, all outputs that `features` takes, in their order: (height, width, channels) or (features,)."""
    names = output_names(network.net.layers)
    image = jax.ShapeDtypeStruct((1, network.size, network.size, 3), np.uint8)
    found = jax.eval_shape(network.make_outputs(names), network.params, image)
    return {name: found[name].shape[1:] for name in names}


def split_in_batches(
    network: Trained, dataset: Dataset, split: str, names: Sequence[str], *, batch_size: int = 128
) -> Iterator[tuple[dict[str, Float[np.ndarray, "rows ..."]], Int32[np.ndarray, "rows"]]]:
    """The outputs of these names (see `model.outputs`) for all images of a split, in its order, in float32; labels.

    Raises InputError where there is no such output or split, or the images have another size than the network's.
    """
    if split not in dataset.splits:
        raise InputError(f"{dataset.path}: has no split {split}; there are {', '.join(dataset.splits)}")
    network.check_size(dataset)
    of_images = jax.jit(network.make_outputs(names), compiler_options=xla.compiler_options())
    left = len(dataset.splits[split])
    for batch in input_pipeline.evaluation_batches(dataset, split, batch_size=batch_size):
        found = of_images(network.params, batch.images)
        yield {name: np.asarray(found[name], np.float32)[:left] for name in names}, np.array(batch.labels)[:left]
        left -= batch_size


def features_of_split(
    network: Trained,
    dataset: Dataset,
    split: str = "train",
    *,
    output: str = "fc7:relu",
    file: str | Path | None = None,
    batch_size: int = 128,
) -> Float[np.ndarray, "n ..."]:
    """One output for all images of a split; raises as `split_in_batches`.

    file: .npy to write them to, batch by batch; what is returned then lies there and not in memory.
    """
    rows = (of[output] for of, _ in split_in_batches(network, dataset, split, [output], batch_size=batch_size))
    if file is None:
        return np.concatenate([*rows])
    with Rows(Path(file)) as written:
        for some in rows:
            written.append(some)
    return np.load(file, mmap_mode="r")


class Rows:
    """An .npy, written row by row as they come, that is there once it is whole."""

    def __init__(self, file: Path):
        self.file, self.count, self.shape = file, 0, ()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Rows":
        self._partial, self._opened = self._held.enter_context(partial_of(self.file))
        return self

    def append(self, rows: Float[np.ndarray, "rows ..."]) -> None:
        """Rows of one shape, at all calls."""
        if not self._opened.tell():
            self.shape = rows.shape[1:]
            self._write_head()
        with named_in_errors(self.file):
            self._opened.write(np.ascontiguousarray(rows, np.float32).data)
        self.count += len(rows)

    def _write_head(self) -> None:  # which NumPy makes as long for any number of rows
        self._opened.seek(0)
        head = {"descr": "<f4", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self._opened, head)

    def __exit__(self, kind: Any, *_: Any) -> None:
        with self._held:
            if kind is None and self.count:
                self._write_head()
                self._opened.flush()
                self._partial.replace(self.file)


def write_archive(parts: Mapping[str, Path], file: Path) -> None:
    """An .npz of .npy files, by the names of its arrays."""
    with partial_of(file) as (partial, written):
        with zipfile.ZipFile(written, "w", allowZip64=True) as archive:
            for name, part in parts.items():
                archive.write(part, f"{name}.npy")
        written.flush()
        partial.replace(file)
