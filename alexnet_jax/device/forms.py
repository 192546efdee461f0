"""Faster forms of the network's operations, for CPUs, GPUs and TPUs; `tuned` chooses among them.

Each computes what its formula in `paper` does, forward and backward, in reverse mode only. docs/speed.md says what each
gains.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from alexnet_jax.device import onednn
from alexnet_jax.device.xla import on_its_own
from alexnet_jax.paper import layers as formulas
from alexnet_jax.paper.augment import patches
from alexnet_jax.paper.normalization import power, sum_of_neighbors, wide_type


def form_of(formula: Callable) -> Callable[[Callable], Callable]:
    """Marks a faster form: written down, it has the formula's name."""

    def mark(form: Callable) -> Callable:
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


@jax.custom_vjp
def _dense(x: Array, kernel: Array) -> Array:
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


_dense.defvjp(_dense_forward, _dense_backward)


@form_of(formulas.dense)
def dense(x: Array, kernel: Array) -> Array:
    """x · kernel."""
    return _dense(x, kernel)


@jax.custom_vjp
def _add_bias(x: Array, bias: Array) -> Array:
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


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@form_of(formulas.add_bias)
def add_bias(x: Array, bias: Array) -> Array:
    """x + bias."""
    return _add_bias(x, bias)


@form_of(formulas.add_bias)
def add_narrow_bias(x: Array, bias: Array) -> Array:
    """In the type of x, the same number, which cuDNN adds to a convolution; only the gradient is summed in float32."""
    return _add_narrow(x, bias)


@jax.custom_vjp
def _add_narrow(x: Array, bias: Array) -> Array:
    return x + bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def _add_narrow_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return _add_narrow(x, bias), bias


def _add_narrow_backward(bias: Array, gradient: Array) -> tuple[Array, Array]:
    axes = tuple(range(gradient.ndim - bias.ndim))
    return gradient, gradient.sum(axes, dtype=wide_type(gradient)).astype(bias.dtype)


_add_narrow.defvjp(_add_narrow_forward, _add_narrow_backward)


@form_of(formulas.relu)
def relu(x: Array) -> Array:
    """Keeps its output for the way back, which the next operation keeps as well, rather than its input."""
    return _relu(x)


@jax.custom_vjp
def _relu(x: Array) -> Array:
    return formulas.relu(x)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = formulas.relu(x)
    return y, y


def _relu_backward(y: Array, gradient: Array) -> tuple[Array]:
    y = lax.optimization_barrier(y)  # else XLA looks at the input again
    return (jnp.where(y > 0, gradient, 0),)


_relu.defvjp(_relu_forward, _relu_backward)


def _max_pool(apart: Callable) -> Callable:
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


max_pool = _max_pool(on_its_own)
max_pool_of_gpu = _max_pool(lambda function, *arguments: function(*arguments))


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
        """As `_normalize_backward`: first the summands, which are kept in the type of x if that is bfloat16; and then
        the gradient.
        """

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


local_response_norm_of_gpu = _normalization(sum_of_neighbors, twice=True)
local_response_norm_of_tpu = _normalization(_sums_by_product, twice=False)
