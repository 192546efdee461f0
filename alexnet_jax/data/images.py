"""§2: image files to upright RGB of one size, how pixels are stored, and their statistics."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Float64, UInt8

from alexnet_jax.data.pictures import MAX_PIXELS
from alexnet_jax.data.preprocessing import OWN, Pixels, Preprocessing
from alexnet_jax.files import place, read_plain
from alexnet_jax.options import InputError

JPEG_QUALITY = 95


def read_file(
    file: str | Path,
    size: int,
    max_pixels: int = MAX_PIXELS,
    *,
    preprocessing: Preprocessing = OWN,
    crop_size: int = 0,
) -> Pixels:
    """A file as an image, by default as `upright_rgb`. Raises InputError, naming it, where it is not there or no
    picture.
    """
    try:
        return preprocessing(read_plain(place(file)), size, crop_size, max_pixels)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error


def upright_rgb(image: bytes | UInt8[np.ndarray, "height width 3"], size: int, max_pixels: int = MAX_PIXELS) -> Pixels:
    """§2: the shorter side scaled to `size` (antialiased), the central square; upright by EXIF, RGB.

    image: a file of one of `pictures.FORMATS`, or pixels. Raises ValueError as `pictures.open_picture`.
    """
    return OWN(image, size, max_pixels=max_pixels)


class Encoding(NamedTuple):
    """How pixels are stored. decode: (stored, out) → fills `out`; raises ValueError where what is stored is damaged, or
    of another size. feature: (tfds.features, shape) → what TFDS is told of it; it must have that shape. form: another
    number whenever `encode` comes to write other bytes, so that a stopped `prepare` does not mix them.
    """

    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes, Pixels], None]
    feature: Callable[[Any, tuple[int, int, int]], Any]
    form: int = 0


def _decode_jpeg(stored: bytes, out: Pixels) -> None:
    if simplejpeg.decode_jpeg(stored, "RGB", buffer=out).shape != out.shape:
        raise ValueError(f"not {out.shape[0]}×{out.shape[1]} pixels")


def _decode_raw(stored: bytes, out: Pixels) -> None:
    out[...] = np.frombuffer(stored, np.uint8).reshape(out.shape)


# The manifest of a data set has the name.
ENCODINGS: dict[str, Encoding] = {
    "jpeg": Encoding(
        lambda pixels: simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY),
        _decode_jpeg,
        lambda features, shape: features.Image(shape=shape, encoding_format="jpeg"),
        form=JPEG_QUALITY,
    ),
    "raw": Encoding(
        lambda pixels: pixels.tobytes(),
        _decode_raw,
        lambda features, shape: features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Statistics:
    """§2's mean and §4.1's colour PCA of a training split, in grey levels (0-255), float64.

    mean_image: of each pixel. covariance: of the RGB values over all pixels of all images.
    """

    mean_image: Float64[np.ndarray, "size size 3"]
    covariance: Float64[np.ndarray, "3 3"]

    @property
    def color_pca(self) -> Float64[np.ndarray, "3 3"]:
        """Columns: principal components of the RGB values, each times the standard deviation along it."""
        eigenvalues, eigenvectors = np.linalg.eigh(self.covariance)
        return eigenvectors * np.sqrt(np.maximum(eigenvalues, 0))


class Sums:
    """Exact integer sums over images, which can be added up: of each pixel, and of the products of colours.

    dtype: of the sums of pixels; uint32, in which adding is twice as fast, holds 16 million images.
    """

    def __init__(self, size: int, dtype: Any = np.uint32):
        self.images = 0
        self.pixels = np.zeros((size, size, 3), dtype)
        self.products = np.zeros((3, 3), np.int64)

    def add(self, image: Pixels) -> None:
        """One image more, of the size of the others."""
        self.images += 1
        self.pixels += image
        colors = [image[..., channel].astype(np.float64) for channel in range(3)]
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)):
            # Of one image the product stays far below 2⁵³, where float64 is exact. Row by row, since BLAS would
            # start threads on all cores for more, and several processes doing so get in each other's way.
            self.products[i, j] += int(np.vecdot(colors[i], colors[j]).sum())
            self.products[j, i] = self.products[i, j]

    def statistics(self) -> Statistics:
        """The mean image, and the covariance of the colours of all pixels (§4.1), of the images so far."""
        mean_image = self.pixels / self.images
        mean_color = mean_image.mean((0, 1))
        positions = self.images * mean_image.shape[0] * mean_image.shape[1]
        return Statistics(mean_image, self.products / positions - np.outer(mean_color, mean_color))
