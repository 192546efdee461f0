"""§3: the network's operations, as plain functions on NHWC arrays.

All are differentiable, jit-able, and keep the type of their input.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax, random
from jaxtyping import Array, Float, Key

from alexnet_jax.augment import image_keys

relu = jax.nn.relu  # §3.1


def conv2d(
    x: Float[Array, "n height width channels"],
    kernel: Float[Array, "window window channels_per_group features"],
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Float[Array, "n out_height out_width features"]:
    """Convolution (cross-correlation) of NHWC images with an HWIO kernel.

    Args:
      padding: zeros before (top, left) and after (bottom, right).
      groups: features and channels are cut into so many groups, and each group of features reads only
        its own channels: §3.2's two GPUs.

    Raises ValueError where the padded image is smaller than the window.
    """
    padded = [length + sum(padding) for length in x.shape[1:3]]
    if min(padded) < kernel.shape[0]:
        raise ValueError(f"{padded[0]}×{padded[1]}, padded, is smaller than a window of {kernel.shape[0]}")
    # One convolution a group: XLA's CPU backend runs `feature_group_count=2` three times slower.
    outputs = [
        lax.conv_general_dilated(
            x_group,
            kernel_group,
            window_strides=(stride, stride),
            padding=(padding, padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for x_group, kernel_group in zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    ]
    return jnp.concatenate(outputs, axis=-1)


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
    channels = x.shape[-1]
    group = jnp.arange(channels) // (channels // groups)
    distance = jnp.abs(jnp.arange(channels)[:, None] - jnp.arange(channels)[None, :])
    # The windowed sum as a product with a band matrix: the fastest form on CPU, forward and backward.
    band = ((distance <= size // 2) & (group[:, None] == group[None, :])).astype(x.dtype)
    sums = jnp.matmul(jnp.square(x), band, precision="highest")
    return x * (k + alpha * sums) ** -beta


def spatial_response_norm(
    x: Float[Array, "n height width channels"], *, size: int, alpha: float, beta: float
) -> Float[Array, "n height width channels"]:
    """a / (1 + α Σ a²)^β, the sum over the `size` × `size` neighbours in the same channel, clipped at the edges.

    Not in the paper: the network of 2012 had it after the normalisation of its second layer.

    Args:
      size: side of the window; odd.
      alpha: multiplies the plain sum of squares. (The 2012 code divides its α by `size`² first.)
    """
    sums = lax.reduce_window(jnp.square(x), 0.0, lax.add, (1, size, size, 1), (1, 1, 1, 1), "SAME")
    return x * (1 + alpha * sums) ** -beta


def max_pool(
    x: Float[Array, "n height width channels"], *, window: int, stride: int, ceil_mode: bool = False
) -> Float[Array, "n out_height out_width channels"]:
    """Max-pooling over `window` × `window` squares `stride` apart (§3.4: overlapping where stride < window).

    Args:
      ceil_mode: whether a last window that hangs over the edge counts, clipped, as in the 2012 code. In the
        paper's own network none does.

    Raises ValueError where not one window fits.
    """
    if min(x.shape[1:3]) < window:
        raise ValueError(f"{x.shape[1]}×{x.shape[2]} is smaller than a pooling window of {window}")
    # Down the columns, then along the rows, as maxima of strided slices: on CPU the gradient is twice as
    # fast as that of `lax.reduce_window`.
    for axis in (1, 2):
        overhang = -(x.shape[axis] - window) % stride if ceil_mode else 0
        if 0 < overhang < window:
            x = jnp.pad(x, [(0, overhang if i == axis else 0) for i in range(4)], constant_values=-jnp.inf)
        length = stride * ((x.shape[axis] - window) // stride + 1)
        slices = [lax.slice_in_dim(x, i, min(i + length, x.shape[axis]), stride, axis) for i in range(window)]
        x = functools.reduce(jnp.maximum, slices)
    return x


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
