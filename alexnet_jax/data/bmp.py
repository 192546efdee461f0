"""The palettes of BMPs. Pillow takes one of greys for none, and then the numbers of colours for greys, or for bits."""

import struct

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Palette = UInt8[np.ndarray, "colors 3"]


def palette_of(content: bytes) -> tuple[bytes, Palette | None]:
    """(the file so that Pillow gives the numbers of its colours, its colours in RGB); None where it has no palette.

    Raises ValueError where there is no room for the colours, which then are none.
    """
    if not content.startswith(b"BM") or len(content) < 54:
        return content, None
    pixels, header = struct.unpack_from("<II", content, 10)
    old = header == 12  # OS/2's, with three bytes a colour
    (bits,) = struct.unpack_from("<H", content, 24 if old else 28)
    if not 0 < bits <= 8:
        return content, None
    used = 0 if old else struct.unpack_from("<I", content, 46)[0]
    start, size = 14 + header, 3 if old else 4
    whole = content[start : min(start + (used or 2**bits) * size, pixels or len(content))]
    if len(whole) < size:
        raise ValueError("it has no palette")
    colors = np.frombuffer(whole[: len(whole) // size * size], np.uint8).reshape(-1, size)[:, 2::-1]
    return content[:start] + b"\1\0\0" + content[start + 3 :], colors  # a first colour that is no grey


def colored(image: Image.Image, palette: Palette) -> Image.Image:
    """A picture of numbers of colours. Raises ValueError where one is not in the palette."""
    numbers = np.asarray(image)
    if numbers.max() >= len(palette):
        raise ValueError("it has colours that are not in its palette")
    return Image.fromarray(palette[numbers])
