"""§4.1: crops, reflections and PCA colour as pure, jit-able functions on batches.

Images are RGB, NHWC, 0-255: uint8 as they lie on disk, or float32 once the mean is subtracted.

Every random function takes one key, or one key an image. With one key an image a batch may be cut
into pieces for several devices without changing a single number.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Bool, Float, Int, Key, Num, UInt8


def image_keys(key: Key[Array, "*batch"], images: int | Int[Array, "n"], *, chunk: int = 1) -> Key[Array, "n"]:
    """One key an image, out of one key for all. Keys that are one an image already are returned as they are.

    Args:
      images: how many; or the places of these images in a batch of which other devices have the rest. An image's key is
        a function of its place, so that it is the same on any number of devices.
      chunk: so many images in a row of the whole batch get the key of the first of them.
    """
    if key.ndim:
        return key
    places = jnp.arange(images) if isinstance(images, int) else images
    return jax.vmap(random.fold_in, (None, 0))(key, places // chunk * chunk)


def random_crop(
    key: Key[Array, "*batch"], images: Num[Array, "n height width 3"], size: int, *, to_edge: bool = False
) -> Num[Array, "n {size} {size} 3"]:
    """Cuts a `size` × `size` patch out of each image, each at its own random place.

    The top-left corner is one of (height - size) × (width - size) places: 32 · 32 for a patch of 224
    in 256, as §4.1 counts ("a factor of 2048", with reflections). With `to_edge` it is one of 33 · 33, as in
    the 2012 code: the patches at the bottom and right edges count too.
    """
    corners = _random_corners(image_keys(key, len(images)), images.shape, size, to_edge)
    return patches(images, corners, jnp.zeros(len(images), bool), size)


def _random_corners(keys: Key[Array, "n"], shape: tuple[int, ...], size: int, to_edge: bool) -> Int[Array, "n 2"]:
    places = np.maximum(np.subtract(shape[1:3], size) + to_edge, 1)

    def corner(key: Array) -> Array:  # by a uniform number: cheaper than an integer, and its steps are of 2⁻²³
        return (random.uniform(key, (2,), jnp.float32) * places.astype(np.float32)).astype(jnp.int32)

    return jax.vmap(corner)(keys)


def patches(
    images: Num[Array, "n height width 3"], corners: Int[Array, "n 2"], mirrored: Bool[Array, "n"], size: int
) -> Num[Array, "n {size} {size} 3"]:
    """The `size` × `size` patch of each image from its (top, left) on, mirrored left-right or not."""

    def cut(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*corner, jnp.zeros_like(corner[0])), (size, size, 3))

    cuts = jax.vmap(cut)(images, corners)
    return jnp.where(mirrored[:, None, None, None], cuts[:, :, ::-1], cuts)


def random_reflection(
    key: Key[Array, "*batch"], images: Num[Array, "n height width 3"]
) -> Num[Array, "n height width 3"]:
    """Mirrors each image left-right with probability one half (§4.1)."""
    mirrored = _half(image_keys(key, len(images)))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def _half(keys: Key[Array, "n"]) -> Bool[Array, "n"]:
    return jax.vmap(random.bernoulli)(keys)


def pca_color(
    key: Key[Array, "*batch"],
    images: Float[Array, "n height width 3"],
    pca: Float[Array, "3 3"],
    scale: float | Float[Array, ""],
) -> Float[Array, "n height width 3"]:
    """Adds to every pixel of an image the same random colour (§4.1): pca @ (scale · z), z ~ N(0, I₃).

    Args:
      pca: column i is the principal component pᵢ of the training set's RGB values times the standard
        deviation along it, in grey levels. The paper's sentence multiplies by the *eigenvalue* λᵢ, which
        would be noise of ±1,500 grey levels; the 2012 code multiplies by the standard deviation √λᵢ.
      scale: standard deviation of αᵢ; the paper's is 0.1.
    """
    alpha = scale * jax.vmap(lambda key: random.normal(key, (3,), pca.dtype))(image_keys(key, len(images)))
    # The colour is a 3-vector: a full-precision product costs nothing.
    color = jnp.einsum("ij,nj->ni", pca, alpha, precision="highest")
    return images + color[:, None, None, :].astype(images.dtype)


def center_view(images: Num[Array, "n height width 3"], size: int) -> Num[Array, "n {size} {size} 3"]:
    """The central `size` × `size` patch of each image."""
    top, left = (images.shape[1] - size) // 2, (images.shape[2] - size) // 2
    return images[:, top : top + size, left : left + size]


def ten_views(images: Num[Array, "n height width 3"], size: int) -> Num[Array, "10 n {size} {size} 3"]:
    """The five patches of §4.1 (four corners, centre) and then their mirror images: 10 views of each image."""
    bottom, right = images.shape[1] - size, images.shape[2] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    views = jnp.stack([images[:, top : top + size, left : left + size] for top, left in corners])
    return jnp.concatenate([views, views[:, :, :, ::-1]])


def subtract_mean(
    images: UInt8[Array, "n height width 3"], mean_image: Float[Array, "height width 3"]
) -> Float[Array, "n height width 3"]:
    """§2: from each pixel its mean over the training set, in float32."""
    return images.astype(jnp.float32) - mean_image[None]


def training_views(
    key: Key[Array, "*batch"],
    images: UInt8[Array, "n height width 3"],
    mean_image: Float[Array, "height width 3"],
    pca: Float[Array, "3 3"],
    *,
    size: int,
    color_scale: float | Float[Array, ""],
    chunk_key: Key[Array, "n"] | None = None,
    reflect: bool = True,
    crop_to_edge: bool = False,
    center_mean: bool = False,
    color_rescale: bool = False,
    cut: Callable[[Array, Array, Array, int], Array] = patches,
) -> Float[Array, "n {size} {size} 3"]:
    """All of §2 and §4.1 in the paper's order: minus the mean, random patch, reflection, colour.

    Args:
      size: side of the patches. color_scale: as `scale` of `pca_color`. reflect: whether there are reflections.

    and what the 2012 code did otherwise:

      chunk_key: one key an image, for the patch and the reflection; images with equal keys share both.
      crop_to_edge: as `to_edge` of `random_crop`.
      center_mean: the centre of the mean image is subtracted from every patch, wherever it comes from and mirrored
        or not; else each pixel meets its own mean.
      color_rescale: image and colour are divided by 1 + color_scale, to come back to the scale of the test.

    cut: what computes `patches`.
    """
    crop_keys, reflection_keys, color_keys = split_each(image_keys(key, len(images)), 3)
    if chunk_key is not None:
        crop_keys, reflection_keys, _ = split_each(chunk_key, 3)
    corners = _random_corners(crop_keys, images.shape, size, crop_to_edge)
    mirrored = _half(reflection_keys) if reflect else jnp.zeros(len(images), bool)
    views = cut(images if center_mean else subtract_mean(images, mean_image), corners, mirrored, size)
    if center_mean:
        views = subtract_mean(views, center_view(mean_image[None], size)[0])
    views = pca_color(color_keys, views, pca, color_scale)
    return views / (1 + color_scale) if color_rescale else views


def split_each(keys: Key[Array, "n"], names: int) -> Key[Array, "{names} n"]:
    """From one key an image, `names` independent keys an image, to unpack into one name a use."""
    return jax.vmap(lambda key: random.split(key, names), out_axes=1)(keys)
