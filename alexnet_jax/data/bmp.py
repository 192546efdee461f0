"""The palettes of BMPs. Pillow takes one of greys for none, and then the numbers of colours for greys, or for bits."""

import io
import struct
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

NO_GREY = b"\1\0\0"  # in the place of a palette's first colour
Palette = UInt8[np.ndarray, "colors 3"]


def palette_of(content: bytes) -> tuple[bytes, Palette | None]:
    """(the file so that Pillow gives the numbers of its colours, its colours in RGB); None where it has no palette.

    Raises ValueError where there is no room for the colours, which then are none.
    """
    if content.startswith(b"\0\0\1\0"):
        return _colored_icon(content), None
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
    return content[:start] + NO_GREY + content[start + 3 :], colors


def _colored_icon(content: bytes) -> bytes:
    """An ICO in which no palette is one of greys; `icon` has its colours."""
    changed = bytearray(content)
    for entry in range(6, 6 + 16 * struct.unpack_from("<H", content, 4)[0], 16):
        start = struct.unpack_from("<I", content[entry : entry + 16].ljust(16, b"\0"), 12)[0]
        header, _, _, _, bits = struct.unpack_from("<IiiHH", content[start : start + 16].ljust(16, b"\0"))
        if 40 <= header <= 124 and 0 < bits <= 8 and len(content) >= start + header + 3:
            changed[start + header : start + header + 3] = NO_GREY
    return bytes(changed)


def icon(file: Any, content: bytes) -> Image.Image:
    """The picture of an ICO that Pillow has loaded, whose colours and transparency are those of its palette and its
    mask, if it is a BMP with a palette. Raises as `palette_of` and `colored`.
    """
    start = file.ico.entry[0].offset  # Pillow takes the first one, too
    header, width, height, _, bits = struct.unpack_from("<IiiHH", content, start)
    if content[start : start + 4] == b"\x89PNG" or header < 40 or not 0 < bits <= 8:
        return file
    used = struct.unpack_from("<I", content, start + 32)[0]
    pixels = 14 + header + 4 * (used or 2**bits)
    # Of the two heights, one above the other, the second is that of the mask.
    dib = struct.pack("<IiiHH", header, width, height // 2, 1, bits) + content[start + 16 :]
    plain, palette = palette_of(struct.pack("<2sIII", b"BM", 14 + len(dib), 0, pixels) + dib)
    with Image.open(io.BytesIO(plain), formats=("BMP",)) as numbers:
        image = colored(numbers, palette) if palette is not None else file
    if palette is not None and "A" in file.getbands():
        image.putalpha(file.getchannel("A"))
    return image


def colored(image: Image.Image, palette: Palette) -> Image.Image:
    """A picture of numbers of colours. Raises ValueError where one is not in the palette."""
    numbers = np.asarray(image)
    if numbers.max() >= len(palette):
        raise ValueError("it has colours that are not in its palette")
    return Image.fromarray(palette[numbers])
