"""What a trained network says of the images of a whole split: the outputs of a layer as features."""

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from alexnet_jax.config import InputError
from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.device import xla
from alexnet_jax.networks.network import Trained
from alexnet_jax.paper.table import named, step_names


def last_hidden(network: Trained) -> str:
    """The output before the last layer, without dropout, fc7:relu in the paper's network: what its Figure 4 compares
    images by.
    """
    name, layer = [*named(network.net.layers).items()][-2]
    outputs = [of for of in step_names(name, layer) if not of.partition(":")[2].startswith("dropout")]
    return [name, *outputs][-1]


def features_of_split(
    network: Trained,
    dataset: Dataset,
    split: str = "train",
    *,
    output: str = "fc7:relu",
    file: str | Path | None = None,
    batch_size: int = 128,
) -> Float[np.ndarray, "n ..."]:
    """The output of this name (see `model.outputs`) for all images of a split, in its order, in float32.

    file: .npy to write them to, batch by batch; what is returned then lies there and not in memory.

    Raises InputError where there is no such output or split, or the images have another size than the network's.
    """
    if split not in dataset.splits:
        raise InputError(f"{dataset.path}: has no split {split}; there are {', '.join(dataset.splits)}")
    network.check_size(dataset)
    of_images = jax.jit(network.make_outputs([output]), compiler_options=xla.compiler_options())
    images = len(dataset.splits[split])
    found: np.ndarray | None = None
    for number, batch in enumerate(input_pipeline.evaluation_batches(dataset, split, batch_size=batch_size)):
        rows = np.asarray(of_images(network.params, batch.images)[output], np.float32)
        if found is None:
            shape = (images, *rows.shape[1:])
            if file is None:
                found = np.empty(shape, np.float32)
            else:
                found = np.lib.format.open_memmap(file, "w+", np.float32, shape)
        first = number * batch_size
        found[first : first + batch_size] = rows[: images - first]
    assert found is not None
    if isinstance(found, np.memmap):
        found.flush()
    return found
