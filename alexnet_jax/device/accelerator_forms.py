"""Faster forms for devices that wait for their memory, GPUs and TPUs: they move fewer bytes. As in `forms`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from alexnet_jax.device.forms import form_of, pooling_by_place
from alexnet_jax.paper import layers as formulas
from alexnet_jax.paper.augment import patches
from alexnet_jax.paper.normalization import sum_of_neighbors, wide_type


@form_of(formulas.add_bias)
@jax.custom_vjp
def add_narrow_bias(x: Array, bias: Array) -> Array:
    """In the type of x, the same number, which cuDNN adds to a convolution; only the gradient is summed in float32."""
    return x + bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def _add_narrow_bias_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return add_narrow_bias(x, bias), bias


def _add_narrow_bias_backward(bias: Array, gradient: Array) -> tuple[Array, Array]:
    axes = tuple(range(gradient.ndim - bias.ndim))
    return gradient, gradient.sum(axes, dtype=wide_type(gradient)).astype(bias.dtype)


add_narrow_bias.defvjp(_add_narrow_bias_forward, _add_narrow_bias_backward)


@form_of(formulas.relu)
@jax.custom_vjp
def relu(x: Array) -> Array:
    """Keeps its output for the way back, which the next operation keeps as well, rather than its input."""
    return formulas.relu(x)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = formulas.relu(x)
    return y, y


def _relu_backward(y: Array, gradient: Array) -> tuple[Array]:
    y = lax.optimization_barrier(y)  # else XLA looks at the input again
    return (jnp.where(y > 0, gradient, 0),)


relu.defvjp(_relu_forward, _relu_backward)

max_pool_of_gpu = pooling_by_place(lambda function, *arguments: function(*arguments))


def _normalization(sums: Callable, *, twice: bool) -> Callable:
    """For devices that wait for their memory: rather than to be written there in float32, d is computed again.

    XLA does that only for what is used once or twice, and cheap; so the powers of d are written in another way.

    sums: (x, size, groups) → as `sum_of_neighbors`. twice: whether d is computed anew in each pass of the way back.
    """

    @form_of(formulas.local_response_norm)
    def local_response_norm(x: Array, *, size: int, k: float, alpha: float, beta: float, groups: int = 1) -> Array:
        return normalized(x, size, k, alpha, beta, groups)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
    def normalized(x: Array, size: int, k: float, alpha: float, beta: float, groups: int) -> Array:
        a = x.astype(wide_type(x))
        return (a * _scale(k + alpha * sums(jnp.square(a), size, groups), beta)).astype(x.dtype)

    def forward(x: Array, *parameters: Any) -> tuple[Array, Array]:
        return normalized(x, *parameters), x

    def backward(
        size: int, k: float, alpha: float, beta: float, groups: int, x: Array, gradient: Array
    ) -> tuple[Array]:
        """As in `forms`: first the summands, kept in the type of x if that is bfloat16, and then the gradient."""

        def again(x: Array) -> tuple[Array, Array, Array]:
            x = lax.optimization_barrier(x)  # else XLA would find that it has d already
            a = x.astype(wide_type(x))
            return x, a, k + alpha * sums(jnp.square(a), size, groups)

        x, a, d = again(x)
        g, small = gradient.astype(a.dtype), d * 2.0**-30  # whose power is in float32's range
        if x.dtype == jnp.bfloat16:  # to some 10⁻⁶, and several times faster
            summand = (g * a * jnp.exp(-(beta + 1) * jnp.log(small))).astype(x.dtype).astype(a.dtype)
        else:
            summand = g * a * small ** -(beta + 1)
        if twice:
            x, a, d = again(x)
        factor = 2 * alpha * beta * 2.0 ** (-30 * (beta + 1))
        return ((g * _scale(d, beta) - factor * (a * sums(summand, size, groups))).astype(x.dtype),)

    normalized.defvjp(forward, backward)
    return local_response_norm


def _scale(d: Array, beta: float) -> Array:
    """d^-β."""
    return lax.rsqrt(d) * lax.rsqrt(lax.sqrt(d)) if beta == 0.75 else d**-beta


def _sums_by_product(x: Array, size: int, groups: int) -> Array:
    """Σ over neighbours as a product with a matrix of zeros and ones, which a TPU fuses with what is around it."""
    channel = np.arange(x.shape[-1])
    group = channel // (x.shape[-1] // groups)
    near = abs(channel[:, None] - channel) <= size // 2
    return jnp.matmul(x, jnp.asarray(near & (group[:, None] == group), x.dtype), precision="highest")


local_response_norm_of_gpu = _normalization(sum_of_neighbors, twice=True)
local_response_norm_of_tpu = _normalization(_sums_by_product, twice=False)


@form_of(patches)
def patches_by_product(images: Array, corners: Array, mirrored: Array, size: int) -> Array:
    """Rows, then columns, by products with matrices of zeros and ones: exact, and faster on a TPU than one by one."""
    places = jnp.arange(size)[None]

    def ones_at(which: Array, length: int, dtype: Any) -> Array:
        return (which[:, :, None] == jnp.arange(length)[None, None]).astype(dtype)

    # bfloat16 holds each of 0 … 255; "highest" cuts a float32 into parts which it holds.
    dtype = jnp.dtype(jnp.bfloat16) if images.dtype == jnp.uint8 else images.dtype
    rows = ones_at(corners[:, :1] + places, images.shape[1], dtype)
    columns = jnp.where(mirrored[:, None], size - 1 - places, places) + corners[:, 1:]
    columns = ones_at(columns, images.shape[2], dtype)
    cut = jnp.einsum("nrh,nhwc->nrwc", rows, images.astype(dtype), precision="highest")
    return jnp.einsum("nsw,nrwc->nrsc", columns, cut, precision="highest").astype(images.dtype)
