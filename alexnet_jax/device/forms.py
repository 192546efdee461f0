"""Faster forms of the network's operations for CPUs; `tuned` puts them in their places.

Each computes what its formula in `paper` does, forward and backward, in reverse mode only. docs/speed.md says what each
gains.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alexnet_jax.device import onednn
from alexnet_jax.device.xla import on_its_own
from alexnet_jax.paper import layers as formulas
from alexnet_jax.paper.normalization import power, sum_of_neighbors, wide_type

Form = TypeVar("Form", bound=Callable)


def form_of(formula: Callable) -> Callable[[Form], Form]:
    """Marks a faster form: written down, it has the formula's name."""

    def mark(form: Form) -> Form:
        form.formula = formula  # type: ignore[attr-defined]
        return form

    return mark


@form_of(formulas.conv2d)
def conv2d(x: Array, kernel: Array, *, stride: int = 1, padding: tuple[int, int] = (0, 0), groups: int = 1) -> Array:
    """One convolution a group: XLA's CPU backend runs `feature_group_count=2` three times slower."""
    formulas.check_fit(x, kernel, padding, groups)
    outputs = [
        formulas.conv2d(x_group, kernel_group, stride=stride, padding=padding)
        for x_group, kernel_group in zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    ]
    return jnp.concatenate(outputs, axis=-1)


@form_of(formulas.conv2d)
def conv2d_of_onednn(
    x: Array, kernel: Array, *, stride: int = 1, padding: tuple[int, int] = (0, 0), groups: int = 1
) -> Array:
    """For float32; what is of another type is for `conv2d`."""
    formulas.check_fit(x, kernel, padding, groups)  # oneDNN would read beyond the end
    if not (x.dtype == kernel.dtype == jnp.float32 and x.size):
        return conv2d(x, kernel, stride=stride, padding=padding, groups=groups)
    if max(padding) >= len(kernel):  # as in the formula: of such a padding XLA's gradients are wrong
        x, padding = jnp.pad(x, [(0, 0), padding, padding, (0, 0)]), (0, 0)
    return _with_onednn(x, kernel, stride, padding, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _with_onednn(x: Array, kernel: Array, stride: int, padding: tuple[int, int], groups: int) -> Array:
    return onednn.convolution(x, kernel, stride=stride, padding=padding, groups=groups)


def _with_onednn_forward(x: Array, kernel: Array, *options: Any) -> tuple[Array, tuple]:
    return _with_onednn(x, kernel, *options), (x, kernel)


def _with_onednn_backward(
    stride: int, padding: tuple[int, int], groups: int, saved: tuple, gradient: Array
) -> tuple[Array, Array]:
    """At stride 1 the input's gradient is itself a convolution: of the output's gradient, padded to the full overlap,
    with the kernel turned by 180° and its channels and features exchanged. For the kernel's, oneDNN has a function that
    XLA cannot call.
    """
    x, kernel = saved
    of = functools.partial(conv2d, stride=stride, padding=padding, groups=groups)
    of_kernel = jax.linear_transpose(lambda kernel: of(x, kernel), kernel)(gradient)[0]
    if stride > 1:
        of_x = jax.linear_transpose(lambda x: of(x, kernel), x)(gradient)[0]
    else:
        turned = [part[::-1, ::-1].swapaxes(2, 3) for part in jnp.split(kernel, groups, axis=-1)]
        low, high = (len(kernel) - 1 - pad for pad in padding)
        of_x = conv2d_of_onednn(gradient, jnp.concatenate(turned, axis=-1), padding=(low, high), groups=groups)
    return of_x, of_kernel


_with_onednn.defvjp(_with_onednn_forward, _with_onednn_backward)


@form_of(formulas.dense)
@jax.custom_vjp
def dense(x: Array, kernel: Array) -> Array:
    """x · kernel."""
    return x @ kernel


def _dense_forward(x: Array, kernel: Array) -> tuple[Array, tuple]:
    return x @ kernel, (x, kernel)


def _dense_backward(saved: tuple, gradient: Array) -> tuple[Array, Array]:
    """(gradient · kernelᵀ, xᵀ · gradient).

    The first as (kernel · gradientᵀ)ᵀ, since Eigen multiplies by a transposed kernel several times slower from
    the right; and before the second, since XLA would copy a kernel which the update might overwrite too early.
    """
    x, kernel = saved
    of_x, gradient = on_its_own(lambda of_x, gradient: (of_x.T, gradient), kernel @ gradient.T, gradient)
    return of_x, x.T @ gradient


dense.defvjp(_dense_forward, _dense_backward)


@form_of(formulas.dense)
def dense_of_onednn(x: Array, kernel: Array) -> Array:
    """For float32; what is of another type is for `dense`."""
    if not (x.dtype == kernel.dtype == jnp.float32 and x.size):
        return dense(x, kernel)
    return _dense_of_onednn(x, kernel)


@jax.custom_vjp
def _dense_of_onednn(x: Array, kernel: Array) -> Array:
    return onednn.product(x, kernel)


def _dense_of_onednn_forward(x: Array, kernel: Array) -> tuple[Array, tuple]:
    return onednn.product(x, kernel), (x, kernel)


def _dense_of_onednn_backward(saved: tuple, gradient: Array) -> tuple[Array, Array]:
    """(gradient · kernelᵀ, xᵀ · gradient), in this order as in `dense`; the second is Eigen's, which is faster."""
    x, kernel = saved
    of_x, gradient = on_its_own(
        lambda of_x, gradient: (of_x, gradient), onednn.product_with_transposed(gradient, kernel), gradient
    )
    return of_x, x.T @ gradient


_dense_of_onednn.defvjp(_dense_of_onednn_forward, _dense_of_onednn_backward)


@form_of(formulas.add_bias)
@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """x + bias."""
    return formulas.add_bias(x, bias)


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return formulas.add_bias(x, bias), bias


def _add_bias_backward(bias: Array, gradient: Array) -> tuple[Array, Array]:
    """(gradient, its sum over the batch, and over the places if they share the bias).

    Over the batch by a product, which is many times faster than XLA's sums on CPU.
    On its own, since else the gradient would be computed twice, for this sum and for the layer's kernel.
    """

    def with_sum(gradient: Array) -> tuple[Array, Array]:
        ones, rows = jnp.ones(len(gradient), gradient.dtype), gradient.reshape(len(gradient), -1)
        over_batch = jnp.matmul(ones, rows, preferred_element_type=wide_type(gradient))
        over_places = over_batch.reshape(-1, *bias.shape).sum(0)
        return gradient, over_places.astype(gradient.dtype)

    return on_its_own(with_sum, gradient)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def pooling_by_place(apart: Callable) -> Callable:
    """Remembers, in a byte, which of the window's places was the largest, and sends the gradient there.

    apart: `apart(function, *arguments)` computes each of the two passes.
    """

    @form_of(formulas.max_pool)
    def max_pool(x: Array, *, window: int, stride: int, ceil_mode: bool = False) -> Array:
        padding = formulas.overhang(x, window, stride, ceil_mode)
        if any(map(any, padding)):
            x = jnp.pad(x, padding, constant_values=-jnp.inf)
        return pooled(x, window, stride, x.shape)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
    def pooled(x: Array, window: int, stride: int, shape: tuple[int, ...]) -> Array:
        return apart(lambda x: functools.reduce(jnp.maximum, _places(x, window, stride)), x)

    def forward(x: Array, window: int, stride: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
        def largest_and_its_place(x: Array) -> tuple[Array, Array]:
            first, *others = _places(x, window, stride)
            largest, index = first, jnp.zeros(first.shape, jnp.int8 if window <= 11 else jnp.int32)
            for number, place in enumerate(others, start=1):
                index = jnp.where(place > largest, jnp.asarray(number, index.dtype), index)
                largest = jnp.maximum(place, largest)
            return largest, index

        return apart(largest_and_its_place, x)

    def backward(window: int, stride: int, shape: tuple[int, ...], index: Array, gradient: Array) -> tuple[Array]:
        def back_to_its_place(gradient: Array, index: Array) -> Array:
            parts = [jnp.where(index == number, gradient, 0) for number in range(window**2)]
            x = jax.ShapeDtypeStruct(shape, gradient.dtype)
            return jax.linear_transpose(lambda x: _places(x, window, stride), x)(parts)[0]

        return (apart(back_to_its_place, gradient, index),)

    pooled.defvjp(forward, backward)
    return max_pool


def _places(x: Array, window: int, stride: int) -> list[Array]:
    """What lies at each of the window's places, row by row: window² arrays of the output's shape."""
    height, width = (stride * ((length - window) // stride) + 1 for length in x.shape[1:3])
    return [
        x[:, row : row + height : stride, column : column + width : stride]
        for row in range(window)
        for column in range(window)
    ]


max_pool = pooling_by_place(on_its_own)


@form_of(formulas.local_response_norm)
def local_response_norm(x: Array, *, size: int, k: float, alpha: float, beta: float, groups: int = 1) -> Array:
    """Keeps only its input for the way back."""
    return _normalize(x, size, k, alpha, beta, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _normalize(x: Array, size: int, k: float, alpha: float, beta: float, groups: int) -> Array:
    return formulas.local_response_norm(x, size=size, k=k, alpha=alpha, beta=beta, groups=groups)


def _normalize_forward(x: Array, *parameters: Any) -> tuple[Array, Array]:
    return _normalize(x, *parameters), x


def _normalize_backward(
    size: int, k: float, alpha: float, beta: float, groups: int, x: Array, gradient: Array
) -> tuple[Array]:
    """With d = k + α Σ a² and b = a d^-β:  ∂L/∂a_i = g_i d_i^-β - 2αβ a_i Σ_{|j-i| ≤ size // 2} g_j a_j d_j^(-β-1)."""
    a, g = (of.astype(wide_type(of)) for of in (x, gradient))
    d = k + alpha * sum_of_neighbors(jnp.square(a), size, groups)
    scale = power(d, -beta)
    of_a = g * scale - 2 * alpha * beta * a * sum_of_neighbors(g * a * scale / d, size, groups)
    return (of_a.astype(x.dtype),)


_normalize.defvjp(_normalize_forward, _normalize_backward)
