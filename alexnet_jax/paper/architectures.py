"""§3: the architectures, as tables of layers."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Array

from alexnet_jax.paper.layers import (
    conv2d,
    dense,
    dropout,
    local_response_norm,
    locally_connected,
    max_pool,
    relu,
    spatial_response_norm,
)


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolutional layer: `features` kernels of `window` × `window`, then the steps of `then` in order.

    padding: zeros on both sides, or (top and left, bottom and right). std: of the initial weights, N(0, std²).
    bias: initial value of every bias. groups: as in `layers.conv2d`.
    """

    features: int
    window: int
    stride: int = 1
    padding: int | tuple[int, int] = 0
    groups: int = 1
    std: float = 0.01
    bias: float = 0.0
    then: tuple[Callable, ...] = ()

    def kernel_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(window, window, input channels / groups, features), for an input (batch, height, width, channels)."""
        return (self.window, self.window, input_shape[-1] // self.groups, self.features)

    def bias_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(features,)."""
        return (self.features,)

    def __call__(self, x: Array, kernel: Array) -> Array:
        """The layer without its biases and the steps of `then`."""
        padding = (self.padding, self.padding) if isinstance(self.padding, int) else self.padding
        return conv2d(x, kernel, stride=self.stride, padding=padding, groups=self.groups)


@dataclasses.dataclass(frozen=True)
class Local:
    """A locally connected layer: as `Conv`, but each place has weights and biases of its own. Not in the paper's
    network; in those of 2012 for CIFAR-10.
    """

    features: int
    window: int
    padding: int = 0
    std: float = 0.01
    bias: float = 0.0
    then: tuple[Callable, ...] = ()

    def kernel_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(height, width, window, window, input channels, features), for an input (batch, height, width, channels).

        Raises ValueError where the window does not fit.
        """
        places = [length + 2 * self.padding - self.window + 1 for length in input_shape[1:3]]
        if min(places) < 1:
            raise ValueError(f"its window of {self.window} does not fit")
        return (*places, self.window, self.window, input_shape[-1], self.features)

    def bias_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(height, width, features)."""
        return (*self.kernel_shape(input_shape)[:2], self.features)

    def __call__(self, x: Array, kernel: Array) -> Array:
        """The layer without its biases and the steps of `then`."""
        return locally_connected(x, kernel, padding=self.padding)


@dataclasses.dataclass(frozen=True)
class Dense:
    """A fully connected layer on the flattened input (height, width, channel order), then the steps of `then`."""

    features: int
    std: float = 0.01
    bias: float = 0.0
    then: tuple[Callable, ...] = ()

    def kernel_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(height × width × channels, features), for an input (batch, height, width, channels) or (batch, channels)."""
        return (math.prod(input_shape[1:]), self.features)

    def bias_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(features,)."""
        return (self.features,)

    def __call__(self, x: Array, kernel: Array) -> Array:
        """The layer without its biases and the steps of `then`."""
        return dense(x.reshape(x.shape[0], -1), kernel)  # not len: the number of images may be a symbol


Layers = tuple[Conv | Local | Dense, ...]


def named(layers: Layers) -> dict[str, Conv | Local | Dense]:
    """The layers under the field's names: conv1 … conv5, fc6, fc7, fc8; and local3, where one is locally connected."""
    kinds = {Conv: "conv", Local: "local", Dense: "fc"}
    return {f"{kinds[type(layer)]}{number}": layer for number, layer in enumerate(layers, start=1)}


def check(layers: Layers) -> None:
    """Raises ValueError, naming the layer, where a table cannot be that of a network, whatever the image."""
    channels: int | None = 3  # None once a dense layer has flattened them
    for name, layer in named(layers).items():
        for field in ("features", "window", "stride", "groups"):
            if getattr(layer, field, 1) < 1:
                raise ValueError(f"{name}: {field} is {getattr(layer, field)}; it must be at least 1")
        if not isinstance(layer, Dense) and channels is None:
            raise ValueError(f"{name}: it cannot follow a dense layer, which has no places")
        if isinstance(layer, Conv) and channels is not None:
            for what, number in (("input channels", channels), ("features", layer.features)):
                if number % layer.groups:
                    raise ValueError(f"{name}: {layer.groups} groups do not divide its {number} {what}")
        channels = None if isinstance(layer, Dense) else layer.features


lrn = functools.partial(local_response_norm, size=5, k=2.0, alpha=1e-4, beta=0.75, groups=2)
pool = functools.partial(max_pool, window=3, stride=2)

# §3.5, Figure 2. 224 is read with three rows and columns of zeros at the bottom and right: 55 × 55, as in 2012.
PAPER: Layers = (
    Conv(96, 11, stride=4, padding=(0, 3), then=(relu, lrn, pool)),
    Conv(256, 5, padding=2, groups=2, bias=1.0, then=(relu, lrn, pool)),
    Conv(384, 3, padding=1, then=(relu,)),
    Conv(384, 3, padding=1, groups=2, bias=1.0, then=(relu,)),
    Conv(256, 3, padding=1, groups=2, bias=1.0, then=(relu, pool)),
    Dense(4096, bias=1.0, then=(relu, dropout)),
    Dense(4096, bias=1.0, then=(relu, dropout)),
    Dense(1000),
)


def with_layers(layers: Layers, **changes: Mapping[str, Any]) -> Layers:
    """The table with other fields in the named layers: `with_layers(PAPER, conv3={"std": 0.03})`."""
    table = named(layers)
    for name, fields in changes.items():
        if name not in table:
            raise ValueError(f"{name}: no layer of this table; there are {', '.join(table)}")
        table[name] = dataclasses.replace(table[name], **fields)
    return tuple(table.values())


def with_column(layers: Layers, **columns: Sequence[Any]) -> Layers:
    """The table with other values of a field, one a layer: `with_column(PAPER, std=(0.01, 0.02, …))`."""
    for field, values in columns.items():
        layers = tuple(
            dataclasses.replace(layer, **{field: value}) for layer, value in zip(layers, values, strict=True)
        )
    return layers


def with_steps(layers: Layers, steps: Mapping[Callable, Callable | None]) -> Layers:
    """The table with other steps after its layers, or (None) without: `with_steps(PAPER, {relu: jnp.tanh})`.

    Raises ValueError for a step that no layer has.
    """
    missing = set(steps) - {step for layer in layers for step in layer.then}
    if missing:
        raise ValueError(f"no layer of this table is followed by {missing.pop()}")
    thens = [tuple(steps.get(step, step) for step in layer.then) for layer in layers]
    return with_column(layers, then=[tuple(step for step in then if step) for then in thens])


def with_classes(layers: Layers, classes: int) -> Layers:
    """The table with `classes` outputs in its last layer."""
    return (*layers[:-1], dataclasses.replace(layers[-1], features=classes))


# What the code of 2012 ran for the paper's results (its net 145). Its α is divided by n. Normalisation comes before the
# ReLU of layer 1, and spatial normalisation after that of layer 2; the weights of layers 3 to 5 start larger.
lrn_2012 = functools.partial(lrn, alpha=1e-4 / 5)
srn_2012 = functools.partial(spatial_response_norm, size=5, alpha=1e-3 / 5**2, beta=0.75)
ORIGINAL = with_layers(
    PAPER,
    conv1={"then": (lrn_2012, pool, relu)},
    conv2={"then": (relu, lrn_2012, srn_2012, pool)},
    conv3={"std": 0.03},
    conv4={"std": 0.03},
    conv5={"std": 0.03, "then": (pool, relu)},
)


def one_column(layers: Layers) -> Layers:
    """The table as one GPU would hold it: no groups, neither of kernels nor in the normalisation."""
    steps = {step for layer in layers for step in layer.then}
    norms = {step: functools.partial(step, groups=1) for step in steps if "groups" in getattr(step, "keywords", {})}
    convolutions = [name for name, layer in named(layers).items() if isinstance(layer, Conv)]
    return with_layers(with_steps(layers, norms), **{name: {"groups": 1} for name in convolutions})


def one_gpu(layers: Layers) -> Layers:
    """§3.2's network of one GPU (net 145-half): half the kernels, except in conv5 and the dense layers."""
    halves = {name: {"features": named(layers)[name].features // 2} for name in ("conv1", "conv2", "conv3", "conv4")}
    return with_layers(one_column(layers), **halves)


def no_normalization(layers: Layers) -> Layers:
    """§3.3's network without response normalisation (net 148; there the spatial one went as well)."""
    steps = {step for layer in layers for step in layer.then}
    norms = (local_response_norm, spatial_response_norm)
    return with_steps(layers, {step: None for step in steps if getattr(step, "func", step) in norms})


def non_overlapping_pooling(layers: Layers) -> Layers:
    """§3.4's network with pooling over 2 × 2 (net 147).

    conv2 and conv5 are padded by one less, so that the inputs of the other layers keep their size.
    """
    layers = with_steps(layers, {pool: functools.partial(max_pool, window=2, stride=2, ceil_mode=True)})
    return with_layers(layers, conv2={"padding": 1}, conv5={"padding": 0})


def six_conv(layers: Layers) -> Layers:
    """§6's network with a sixth convolution over the last pooling (net 146), for pre-training."""
    last = layers[4]
    sixth = Conv(last.features, 3, padding=1, std=last.std, bias=last.bias, then=(relu,))
    return (*layers[:5], sixth, *layers[5:])


# BVLC AlexNet, as Caffe publishes it: images of 227, normalisation across both GPUs' halves, k = 1, α divided by n.
inverted_dropout = functools.partial(dropout, inverted=True)
CAFFE = with_column(
    with_layers(
        with_steps(
            PAPER,
            {lrn: functools.partial(lrn, k=1.0, alpha=1e-4 / 5, groups=1), dropout: inverted_dropout},
        ),
        conv1={"padding": 0},
    ),
    std=(0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01),
    bias=(0.0, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0),
)

# torchvision's `alexnet`, after Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks".
# The deviations are those of PyTorch's initialisation, 1 / √(3 · inputs of a neuron); there the weights are uniform,
# and the biases drawn as well.
TORCHVISION: Layers = with_column(
    (
        Conv(64, 11, stride=4, padding=2, then=(relu, pool)),
        Conv(192, 5, padding=2, then=(relu, pool)),
        Conv(384, 3, padding=1, then=(relu,)),
        Conv(256, 3, padding=1, then=(relu,)),
        Conv(256, 3, padding=1, then=(relu, pool, inverted_dropout)),
        Dense(4096, then=(relu, inverted_dropout)),
        Dense(4096, then=(relu,)),
        Dense(1000),
    ),
    std=[(3 * inputs) ** -0.5 for inputs in (363, 1600, 1728, 3456, 2304, 9216, 4096, 4096)],
)

# Minutes on a CPU. Widths and deviations were chosen by measurement: a first layer of 32 takes a step a quarter less
# time than one of 48, and errs less on the built-in data set; deviations near 0.01 everywhere, as in the paper,
# leave the narrower layers' outputs too small for learning to start within minutes.
DEMO = with_column(
    PAPER,
    features=(32, 64, 96, 96, 64, 1024, 1024, 10),
    std=(0.01, 0.025, 0.06, 0.06, 0.06, 0.02, 0.02, 0.02),
    bias=(0.0,) * 8,
)

# Sources and recorded results of each: docs/which_alexnet.md.
ARCHITECTURES: dict[str, Layers] = {
    "paper": PAPER,
    "original": ORIGINAL,
    "one_gpu": one_gpu(PAPER),
    "no_normalization": no_normalization(PAPER),
    "non_overlapping_pooling": non_overlapping_pooling(PAPER),
    "six_conv": six_conv(PAPER),
    "caffe": CAFFE,
    "torchvision": TORCHVISION,
    "demo": DEMO,
}


def image_size(architecture: str) -> int:
    """Side in pixels of the images that an architecture was made for."""
    return 227 if architecture == "caffe" else 224
