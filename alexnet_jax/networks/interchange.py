"""Networks of other frameworks: torchvision's and Caffe's AlexNet in, a state dict for PyTorch out."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from alexnet_jax.config import Config
from alexnet_jax.data import preprocessing
from alexnet_jax.data.preprocessing import Preprocessing
from alexnet_jax.networks import caffe, pth
from alexnet_jax.networks.network import Trained, network_of_arrays
from alexnet_jax.networks.one_file import read_safetensors
from alexnet_jax.options import InputError
from alexnet_jax.paper.architectures import CAFFE, CAFFE_IMAGE_SIZE, TORCHVISION, pooling_first
from alexnet_jax.paper.model import summary
from alexnet_jax.paper.table import Conv, Layers, Local, named, with_classes

# torchvision's: its images are divided by 255 before, and then normalised with these.
TORCHVISION_MEAN, TORCHVISION_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
TORCHVISION_NAMES = {
    "features.0": "conv1", "features.3": "conv2", "features.6": "conv3", "features.8": "conv4", "features.10": "conv5",
    "classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8",
}  # fmt: skip
IMAGENET = 256  # side of the images of both
# Red, green and blue of Caffe's mean image, averaged over its pixels: what examples/00-classification.ipynb subtracts.
CAFFE_MEAN = np.array([122.6789143406786, 116.66876761696767, 104.0069879317889])
_WRAPPINGS = ("module.", "_orig_mod.")  # what wrapped networks have before their names


def from_torchvision(file: str | Path, class_names: tuple[str, ...] = ()) -> Trained:
    """torchvision's `alexnet`, from a .safetensors, or a .pth, which is read without PyTorch.

    Its normalisation of the images becomes part of the first kernels and of the mean. Raises InputError.
    """
    file = Path(file)
    tensors = _without_wrapping(read_safetensors(file)[0] if file.suffix == ".safetensors" else pth.read(file))
    known = {f"{theirs}.{part}" for theirs in TORCHVISION_NAMES for part in ("weight", "bias")}
    if set(tensors) != known:
        raise InputError(f"{file}: {_differing(set(tensors), known)}, for torchvision's alexnet")
    blobs = {ours: [tensors[f"{theirs}.{part}"] for part in ("weight", "bias")] for theirs, ours in
             TORCHVISION_NAMES.items()}  # fmt: skip
    parameters = _from_other(file, blobs, TORCHVISION, 224)
    parameters["conv1/kernel"] = (parameters["conv1/kernel"] / (255 * TORCHVISION_STD)[:, None]).astype(np.float32)
    mean_image = np.broadcast_to(255 * TORCHVISION_MEAN, (IMAGENET, IMAGENET, 3))
    return _imported(file, TORCHVISION, 224, parameters, mean_image, class_names, preprocessing.TORCHVISION)


def from_caffe(file: str | Path, mean: str | Path | None, class_names: tuple[str, ...] = ()) -> Trained:
    """`bvlc_alexnet.caffemodel`, or CaffeNet's, whose layers 1 and 2 pool before they normalise; mean: Caffe's
    .binaryproto of the mean image; None: the mean value of each colour. BGR becomes RGB. Raises InputError.
    """
    file = Path(file)
    blobs, pools_first = caffe.read_network(file)
    layers = pooling_first(CAFFE) if pools_first else CAFFE
    expected = set(named(CAFFE))
    if set(blobs) != expected:
        raise InputError(f"{file}: {_differing(set(blobs), expected)}, for bvlc_alexnet")
    for name, of in blobs.items():
        if len(of) != 2:
            raise InputError(f"{file}: {name} has {len(of)} blobs, not weights and biases")
    parameters = _from_other(file, blobs, CAFFE, CAFFE_IMAGE_SIZE)
    parameters["conv1/kernel"] = parameters["conv1/kernel"][:, :, ::-1]
    uniform = np.broadcast_to(CAFFE_MEAN, (IMAGENET, IMAGENET, 3))
    mean_image = uniform if mean is None else caffe.read_mean(Path(mean))
    if mean_image.shape != (IMAGENET, IMAGENET, 3):
        raise InputError(f"{mean}: is a mean of {mean_image.shape[:2]} pixels, not of {IMAGENET} × {IMAGENET}")
    return _imported(file, layers, CAFFE_IMAGE_SIZE, parameters, mean_image, class_names, preprocessing.CAFFE)


def to_pytorch(network: Trained) -> dict[str, Float[np.ndarray, "..."]]:
    """The parameters as a PyTorch state dict: "conv1.weight" (out, in, height, width), "fc6.weight" (out, in), biases.

    Of the first dense layer the inputs are in PyTorch's order: channel, height, width. The images it takes are ours:
    0 to 255, RGB, minus the mean image. Raises InputError for a locally connected layer, which PyTorch does not have.
    """
    found: dict[str, np.ndarray] = {}
    shapes = _flattened_from(network.net.layers, network.config.crop_size)
    for name, layer in named(network.net.layers).items():
        if isinstance(layer, Local):
            raise InputError(f"{network.source}: {name}: PyTorch has no module for a locally connected layer")
        kernel, bias = (np.asarray(network.params[name][part]) for part in ("kernel", "bias"))
        if isinstance(layer, Conv):
            weight = kernel.transpose(3, 2, 0, 1)
        else:
            height, width, channels = shapes.get(name, (1, 1, len(kernel)))
            weight = kernel.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(kernel.shape[1], -1)
        found |= {f"{name}.weight": np.ascontiguousarray(weight), f"{name}.bias": bias}
    return found


def _from_other(
    file: Path, blobs: Mapping[str, list[np.ndarray]], layers: Layers, crop_size: int
) -> dict[str, np.ndarray]:
    """The parameters by our names, from weights (out, in, …) with the inputs of a dense layer in the order channel,
    height, width.
    """
    found: dict[str, np.ndarray] = {}
    shapes = _flattened_from(layers, crop_size)
    for name, layer in named(layers).items():
        if any(map(np.iscomplexobj, blobs[name])):
            raise InputError(f"{file}: {name} has complex numbers")
        with np.errstate(over="ignore"):  # what becomes infinite is refused later
            weight, bias = (np.asarray(blob, np.float32) for blob in blobs[name])
        bias = bias.reshape(-1)
        if isinstance(layer, Conv):
            if weight.ndim != 4 or (not found and weight.shape[1] != 3):  # the first one is of colours
                raise InputError(f"{file}: {name} has weights of the shape {weight.shape}, not of a convolution")
            kernel = weight.transpose(2, 3, 1, 0)
        else:
            weight = weight[0, 0] if weight.shape[:-2] == (1, 1) else weight  # of Caffe's older format
            flattened = shapes.get(name, (1, 1, *weight.shape[1:]))
            if weight.ndim != 2 or weight.shape[1] != math.prod(flattened):
                raise InputError(f"{file}: {name} has weights of the shape {weight.shape}, which do not fit")
            height, width, channels = flattened
            kernel = weight.reshape(len(weight), channels, height, width).transpose(2, 3, 1, 0).reshape(weight.T.shape)
        found |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
    return found


def _flattened_from(layers: Layers, crop_size: int) -> dict[str, tuple[int, ...]]:
    """The first dense layer, and the shape (height, width, channels) of what it flattens."""
    rows = summary(layers, crop_size)
    for before, row in itertools.pairwise(rows):
        if len(before.output_shape) == 3 and len(row.output_shape) == 1:
            return {row.name: before.output_shape}
    return {}


def _imported(
    file: Path,
    layers: Layers,
    crop_size: int,
    parameters: dict[str, np.ndarray],
    mean_image: np.ndarray,
    names: tuple[str, ...],
    rule: Preprocessing,
) -> Trained:
    outputs = len(parameters["fc8/bias"])
    names = names or tuple(f"class {number}" for number in range(outputs))
    config = Config(crop_size=crop_size)
    return network_of_arrays(file, config, 0, names, mean_image, with_classes(layers, outputs), parameters, rule)


def _without_wrapping(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the names that they had before the network was wrapped (DataParallel, torch.compile)."""
    for _ in range(8):  # nobody wraps more often, and a file may say anything
        prefix = next((of for of in _WRAPPINGS if all(name.startswith(of) for name in tensors)), "")
        tensors = {name.removeprefix(prefix): of for name, of in tensors.items()}
    return tensors


def _differing(found: set[str], expected: set[str]) -> str:
    kinds = {"is missing": expected - found, "is one too many": found - expected}
    return "; ".join(f"{', '.join(sorted(names)[:3]):.200} {what}" for what, names in kinds.items() if names)
