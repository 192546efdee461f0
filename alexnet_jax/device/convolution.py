"""§3, §3.2: convolution, in the form that the device is fastest at."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.device import onednn


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

    Raises ValueError where the padded image is smaller than the window, or the kernel does not fit the channels.
    """
    window, width, of_group, features = kernel.shape
    padded = [length + sum(padding) for length in x.shape[1:3]]
    if min(padded) < window:
        raise ValueError(f"{padded[0]}×{padded[1]}, padded, is smaller than a window of {window}")
    # oneDNN would read beyond the end.
    if x.shape[-1] != groups * of_group or features % groups or window != width:
        raise ValueError(f"a kernel of shape {kernel.shape} does not fit {x.shape[-1]} channels in {groups} groups")
    if max(padding) >= window:  # XLA's CPU backend (jaxlib 0.10) would give wrong gradients
        x = jnp.pad(x, [(0, 0), padding, padding, (0, 0)])
        padding = (0, 0)
    if x.dtype == kernel.dtype == jnp.float32 and onednn.has_convolution() and x.size:
        return _with_onednn(x, kernel, stride, padding, groups)
    return _with_xla(x, kernel, stride, padding, groups)


def _with_xla(x: Array, kernel: Array, stride: int, padding: tuple[int, int], groups: int) -> Array:
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _with_onednn(x: Array, kernel: Array, stride: int, padding: tuple[int, int], groups: int) -> Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(onednn.convolution, stride=stride, padding=padding, groups=groups),
        default=lambda x, kernel: _with_xla(x, kernel, stride, padding, groups),
    )


def _with_onednn_forward(
    x: Array, kernel: Array, stride: int, padding: tuple[int, int], groups: int
) -> tuple[Array, tuple]:
    return _with_onednn(x, kernel, stride, padding, groups), (x, kernel)


def _with_onednn_backward(
    stride: int, padding: tuple[int, int], groups: int, saved: tuple, gradient: Array
) -> tuple[Array, Array]:
    """At stride 1 the input's gradient is itself a convolution: of the output's gradient, padded to the full overlap,
    with the kernel turned by 180° and its channels and features exchanged. For the kernel's, oneDNN has a function that
    XLA cannot call.
    """
    x, kernel = saved
    of_kernel = jax.linear_transpose(lambda kernel: _with_xla(x, kernel, stride, padding, groups), kernel)(gradient)[0]
    if stride > 1:
        of_x = jax.linear_transpose(lambda x: _with_xla(x, kernel, stride, padding, groups), x)(gradient)[0]
    else:
        turned = [part[::-1, ::-1].swapaxes(2, 3) for part in jnp.split(kernel, groups, axis=-1)]
        low, high = (len(kernel) - 1 - pad for pad in padding)
        of_x = conv2d(gradient, jnp.concatenate(turned, axis=-1), padding=(low, high), groups=groups)
    return of_x, of_kernel


_with_onednn.defvjp(_with_onednn_forward, _with_onednn_backward)
