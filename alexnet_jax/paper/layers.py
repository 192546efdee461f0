"""§3: the network's operations, as plain functions on NHWC arrays.

All are differentiable (in reverse mode only), jit-able, and keep the type of their input.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Float, Key

from alexnet_jax.device.convolution import conv2d as conv2d
from alexnet_jax.device.xla import on_its_own
from alexnet_jax.paper.augment import image_keys
from alexnet_jax.paper.normalization import local_response_norm as local_response_norm
from alexnet_jax.paper.normalization import spatial_response_norm as spatial_response_norm
from alexnet_jax.paper.normalization import wide_type

relu = jax.nn.relu  # §3.1


def locally_connected(
    x: Float[Array, "n height width channels"],
    kernel: Float[Array, "out_height out_width window window channels features"],
    *,
    padding: int = 0,
) -> Float[Array, "n out_height out_width features"]:
    """As a convolution of stride 1, with weights of its own at each place: the "local" layers of the 2012 code.

    padding: zeros on every side. The kernel's first two axes must be the places: height + 2 · padding - window + 1,
    and as many for the width.
    """
    x = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    rows, columns, window = kernel.shape[:3]
    patches = [x[:, row : row + rows, column : column + columns] for row in range(window) for column in range(window)]
    weights = kernel.reshape(rows, columns, window**2, *kernel.shape[-2:])
    return jnp.einsum("nhwpc,hwpcf->nhwf", jnp.stack(patches, axis=3), weights)


@jax.custom_vjp
def dense(x: Float[Array, "n inputs"], kernel: Float[Array, "inputs features"]) -> Float[Array, "n features"]:
    """x · kernel."""
    return x @ kernel


def _dense_forward(x: Array, kernel: Array) -> tuple[Array, tuple]:
    return x @ kernel, (x, kernel)


def _dense_backward(saved: tuple, gradient: Array) -> tuple[Array, Array]:
    """(gradient · kernelᵀ, xᵀ · gradient).

    On CPU the first as (kernel · gradientᵀ)ᵀ, since Eigen multiplies by a transposed kernel several times slower from
    the right; and before the second, since XLA would copy a kernel which the update might overwrite too early.
    """
    x, kernel = saved
    of_x, gradient = on_its_own(lambda of_x, gradient: (of_x.T, gradient), kernel @ gradient.T, gradient)
    return of_x, x.T @ gradient


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def add_bias(x: Float[Array, "n *places features"], bias: Float[Array, "..."]) -> Float[Array, "n *places features"]:
    """x + bias. A bias of shape (features,) is the same at every place; one of (*places, features) is not."""
    return x + bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return add_bias(x, bias), bias


def _add_bias_backward(bias: Array, gradient: Array) -> tuple[Array, Array]:
    """(gradient, its sum over the batch, and over the places if they share the bias).

    Over the batch by a product, which is many times faster than XLA's sums on CPU.
    On its own, since else the gradient would be computed twice, for this sum and for the layer's kernel.
    """

    wide = wide_type(gradient)

    def with_sum(gradient: Array) -> tuple[Array, Array]:
        over_batch = lax.platform_dependent(
            gradient.reshape(len(gradient), -1),
            cpu=lambda g: jnp.matmul(jnp.ones(len(g), g.dtype), g, preferred_element_type=wide),
            default=lambda g: g.sum(0, dtype=wide),
        )
        over_places = over_batch.reshape(-1, *bias.shape).sum(0)
        return gradient, over_places.astype(gradient.dtype)

    return on_its_own(with_sum, gradient)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def max_pool(
    x: Float[Array, "n height width channels"], *, window: int, stride: int, ceil_mode: bool = False
) -> Float[Array, "n out_height out_width channels"]:
    """Max-pooling over `window` × `window` squares `stride` apart (§3.4: overlapping where stride < window).

    Args:
      ceil_mode: whether a last window that hangs over the edge counts, clipped, as in the 2012 code. In the
        paper's own network none does.

    Raises ValueError where not one window fits.
    """
    x = _with_edge(x, window, stride, -jnp.inf if ceil_mode else None)
    return _max_pool(x, window, stride, x.shape)


def average_pool(
    x: Float[Array, "n height width channels"], *, window: int, stride: int
) -> Float[Array, "n out_height out_width channels"]:
    """The mean over `window` × `window` squares `stride` apart; of a last one that hangs over the edge, of what lies
    inside, as in the 2012 code.

    Raises ValueError where not one window fits.
    """

    def sums(of: Array) -> Array:
        return functools.reduce(jnp.add, _places(_with_edge(of, window, stride, 0), window, stride))

    inside = sums(jnp.ones((1, *x.shape[1:3], 1), wide_type(x)))
    return (sums(x.astype(inside.dtype)) / inside).astype(x.dtype)


def _with_edge(x: Array, window: int, stride: int, value: float | None) -> Array:
    """Images with `value`, if there is one, at the bottom and right, so that the last window that begins inside is
    whole. Raises ValueError where not one window fits.
    """
    if min(x.shape[1:3]) < window:
        raise ValueError(f"{x.shape[1]}×{x.shape[2]} is smaller than a pooling window of {window}")
    if value is None:
        return x
    overhangs = [-(length - window) % stride for length in x.shape[1:3]]
    fill = [overhang if overhang < window else 0 for overhang in overhangs]
    return jnp.pad(x, [(0, 0), (0, fill[0]), (0, fill[1]), (0, 0)], constant_values=value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, window: int, stride: int, shape: tuple[int, ...]) -> Array:
    return on_its_own(lambda x: functools.reduce(jnp.maximum, _places(x, window, stride)), x)


def _max_pool_forward(x: Array, window: int, stride: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    def largest_and_its_place(x: Array) -> tuple[Array, Array]:
        first, *others = _places(x, window, stride)
        largest, index = first, jnp.zeros(first.shape, jnp.int8 if window <= 11 else jnp.int32)
        for number, place in enumerate(others, start=1):
            index = jnp.where(place > largest, jnp.asarray(number, index.dtype), index)
            largest = jnp.maximum(place, largest)
        return largest, index

    return on_its_own(largest_and_its_place, x)


def _max_pool_backward(window: int, stride: int, shape: tuple[int, ...], index: Array, gradient: Array) -> tuple[Array]:
    def back_to_its_place(gradient: Array, index: Array) -> Array:
        parts = [jnp.where(index == number, gradient, 0) for number in range(window**2)]
        x = jax.ShapeDtypeStruct(shape, gradient.dtype)
        return jax.linear_transpose(lambda x: _places(x, window, stride), x)(parts)[0]

    return (on_its_own(back_to_its_place, gradient, index),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _places(x: Array, window: int, stride: int) -> list[Array]:
    """What lies at each of the window's places, row by row: window² arrays of the output's shape."""
    height, width = (stride * ((length - window) // stride) + 1 for length in x.shape[1:3])
    return [
        x[:, row : row + height : stride, column : column + width : stride]
        for row in range(window)
        for column in range(window)
    ]


def dropout(
    x: Float[Array, "n *features"], key: Key[Array, "*batch"] | None, *, rate: float = 0.5, inverted: bool = False
) -> Float[Array, "n *features"]:
    """Dropout as in 2012 (§4.2): zeros with probability `rate` in training, *not* rescaled; x · (1 - rate) at test.

    Args:
      key: one key, or one an image (see `augment`); None at test time.
      inverted: as in Caffe and PyTorch: what is left in training is divided by 1 - rate, and x is kept at test.
    """
    if key is None:
        return x if inverted else x * (1 - rate)
    keep = jax.vmap(lambda key: random.bernoulli(key, 1 - rate, x.shape[1:]))(image_keys(key, len(x)))
    return jnp.where(keep, x / (1 - rate) if inverted else x, 0)
