"""How a picture becomes an image of a network's size, of 8 bits: the paper's way (§2), torchvision's, and Caffe's."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from alexnet_jax.data.pictures import MAX_PIXELS, open_picture

Pixels = UInt8[np.ndarray, "size size 3"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a picture to an image (size, size, 3), uint8, RGB, of which the network sees the centre, or ten views.

    What follows is the same for all: the mean image is subtracted. Another framework's scale, standard deviation and
    order of colours are part of the first kernels (see `networks.interchange`).

    resize: "square": the central square of the picture is scaled. "shorter_side": the shorter side is scaled to `size`,
    and then the centre cut out. "both_sides": both are scaled to `size`, whatever the aspect.
    filter: "hamming": Pillow's, antialiased; bicubic to enlarge. "bilinear": Pillow's, antialiased. "opencv": OpenCV's
    INTER_LINEAR, which is not antialiased.
    upright: whether the picture is turned as its EXIF says.
    """

    resize: Literal["square", "shorter_side", "both_sides"]
    filter: Literal["hamming", "bilinear", "opencv"]
    upright: bool

    def __call__(
        self,
        picture: bytes | np.ndarray,
        size: int,
        crop_size: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> Pixels:
        """A file of one of `pictures.FORMATS`, or pixels, as an image.

        picture: of pixels, uint8, RGB (height, width, 3) or grey (height, width). crop_size: of the network's views.
        The image lies so that the central one is where the framework has it, to the pixel.

        Raises ValueError as `pictures.open_picture`, for an array that is no picture, and by "shorter_side" for a
        picture that is too long for its width.
        """
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
                what = f"is {picture.dtype} of the shape {picture.shape}"
                raise ValueError(f"{what}; must be uint8, (height, width, 3) or (height, width)")
            if picture.shape == (size, size, 3):
                return picture
            if not picture.size:
                raise ValueError("is empty")
            image = Image.fromarray(picture).convert("RGB")
        else:
            image = open_picture(picture, size, max_pixels, upright=self.upright)
        width, height = image.size
        if self.resize == "square":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            return self._scaled(image, (size, size), (left, top, left + side, top + side))
        if self.resize == "both_sides":
            return self._scaled(image, (size, size), (0, 0, width, height))
        # As torchvision rounds: down, and the place of the central view half to even.
        wide, high = (size * side // min(width, height) for side in (width, height))
        if wide * high > MAX_PIXELS:  # all of it is scaled, also what is then cut off
            raise ValueError(f"is too long for its width: scaled it would have {wide:,} × {high:,} pixels")
        left, top = (round((side - crop_size) / 2) - (size - crop_size) // 2 for side in (wide, high))
        left, top = (min(max(at, 0), side - size) for at, side in ((left, wide), (top, high)))
        return self._scaled(image, (wide, high), (0, 0, width, height))[top : top + size, left : left + size]

    def describe(self, size: int, crop_size: int) -> str:
        """In one line, for people who prepare images for a program of another language."""
        first = f"round((side - {crop_size}) / 2) - {(size - crop_size) // 2}"
        how = {
            "square": f"the central square, scaled to {size} × {size}",
            "shorter_side": f"the shorter side scaled to {size}, the longer one rounded down; of each side {size} "
            f"pixels from {first} on (halves to even; from 0 to side - {size})",
            "both_sides": f"both sides scaled to {size}, whatever the aspect",
        }[self.resize]
        filter = {
            "hamming": "Pillow's Hamming filter, to enlarge its bicubic one",
            "bilinear": "Pillow's bilinear filter, antialiased",
            "opencv": "OpenCV's INTER_LINEAR",
        }[self.filter]
        turned = "upright by EXIF" if self.upright else "not turned by EXIF"
        return f"uint8, RGB, {turned}; {how} ({filter})"

    def _scaled(
        self, image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """A box (left, top, right, bottom) of an image, scaled to a size (width, height)."""
        if self.filter == "opencv":
            left, top, right, bottom = map(int, box)
            return opencv_linear(np.asarray(image)[top:bottom, left:right], *size)
        method = Image.Resampling.BILINEAR
        if self.filter == "hamming":
            # Both are antialiased. To shrink, Hamming's is as good as the bicubic one and takes half of its time.
            method = Image.Resampling.HAMMING if min(image.size) > min(size) else Image.Resampling.BICUBIC
        return np.asarray(image.resize(size, method, box))


OWN = Preprocessing("square", "hamming", upright=True)  # of §2, and of all that `prepare` writes
# torchvision's `transforms.ImageClassification`, of the weights of its alexnet.
TORCHVISION = Preprocessing("shorter_side", "bilinear", upright=False)
# Of Caffe's examples/imagenet/create_imagenet.sh: convert_imageset's `cv::resize` to 256 × 256. So were the images that
# the model card's errors are of; OpenCV turned no picture then.
CAFFE = Preprocessing("both_sides", "opencv", upright=False)


def opencv_linear(
    pixels: UInt8[np.ndarray, "height_before width_before 3"], width: int, height: int
) -> UInt8[np.ndarray, "height width 3"]:
    """What cv2.resize(pixels, (width, height)) returns, bit for bit: the two nearest pixels each way, however many lie
    between, weighted by 2048ths.
    """
    if pixels.shape == (2 * height, 2 * width, 3):  # there it takes the mean
        sums = pixels.reshape(height, 2, width, 2, 3).sum((1, 3), dtype=np.int64)
        return ((sums + 2) >> 2).astype(np.uint8)
    rows, weights = _neighbors(pixels.shape[0], height, clear_weights=False)
    columns, column_weights = _neighbors(pixels.shape[1], width, clear_weights=True)
    total = np.zeros((height, width, 3), np.int64)
    for row, weight in zip(rows, weights, strict=True):
        across = sum(
            pixels[row[:, None], column] * of_column[:, None]
            for column, of_column in zip(columns, column_weights, strict=True)
        )
        total += (weight[:, None, None] * (across >> 4)) >> 16
    return ((total + 2) >> 2).astype(np.uint8)


def _neighbors(
    before: int, after: int, clear_weights: bool
) -> tuple[Int64[np.ndarray, "2 after"], Int64[np.ndarray, "2 after"]]:
    """Along one side: of each pixel after, the two before, and their weights. At the ends both are the last pixel; of
    columns one of them has all the weight.
    """
    centers = ((np.arange(after) + 0.5) * (1 / (after / before)) - 0.5).astype(np.float32)
    first = np.floor(centers).astype(np.int64)
    share = centers - first.astype(np.float32)
    if clear_weights:
        share = np.where((first < 0) | (first >= before - 1), np.float32(0), share)
    weights = np.rint(np.stack([1 - share, share]) * np.float32(2048)).astype(np.int64)
    return np.stack([first, first + 1]).clip(0, before - 1), weights
