"""§3: the one network that walks any table of layers."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from alexnet_jax.config import Config
from alexnet_jax.paper.architectures import PAPER
from alexnet_jax.paper.augment import image_keys
from alexnet_jax.paper.table import Conv, Dense, Layers, Local, check, named, output_names, step_names


class _Layer(nn.Module):
    """The parameters of one layer (`kernel`, `bias`), and its computation."""

    layer: Conv | Local | Dense
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, keys: Array | None) -> Array:
        layer = self.layer
        kernel = self.param("kernel", nn.initializers.normal(layer.std), layer.kernel_shape(x.shape), jnp.float32)
        bias = self.param("bias", nn.initializers.constant(layer.bias), layer.bias_shape(x.shape), jnp.float32)
        x = layer.add_bias(layer(x, kernel.astype(self.dtype)), bias.astype(self.dtype))
        self.sow("intermediates", "", x)  # for `outputs`; nothing is kept where nobody asks
        for number, (name, step) in enumerate(zip(step_names("", layer), layer.then, strict=True)):
            x = step(x, _fold_in(keys, number) if step.is_random else None)
            self.sow("intermediates", name, x)
        return x


class AlexNet(nn.Module):
    """The network of a table of layers.

    `init(key, images, train=False)` gives {"params": {"conv1": {"kernel", "bias"}, …}}, in float32.
    `apply({"params": …}, images, train=…, key=…)` gives logits, shape (n, classes), float32 or wider.

    layers: the table; an impossible one raises ValueError here, which names the layer. dtype: in which to compute.
    matmul_precision: of convolutions and products in float32, as `jax.default_matmul_precision` takes it, which it is
    if None: left alone, TPUs multiply in bfloat16, and GPUs since Ampere in TF32. "highest" is float32.
    """

    layers: Layers = PAPER
    dtype: Any = jnp.float32
    matmul_precision: str | None = None

    def __post_init__(self):
        check(self.layers)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "n height width 3"], *, train: bool, key: Key[Array, "*batch"] | None = None
    ) -> Float[Array, "n classes"]:
        """Logits of mean-subtracted images on the scale of 0-255. Training needs `key`, one or one an image.

        Raises ValueError, naming the layer, where the images are too small for the table.
        """
        if train and key is None:
            raise ValueError("AlexNet needs key=… where train=True: dropout is random")
        keys = image_keys(key, len(images)) if train and key is not None else None
        x = images.astype(self.dtype)
        for number, (name, layer) in enumerate(named(self.layers).items()):
            with _naming(name, images.shape), self._precision():
                is_random = any(step.is_random for step in layer.then)
                x = _Layer(layer, self.dtype, name=name)(x, _fold_in(keys, number) if is_random else None)
        return x if x.dtype == jnp.float64 else x.astype(jnp.float32)

    def _precision(self) -> contextlib.AbstractContextManager:
        return (
            jax.default_matmul_precision(self.matmul_precision) if self.matmul_precision else contextlib.nullcontext()
        )


def configured_network(layers: Layers, config: Config) -> AlexNet:
    """The network of a table, computed as a config says."""
    matmul_precision = None if config.matmul_precision == "default" else config.matmul_precision
    return AlexNet(layers, jnp.dtype(config.precision), matmul_precision)


@contextlib.contextmanager
def _naming(name: str, shape: tuple[Any, ...]) -> Iterator[None]:
    try:
        yield
    except (OverflowError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{name}: {error}, where an image has {shape[1]}×{shape[2]}") from error


def _fold_in(keys: Array | None, number: int) -> Array | None:
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def outputs(
    net: AlexNet, variables: Any, images: Float[Array, "n height width 3"], names: Sequence[str]
) -> dict[str, Array]:
    """The outputs of these names, in test mode, in one pass: "conv1", "conv1:relu", "conv1:lrn", … "fc8".

    A layer's own name is its output with biases, before its steps. Of a convolution (n, height, width, kernels), of a
    dense layer (n, features). Raises ValueError for a name that there is not.
    """
    known = output_names(net.layers)
    for name in names:
        if name not in known:
            raise ValueError(f"there is no output {name}; there are {', '.join(known)}")
    _, state = net.apply(variables, images, train=False, mutable=["intermediates"])
    layers = {name: name.partition(":") for name in names}
    return {name: state["intermediates"][layer][colon + step][0] for name, (layer, colon, step) in layers.items()}


class LayerSummary(NamedTuple):
    """One row of `summary`. neurons: outputs of the layer before pooling, as §3.5 counts them."""

    name: str
    output_shape: tuple[int, ...]
    neurons: int
    parameters: int
    multiply_adds: int


def summary(layers: Layers, image_size: int = 224) -> list[LayerSummary]:
    """One row a layer for one image of `image_size`²: shape after the layer's last step, parameters, multiply-adds.

    Nothing of the network is computed. Raises ValueError, naming the layer, where the table is impossible or the image
    too small.
    """
    check(layers)
    rows = []
    image: tuple[int, ...] = (1, image_size, image_size, 3)
    shape = image
    for name, layer in named(layers).items():
        with _naming(name, image):
            kernel, bias = layer.kernel_shape(shape), layer.bias_shape(shape)
            out = shape = _shape(layer, shape, kernel)
            for step in layer.then:
                shape = _shape(step, shape)
        weights, positions = math.prod(kernel), math.prod(out[1:-1])
        multiply_adds = weights * (positions if isinstance(layer, Conv) else 1)  # whose weights are used at each place
        rows.append(LayerSummary(name, shape[1:], positions * out[-1], weights + math.prod(bias), multiply_adds))
    return rows


def _shape(function: Callable, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    return jax.eval_shape(function, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).shape
