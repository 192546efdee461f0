"""§3: the architectures as tables of layers, and the one network that walks any such table."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from alexnet_jax.augment import image_keys
from alexnet_jax.layers import conv2d, dropout, local_response_norm, max_pool, relu


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
        return (self.window, self.window, input_shape[-1] // self.groups, self.features)

    def __call__(self, x: Array, kernel: Array) -> Array:
        padding = (self.padding, self.padding) if isinstance(self.padding, int) else self.padding
        return conv2d(x, kernel, stride=self.stride, padding=padding, groups=self.groups)


@dataclasses.dataclass(frozen=True)
class Dense:
    """A fully connected layer on the flattened input (height, width, channel order), then the steps of `then`."""

    features: int
    std: float = 0.01
    bias: float = 0.0
    then: tuple[Callable, ...] = ()

    def kernel_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(input_shape[1:]), self.features)

    def __call__(self, x: Array, kernel: Array) -> Array:
        return x.reshape(len(x), -1) @ kernel


Layers = tuple[Conv | Dense, ...]

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


def with_widths(layers: Layers, features: tuple[int, ...], std: tuple[float, ...], bias: tuple[float, ...]) -> Layers:
    """The same table with other widths and another initialisation, one value a layer."""
    return tuple(
        dataclasses.replace(layer, features=f, std=s, bias=b)
        for layer, f, s, b in zip(layers, features, std, bias, strict=True)
    )


# Minutes on a CPU. Widths and deviations were chosen by measurement: a first layer of 32 takes a step a quarter less
# time than one of 48, and errs less on the built-in data set; deviations near 0.01 everywhere, as in the paper,
# leave the narrower layers' outputs too small for learning to start within minutes.
DEMO = with_widths(
    PAPER,
    features=(32, 64, 96, 96, 64, 1024, 1024, 10),
    std=(0.01, 0.025, 0.06, 0.06, 0.06, 0.02, 0.02, 0.02),
    bias=(0.0,) * 8,
)

ARCHITECTURES: dict[str, Layers] = {"paper": PAPER, "demo": DEMO}


def with_classes(layers: Layers, classes: int) -> Layers:
    """The table with `classes` outputs in its last layer."""
    return (*layers[:-1], dataclasses.replace(layers[-1], features=classes))


def named(layers: Layers) -> dict[str, Conv | Dense]:
    """The layers under the field's names: conv1 … conv5, fc6, fc7, fc8."""
    return {
        f"{'conv' if isinstance(layer, Conv) else 'fc'}{number}": layer for number, layer in enumerate(layers, start=1)
    }


class _Layer(nn.Module):
    """The parameters of one layer (`kernel`, `bias`), and its computation."""

    layer: Conv | Dense
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, key: Array | None) -> Array:
        layer = self.layer
        kernel = self.param("kernel", nn.initializers.normal(layer.std), layer.kernel_shape(x.shape), jnp.float32)
        bias = self.param("bias", nn.initializers.constant(layer.bias), (layer.features,), jnp.float32)
        x = layer(x, kernel.astype(self.dtype))
        x = x + bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        for number, step in enumerate(layer.then):
            x = step(x, _fold_in(key, number)) if _is_random(step) else step(x)
        return x


class AlexNet(nn.Module):
    """The network of a table of layers.

    `init(key, images, train=False)` gives {"params": {"conv1": {"kernel", "bias"}, …}}, in float32.
    `apply({"params": …}, images, train=…, key=…)` gives logits, float32, shape (n, classes).

    layers: the table. dtype: in which to compute.
    """

    layers: Layers = PAPER
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n height width 3"], *, train: bool, key: Key[Array, "*batch"] | None = None
    ) -> Float[Array, "n classes"]:
        """Logits of mean-subtracted images on the scale of 0-255. Training needs `key`, one or one an image."""
        if train and key is None:
            raise ValueError("AlexNet needs key=… where train=True: dropout is random")
        keys = image_keys(key, len(images)) if train and key is not None else None
        x = images.astype(self.dtype)
        for number, (name, layer) in enumerate(named(self.layers).items()):
            x = _Layer(layer, self.dtype, name=name)(x, _fold_in(keys, number))
        return x.astype(jnp.float32)


def _is_random(step: Callable) -> bool:
    return "key" in inspect.signature(step).parameters


def _fold_in(keys: Array | None, number: int) -> Array | None:
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def activations(net: AlexNet, variables: Any, images: Float[Array, "n height width 3"]) -> dict[str, Array]:
    """The output of each layer after its last step, by name, in test mode."""
    _, state = net.apply(
        variables, images, train=False, capture_intermediates=lambda module, _: isinstance(module, _Layer)
    )
    return {name: state["intermediates"][name]["__call__"][0] for name in named(net.layers)}


class LayerSummary(NamedTuple):
    """One row of `summary`. neurons: outputs of the layer before pooling, as §3.5 counts them."""

    name: str
    output_shape: tuple[int, ...]
    neurons: int
    parameters: int
    multiply_adds: int


def summary(layers: Layers, image_size: int = 224) -> list[LayerSummary]:
    """One row a layer for one image of `image_size`²: shape after the layer's last step, parameters, multiply-adds.

    Nothing is computed. Raises ValueError, naming the layer, where groups do not divide the channels or
    the image is too small.
    """
    rows = []
    shape: tuple[int, ...] = (1, image_size, image_size, 3)
    for name, layer in named(layers).items():
        groups = getattr(layer, "groups", 1)
        for what, channels in (("input channels", shape[-1]), ("features", layer.features)):
            if channels % groups:
                raise ValueError(f"{name}: {groups} groups do not divide its {channels} {what}")
        kernel = layer.kernel_shape(shape)
        out = shape = _shape(layer, shape, kernel)
        if 0 in out:
            raise ValueError(f"{name}: an image of {image_size}×{image_size} is too small for this table")
        try:
            for step in layer.then:
                shape = _shape(functools.partial(step, key=None) if _is_random(step) else step, shape)
        except (TypeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise ValueError(f"{name}: does not fit an image of {image_size}×{image_size} ({reason})") from error
        weights = math.prod(kernel)
        positions = math.prod(out[1:-1])
        rows.append(LayerSummary(name, shape[1:], positions * out[-1], weights + layer.features, weights * positions))
    return rows


def _shape(function: Callable, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    return jax.eval_shape(function, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).shape
