"""§2: the one door for pictures: a file's bytes, of a format on a list, to upright RGB of 8 bits.

Nobody knows where the files come from. So only these formats' decoders see them, without side data, and what a library
has to say of one is an error of one line or nothing.
"""

import contextlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, UnidentifiedImageError

from alexnet_jax.data import bmp, tiff
from alexnet_jax.data.side_data import Bare, bare, orientation_of
from alexnet_jax.shown import reason

# As Pillow names them. TGA has no signature, and so is tried last.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "ICO", "PPM", "TGA")
MAX_PIXELS = 89_478_485  # beyond it Pillow warns that a small file may fill the memory
JPEG_FACTOR = 4  # a JPEG may have so many times more, since it is decoded at a fraction of its size
MAX_SCANS = 100  # of a JPEG: programs write up to some twenty, and each takes as long as a picture
HEIC = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftypmif1", b"ftypmsf1")

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(content: bytes, size: int, max_pixels: int = MAX_PIXELS, *, upright: bool = True) -> Image.Image:
    """The first picture in a file, RGB; turned as its EXIF says, where it is to be `upright`.

    Greyscale is spread over RGB, CMYK converted, transparency laid on white; 16 bits, and decimal numbers from 0 to 1,
    are scaled to 0…255. Raises ValueError where it is no picture, a damaged one, one in other units, or too large.

    Args:
      size: a larger JPEG than `max_pixels` is decoded at a fraction that is still at least this wide and high.
    """
    if not content:
        raise ValueError("is empty")
    formats = (*FORMATS, *_heif(content))
    jpeg = content.startswith(b"\xff\xd8\xff")
    try:
        with _settings.of(max_pixels * JPEG_FACTOR if jpeg else max_pixels):
            found = bare(content)
            if jpeg and (scans := _scans(found.image)) > MAX_SCANS:
                raise ValueError(f"it has {scans:,} scans")
            plain, palette = bmp.palette_of(found.image)
            with Image.open(io.BytesIO(plain), formats=formats if palette is None else ("BMP",)) as file:
                if file.format == "JPEG" and file.width * file.height > max_pixels:
                    file.draft(None, (size, size))
                    if file.width * file.height > max_pixels:
                        raise Image.DecompressionBombError
                if file.format == "TIFF":
                    tiff.check(file)
                with tiff.libtiff() if file.format == "TIFF" else contextlib.nullcontext():
                    file.load()
                orientation = found.orientation
                if file.format == "AVIF":  # which Pillow does not turn as the file says, but tells of
                    orientation = orientation_of(file.info.get("exif", b"").removeprefix(b"Exif\0\0"))
                if file.format == "ICO":
                    image = _rgb(bmp.icon(file, content), found)
                else:
                    image = _rgb(file, found) if palette is None else bmp.colored(file, palette)
    except UnidentifiedImageError:
        kinds = [name for name in FORMATS if (accept := Image.OPEN[name][1]) and accept(content[:16])]
        what = (
            f"is a damaged {kinds[0]}, or of a kind that is not read" if kinds else "is not an image of a known format"
        )
        raise ValueError(what) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"has more than {max_pixels:,} pixels; --max_pixels allows more") from None
    except MemoryError:
        raise ValueError("takes more memory than there is") from None
    except _OtherUnitsError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # each of Pillow's formats raises its own types for damaged data
        raise ValueError(f"is damaged ({reason(error)})") from error
    return image.transpose(UPRIGHT[orientation]) if upright and orientation in UPRIGHT else image


def usual_side(reads: Sequence[Callable[[], Any]], count: int = 15) -> int:
    """The median of the shorter sides of pictures, by a few of their files; 0 where none of these can be read."""
    sides = []
    for number in range(min(count, len(reads))):
        with contextlib.suppress(Exception), _settings.of(MAX_PIXELS):
            content = reads[number * len(reads) // min(count, len(reads))]()
            if isinstance(content, bytes):  # not an array of pixels
                with Image.open(io.BytesIO(bare(content).image), formats=FORMATS) as file:
                    sides.append(min(file.size))
    return sorted(sides)[len(sides) // 2] if sides else 0


class _OtherUnitsError(ValueError):
    """Numbers of which nobody knows what is white."""


def _heif(content: bytes) -> tuple[str, ...]:
    """Pillow's name of HEIC, where a file is one, and there is the package that reads it. Raises ValueError."""
    if content[4:12] not in HEIC or b"avif" in content[8:64]:
        return ()
    try:
        import pillow_heif
    except ImportError:
        raise ValueError("is a HEIC, which is read with pip install 'alexnet_jax[heic]'") from None
    pillow_heif.register_heif_opener()
    return ("HEIF",)


class _Settings:
    """Pillow without warnings, which name no picture, and with its check of sizes set to a number of pixels.

    All of these are the process's: threads with the same limit share them, others wait.
    """

    def __init__(self) -> None:
        self._turn, self._threads, self._limit = threading.Condition(), 0, 0
        self._before = contextlib.ExitStack()

    @contextlib.contextmanager
    def of(self, limit: int) -> Iterator[None]:
        """Within it they hold."""
        with self._turn:
            self._turn.wait_for(lambda: not self._threads or self._limit == limit)
            if not self._threads:
                self._set(limit)
            self._threads += 1
        try:
            yield
        finally:
            with self._turn:
                self._threads -= 1
                if not self._threads:
                    self._before.close()
                    self._turn.notify_all()

    def _set(self, limit: int) -> None:
        Image.init()  # else two threads could both be looking for formats, and one would find too few
        logger = logging.getLogger("PIL")
        self._limit = limit
        self._before.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        self._before.callback(logger.setLevel, logger.level)
        self._before.enter_context(warnings.catch_warnings())
        Image.MAX_IMAGE_PIXELS = limit
        logger.setLevel(logging.CRITICAL + 1)
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)


_settings = _Settings()


def _scans(jpeg: bytes) -> int:
    """How many it has up to its end, behind which a phone may keep a film."""
    count, at = 0, 2
    # In a scan's data come 0, restarts and fill bytes after 255, which are no segments.
    while (marker := re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])").search(jpeg, at)) and marker[1] != b"\xd9":
        count += marker[1] == b"\xda"
        at = marker.end()
        if marker[1] not in b"\x01\xd8":
            at += int.from_bytes(jpeg[at : at + 2], "big")
    return count


def _rgb(file: Image.Image, found: Bare) -> Image.Image:
    """A loaded picture in RGB, on white."""
    clear = _is_color(file, found.transparent)
    image = _eight_bits(file)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if clear is not None:
        image.paste("white", mask=Image.fromarray(clear))
    return image


def _is_color(image: Image.Image, color: int | tuple[int, ...] | None) -> Bool[np.ndarray, "height width"] | None:
    """Where a picture has the color that counts as transparent."""
    if color is None:
        return None
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    return pixels == color if pixels.ndim == 2 else (pixels == color).all(-1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale in other units than 0…255, scaled; any other picture as it is."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # a TIFF may have 12
        white = 2**bits - 1
    elif image.mode == "F":
        white = 1
    elif image.mode == "I":
        raise _OtherUnitsError("holds integers of which nobody knows what is white; save it with 8 or 16 bits")
    else:
        return image
    pixels = np.asarray(image, np.float64)
    low, high = pixels.min(), pixels.max()
    if not 0 <= low <= high <= white:  # not a number either
        raise _OtherUnitsError(f"holds numbers from {low:g} to {high:g}, where 0 to {white} are meant")
    return Image.fromarray((pixels * (255 / white)).round().astype(np.uint8))
