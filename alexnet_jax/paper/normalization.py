"""§3.3: local response normalisation, across channels as in the paper, and across places as in the 2012 code."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def local_response_norm(
    x: Float[Array, "*batch channels"], *, size: int, k: float, alpha: float, beta: float, groups: int = 1
) -> Float[Array, "*batch channels"]:
    """Local response normalisation, §3.3: b_i = a_i / (k + α Σ_{|j - i| ≤ size // 2} a_j²)^β.

    The sum runs over neighbouring channels of the same group (GPU), clipped at the group's ends.

    Args:
      size: how many channels a sum spans, the paper's n; odd.
      alpha: multiplies the plain sum of squares, as in the paper. (Caffe, PyTorch and the 2012 code divide
        their α by `size` first.)
    """
    return _normalize_by_channels(x, size, k, alpha, beta, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _normalize_by_channels(x: Array, size: int, k: float, alpha: float, beta: float, groups: int) -> Array:
    wide = _wide(x)
    d = k + alpha * _sum_of_neighbors(jnp.square(wide), size, groups)
    return (wide * _power(d, -beta)).astype(x.dtype)


def _normalize_forward(x: Array, *parameters: Any) -> tuple[Array, Array]:
    return _normalize_by_channels(x, *parameters), x


def _normalize_backward(
    size: int, k: float, alpha: float, beta: float, groups: int, x: Array, gradient: Array
) -> tuple[Array]:
    """With d = k + α Σ a² and b = a d^-β:  ∂L/∂a_i = g_i d_i^-β - 2αβ a_i Σ_{|j-i| ≤ size // 2} g_j a_j d_j^(-β-1)."""
    a, g = _wide(x), _wide(gradient)
    d = k + alpha * _sum_of_neighbors(jnp.square(a), size, groups)
    scale = _power(d, -beta)
    of_a = g * scale - 2 * alpha * beta * a * _sum_of_neighbors(g * a * scale / d, size, groups)
    return (of_a.astype(x.dtype),)


_normalize_by_channels.defvjp(_normalize_forward, _normalize_backward)


def _sum_of_neighbors(x: Array, size: int, groups: int) -> Array:
    """Of each channel: the sum over the `size` channels around it, of its own group."""
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    window = (1,) * (grouped.ndim - 1) + (size,)
    padding = [(0, 0)] * (grouped.ndim - 1) + [(size // 2, size // 2)]
    return lax.reduce_window(grouped, 0.0, lax.add, window, (1,) * grouped.ndim, padding).reshape(x.shape)


def _power(x: Array, exponent: float) -> Array:
    """x^exponent for x > 0; the paper's -3/4 by square roots, which are many times faster."""
    return jnp.sqrt(jnp.sqrt(x)) / x if exponent == -0.75 else x**exponent


def spatial_response_norm(
    x: Float[Array, "n height width channels"], *, size: int, alpha: float, beta: float
) -> Float[Array, "n height width channels"]:
    """a / (1 + α Σ a²)^β, the sum over the `size` × `size` neighbours in the same channel, clipped at the edges.

    Not in the paper: the network of 2012 had it after the normalisation of its second layer.

    Args:
      size: side of the window; odd.
      alpha: multiplies the plain sum of squares. (The 2012 code divides its α by `size`² first.)
    """
    wide = _wide(x)
    sums = lax.reduce_window(jnp.square(wide), 0.0, lax.add, (1, size, size, 1), (1, 1, 1, 1), "SAME")
    return (wide * _power(1 + alpha * sums, -beta)).astype(x.dtype)


def _wide(x: Array) -> Array:
    return x.astype(wide_type(x))


def wide_type(x: Array) -> jnp.dtype:
    """float32 for what is narrower: sums in bfloat16 would lose what they are about."""
    return jnp.dtype(jnp.float32) if x.dtype.itemsize < 4 else x.dtype
