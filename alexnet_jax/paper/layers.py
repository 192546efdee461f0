"""§3: the network's operations, as plain functions on NHWC arrays.

They are the formulas, in jnp and lax: right under every transformation of JAX, in any order, on any mesh. All keep the
type of their input. Faster forms of some are exchanged for them by `device.tuned`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Float, Key

from alexnet_jax.paper.augment import image_keys
from alexnet_jax.paper.normalization import local_response_norm, spatial_response_norm, wide_type

relu = jax.nn.relu  # §3.1


def takes_key(step: Callable) -> Callable:
    """Marks a step that is random: it is called as `step(x, keys)`, with one key an image; at test with None."""
    step.takes_key = True  # type: ignore[attr-defined]
    return step


def conv2d(
    x: Float[Array, "n height width channels"],
    kernel: Float[Array, "window window channels_per_group features"],
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Float[Array, "n out_height out_width features"]:
    """Convolution (cross-correlation) of NHWC images with an HWIO kernel, §3.5.

    Args:
      padding: zeros before (top, left) and after (bottom, right).
      groups: features and channels are cut into so many groups, and each group of features reads only
        its own channels: §3.2's two GPUs.

    Raises ValueError where the padded image is smaller than the window, or the kernel does not fit the channels.
    """
    check_fit(x, kernel, padding, groups)
    if max(padding) >= len(kernel):  # XLA's CPU backend (jaxlib 0.10) would give wrong gradients
        x, padding = jnp.pad(x, [(0, 0), padding, padding, (0, 0)]), (0, 0)
    return lax.conv_general_dilated(
        x, kernel, window_strides=(stride, stride), padding=(padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def check_fit(x: Array, kernel: Array, padding: tuple[int, int], groups: int) -> None:
    """Raises ValueError where `conv2d` cannot be computed."""
    window, width, of_group, features = kernel.shape
    padded = [length + sum(padding) for length in x.shape[1:3]]
    if min(padded) < window:
        raise ValueError(f"{padded[0]}×{padded[1]}, padded, is smaller than a window of {window}")
    if x.shape[-1] != groups * of_group or features % groups or window != width:
        raise ValueError(f"a kernel of shape {kernel.shape} does not fit {x.shape[-1]} channels in {groups} groups")


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


def dense(x: Float[Array, "n inputs"], kernel: Float[Array, "inputs features"]) -> Float[Array, "n features"]:
    """x · kernel."""
    return x @ kernel


def add_bias(x: Float[Array, "n *places features"], bias: Float[Array, "..."]) -> Float[Array, "n *places features"]:
    """x + bias. A bias of shape (features,) is the same at every place; one of (*places, features) is not."""
    wide = wide_type(x)  # in which the bias's gradient is summed
    bias = bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)
    return (x.astype(wide) + bias.astype(wide)).astype(x.dtype)


def max_pool(
    x: Float[Array, "n height width channels"], *, window: int, stride: int, ceil_mode: bool = False
) -> Float[Array, "n out_height out_width channels"]:
    """Max-pooling over `window` × `window` squares `stride` apart (§3.4: overlapping where stride < window).

    Of several that are the largest, the first, row by row, has the gradient.

    Args:
      ceil_mode: whether a last window that hangs over the edge counts, clipped, as in the 2012 code. In the
        paper's own network none does.

    Raises ValueError where not one window fits.
    """
    padding = overhang(x, window, stride, ceil_mode)
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), padding)


def average_pool(
    x: Float[Array, "n height width channels"], *, window: int, stride: int
) -> Float[Array, "n out_height out_width channels"]:
    """The mean over `window` × `window` squares `stride` apart; of a last one that hangs over the edge, of what lies
    inside, as in the 2012 code.

    Raises ValueError where not one window fits.
    """
    padding = overhang(x, window, stride, True)

    def sums(of: Array) -> Array:
        return lax.reduce_window(of, 0.0, lax.add, (1, window, window, 1), (1, stride, stride, 1), padding)

    inside = sums(jnp.ones((1, *x.shape[1:3], 1), wide_type(x)))
    return (sums(x.astype(inside.dtype)) / inside).astype(x.dtype)


def overhang(x: Array, window: int, stride: int, ceil_mode: bool) -> tuple[tuple[int, int], ...]:
    """The padding, of each axis (before, after), that makes the last window which begins inside whole in `ceil_mode`.

    Raises ValueError where not one window fits.
    """
    if min(x.shape[1:3]) < window:
        raise ValueError(f"{x.shape[1]}×{x.shape[2]} is smaller than a pooling window of {window}")
    missing = [-(length - window) % stride for length in x.shape[1:3]]
    bottom, right = (of if ceil_mode and of < window else 0 for of in missing)
    return ((0, 0), (0, bottom), (0, right), (0, 0))


@takes_key
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


lrn = functools.partial(local_response_norm, size=5, k=2.0, alpha=1e-4, beta=0.75, groups=2)
pool = functools.partial(max_pool, window=3, stride=2)

# A step is written down by its name here, and one that is not here by its import path.
STEPS: dict[str, Callable] = {
    "relu": relu,
    "lrn": local_response_norm,
    "srn": spatial_response_norm,
    "pool": max_pool,
    "average_pool": average_pool,
    "dropout": dropout,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu,
    "softplus": jax.nn.softplus,
}
