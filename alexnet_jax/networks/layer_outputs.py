"""What a layer of a trained network says of images: its outputs as features."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from alexnet_jax.config import InputError
from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.data.images import read_file
from alexnet_jax.device import xla
from alexnet_jax.networks.network import Trained
from alexnet_jax.paper.architectures import named
from alexnet_jax.paper.augment import center_view, subtract_mean
from alexnet_jax.paper.model import activations


def last_hidden(network: Trained) -> str:
    """The layer before the classes, fc7 in the paper's network: what its Figure 4 compares images by."""
    return [*named(network.net.layers)][-2]


def make_features(
    network: Trained, layer: str
) -> Callable[[PyTree, UInt8[Array, "n size size 3"]], Float[Array, "n ..."]]:
    """The function (params, images) → output of a layer after its last step, of the centre of each image, in test mode.

    Of a convolution (n, height, width, kernels), of a dense layer (n, features). Raises InputError where there is no
    such layer.
    """
    names = [*named(network.net.layers)]
    if layer not in names:
        raise InputError(f"{network.workdir}: its network has no layer {layer}; there are {', '.join(names)}")
    mean_image = jnp.asarray(network.mean_image, jnp.float32)

    def of_images(params: PyTree, images: Array) -> Array:
        views = center_view(subtract_mean(images, mean_image), network.config.crop_size)
        return activations(network.net, {"params": params}, views)[layer]

    return of_images


def of_files(
    network: Trained, files: Sequence[str | Path], *, layer: str = "fc7", batch_size: int = 16
) -> Float[np.ndarray, "n ..."]:
    """The outputs of a layer for pictures of any size and kind. Raises InputError, naming a file that is none."""
    of_images = jax.jit(make_features(network, layer), compiler_options=xla.compiler_options())
    found = []
    for start in range(0, len(files), batch_size):
        pictures = [read_file(file, network.size) for file in files[start : start + batch_size]]
        images = np.zeros((batch_size, network.size, network.size, 3), np.uint8)  # one size, compiled once
        images[: len(pictures)] = pictures
        found.append(np.asarray(of_images(network.params, images), np.float32)[: len(pictures)])
    if not found:
        raise InputError("no picture is given")
    return np.concatenate(found)


def features(
    network: Trained,
    dataset: Dataset,
    split: str = "train",
    *,
    layer: str = "fc7",
    file: str | Path | None = None,
    batch_size: int = 128,
) -> Float[np.ndarray, "n ..."]:
    """The outputs of a layer for all images of a split, in its order, in float32.

    file: .npy to write them to, batch by batch; what is returned then lies there and not in memory.

    Raises InputError where there is no such layer or split, or the images have another size than the network's.
    """
    if split not in dataset.splits:
        raise InputError(f"{dataset.path}: has no split {split}; there are {', '.join(dataset.splits)}")
    network.check_size(dataset)
    of_images = jax.jit(make_features(network, layer), compiler_options=xla.compiler_options())
    images = len(dataset.splits[split])
    found: np.ndarray | None = None
    for number, batch in enumerate(input_pipeline.evaluation_batches(dataset, split, batch_size=batch_size)):
        rows = np.asarray(of_images(network.params, batch.images), np.float32)
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
