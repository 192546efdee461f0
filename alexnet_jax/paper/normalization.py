"""§3.3: local response normalisation, across channels as in the paper, and across places as in the 2012 code."""

import functools

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
    a = x.astype(wide_type(x))
    return (a * power(k + alpha * sum_of_neighbors(a**2, size, groups), -beta)).astype(x.dtype)


def sum_of_neighbors(x: Float[Array, "*batch channels"], size: int, groups: int) -> Float[Array, "*batch channels"]:
    """Of each channel: the sum over the `size` channels around it, of its own group."""
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    window = (1,) * (grouped.ndim - 1) + (size,)
    padding = [(0, 0)] * (grouped.ndim - 1) + [(size // 2, size // 2)]
    return lax.reduce_window(grouped, 0.0, lax.add, window, (1,) * grouped.ndim, padding).reshape(x.shape)


def spatial_response_norm(
    x: Float[Array, "n height width channels"], *, size: int, alpha: float, beta: float
) -> Float[Array, "n height width channels"]:
    """a / (1 + α Σ a²)^β, the sum over the `size` × `size` neighbours in the same channel, clipped at the edges.

    Not in the paper: the network of 2012 had it after the normalisation of its second layer.

    Args:
      size: side of the window; odd.
      alpha: multiplies the plain sum of squares. (The 2012 code divides its α by `size`² first.)
    """
    a = x.astype(wide_type(x))
    sums = lax.reduce_window(a**2, 0.0, lax.add, (1, size, size, 1), (1, 1, 1, 1), "SAME")
    return (a * power(1 + alpha * sums, -beta)).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def power(d: Float[Array, "..."], exponent: float) -> Float[Array, "..."]:
    """d^exponent for d > 0; the paper's -3/4 by square roots, which are many times faster."""
    return jnp.sqrt(jnp.sqrt(d)) / d if exponent == -0.75 else d**exponent


@power.defjvp
def _power_jvp(exponent: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """p ḋ/d · exponent: where d is large, d^(exponent - 1) is below the smallest float32, and ḋ/d is not."""
    (d,), (d_dot,) = primals, tangents
    p = power(d, exponent)
    return p, exponent * (p * (d_dot / d))


def wide_type(x: Array) -> jnp.dtype:
    """float32 for what is narrower: sums in bfloat16 would lose what they are about."""
    return jnp.dtype(jnp.float32) if x.dtype.itemsize < 4 else x.dtype
